"""The report of 50,000 rollouts: how long `aipo report` takes, how much memory, and how large the file is.

Asked (issue 8): under 60 s and 2 GB; the file of a run of 200 steps below 5 MB. The run is written here as
`aipo train` writes one: 200 steps of 250 rollouts in groups of 8 or less, each of about 300 tokens with its
log-probabilities and two consultations, metrics of every step, evaluations. The verb runs as a process of its
own, imports included, whose peak resident memory the kernel tells.

Not measured: the browser. Texts are random words of the benchmark's tokenizer.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from aipo.config.loader import dump_settings, load_settings
from aipo.core.types import PAPER_AGENTS, ConsultOutcome
from measure import Figure, options, report, tokenizer, words

ROLLOUTS, STEPS, GROUP = 50_000, 200, 8
MOST_S, MOST_MEMORY_MB, MOST_FILE_MB = 60.0, 2000.0, 5.0
TURN_TOKENS, REPLY_TOKENS = 90, 24
REPEATS = 3
VARIETY = 400
"""Different rollouts that are written; what varies between repetitions of one is its name and verdict."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a run, report on it, and tell what that took."""
    given = options("report", arguments)
    rollouts, steps = (2_000, 20) if given.quick else (ROLLOUTS, STEPS)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        written_mb = write_run(run, rollouts, steps)
        repeats = given.repeats or (1 if given.quick else REPEATS)
        taken = [reported(run) for _ in range(repeats)]
        file_mb = (run / "report.html").stat().st_size / 1e6
    wall, cpu, memory = (median(column) for column in zip(*taken, strict=True))
    figures = [
        _bounded(f"report of {rollouts:,} rollouts", wall, "s", MOST_S),
        Figure(f"report of {rollouts:,} rollouts, CPU", cpu, "CPU-s"),
        _bounded("its peak memory", memory, "MB", MOST_MEMORY_MB),
        _bounded(f"the file, {steps} steps", file_mb, "MB", MOST_FILE_MB),
    ]
    sizes = {"rollouts": rollouts, "steps": steps, "rollouts_jsonl_mb": round(written_mb), "repeats": repeats}
    report(
        "report",
        figures,
        {**sizes, "each": [dict(zip(("wall_s", "cpu_s", "peak_mb"), t, strict=True)) for t in taken]},
        given,
    )


def _bounded(what: str, ours: float, unit: str, most: float) -> Figure:
    return Figure(what, ours, unit, "bound", most, ours / most, f"below {most:g} {unit}", ours < most)


def reported(run: Path) -> tuple[float, float, float]:
    """Run the verb as a process; return wall seconds, CPU seconds and peak megabytes."""
    command = [sys.executable, "-m", "aipo", "report", str(run)]
    began = time.perf_counter()
    process = os.posix_spawn(command[0], command, {**os.environ, "OMP_NUM_THREADS": "1"})
    _, status, usage = os.wait4(process, 0)
    wall = time.perf_counter() - began
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000  # KiB on Linux


def write_run(folder: Path, rollouts: int, steps: int) -> float:
    """Write a run's files; return the megabytes of its rollouts."""
    folder.mkdir()
    settings = load_settings(None, [f"run.output={folder}", f"train.steps={steps}", "evaluate.pass_at=[1,8]"])
    (folder / "settings.toml").write_text(dump_settings(settings))
    spoken = tokenizer()
    spoken.save_pretrained(folder / "policy")
    rng = Random(0)
    variety = [_rollout(spoken, rng) for _ in range(VARIETY)]
    with (folder / "rollouts.jsonl").open("w") as file:
        for row in _named(variety, rollouts, steps, rng):
            file.write(json.dumps(row) + "\n")
    with (folder / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(_metrics(step, rng)) + "\n" for step in range(1, steps + 1))
    with (folder / "timings.jsonl").open("w") as file:
        times = {"rollout_s": 20.0, "update_s": 10.0, "consult_s": 300.0}
        file.writelines(json.dumps({"step": step, **times}) + "\n" for step in range(1, steps + 1))
    with (folder / "evaluation.jsonl").open("w") as file:
        for step in range(0, steps + 1, max(1, steps // 10)):
            file.writelines(
                json.dumps(_evaluation(step, mode, rng)) + "\n" for mode in ("unanswered", "banned")
            )
    return (folder / "rollouts.jsonl").stat().st_size / 1e6


def _rollout(spoken: Any, rng: Random) -> dict[str, Any]:
    """Return a rollout of three turns and two consultations, without its name."""
    segments = [{"source": "prompt", **_words(spoken, rng, 60)}]
    consultations = []
    for turn in range(3):
        said = {"source": "policy", **_words(spoken, rng, TURN_TOKENS)}
        segments.append(said | {"log_probs": [round(-rng.expovariate(2), 6) for _ in said["ids"]]})
        if turn < 2:
            reply = _words(spoken, rng, REPLY_TOKENS)
            segments.append({"source": "feedback", **reply})
            consultations.append(_consultation(rng, reply["text"]))
    response = "".join(segment["text"] for segment in segments[1:])
    return {"stop": "end", "weights_version": None, "response": response, "segments": segments} | {
        "consultations": consultations,
        "problem_text": segments[0]["text"],
    }


def _words(spoken: Any, rng: Random, tokens: int) -> dict[str, Any]:
    ids = list(words(rng, tokens))
    return {"ids": ids, "text": spoken.decode(ids)}


def _consultation(rng: Random, reply: str) -> dict[str, Any]:
    agent = rng.choice(PAPER_AGENTS)
    used = {"prompt_tokens": 400, "completion_tokens": 60, "cost": 0.0001, "leaked": False}
    asked = {"agent": agent, "request": f"what is {rng.randrange(10_000)}", "outcome": "answered"}
    told = {"reply": reply, "reply_tokens": REPLY_TOKENS, "detail": "", "context": "0" * 16, "failure": None}
    return asked | told | used


def _named(
    variety: Sequence[dict[str, Any]], rollouts: int, steps: int, rng: Random
) -> Iterator[dict[str, Any]]:
    """Yield rows as training writes them, group by group."""
    per_step, problem = rollouts // steps, 0
    for step in range(1, steps + 1):
        for member in range(per_step):
            problem += member % GROUP == 0
            verdict = rng.choices(("correct", "incorrect", "ungraded"), (50, 49, 1))[0]
            row = rng.choice(variety)
            condition = "consulting" if member % GROUP < GROUP // 2 else "solo"
            if condition == "solo":
                row = row | {"consultations": []}
            if condition == "consulting" and rng.random() < 0.4:
                row = row | {"consultations": row["consultations"][:1]}
            yield row | {
                "schema": 1,
                "step": step,
                "rollout": f"task/train/{problem}#{member % GROUP}",
                "problem": f"task/train/{problem}",
                "gold": "42",
                "stratum": rng.choice(("easy", "hard")),
                "condition": condition,
                "verdict": verdict,
                "reason": "different",
            }


def _metrics(step: int, rng: Random) -> dict[str, Any]:
    names = ("reward_solo", "reward_consulting", "entropy", "clip_fraction", "feedback_prob", "grad_norm")
    counts = {f"consultations/{agent}": rng.random() for agent in PAPER_AGENTS}
    outcomes = {f"outcomes/{outcome}": float(rng.randrange(9)) for outcome in ConsultOutcome}
    return {
        "step": step,
        **{name: rng.random() for name in names},
        **counts,
        **outcomes,
        "policy_tokens": 1e5,
    }


def _evaluation(step: int, mode: str, rng: Random) -> dict[str, Any]:
    results = [
        {
            "problem": f"{s}/{i}",
            "stratum": s,
            "samples": 16,
            "correct": rng.randrange(17),
            "ungraded": 0,
            "truncated": 0,
        }
        for s in ("easy", "hard")
        for i in range(64)
    ]
    head = {"schema": 1, "run": "run", "method": "run", "seed": 0, "step": step, "split": "test"}
    return {**head, "mode": mode, "results": results, "meta": {}}


if __name__ == "__main__":
    main()
