"""Overlap: 64 rollouts that consult slow agents, beside the least that any schedule could take, and TRL's
tool loop.

Up to 3 consultations each, latency 0.3 s (median, log-normal, cut at 3 s).
The bound, from the same round, is the larger of two: the same rollouts with agents that answer at once
(decoding without pauses), and the rollout with the longest chain of its own, alone on the engine, with its
agents' latencies. Measured with two clocks: the one on the wall, which is right on a quiet machine only
(elsewhere what computes grows and latencies do not), and that of a core to itself (`measure.FreeCore`:
CPU-seconds plus waits), which is right under load too.

`--peer PYTHON` is an environment with TRL 1.16 (build/parity-venv/bin/python, made by `scripts/parity.sh`),
in which overlap_trl.py runs its tool loop on the same weights, prompts, request rate and latencies.
"""

import asyncio
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from aipo.core.seeds import seed_of
from aipo.rollout.episode import Rollout, RolloutSpec
from consulting import Bench, Slow, bench
from measure import ROOT, Clock, Figure, median_ratio, on_a_free_core, on_the_wall, options, report, tokenizer

ROLLOUTS, GROUPS = 64, 8
MOST = 1.15
REPEATS = 3
TRL_TIMEOUT_S = 900.0


def longest(specs: Sequence[RolloutSpec], made: Sequence[Rollout], agent: Slow, token_s: float) -> int:
    """Return which rollout has the longest chain: its agents' latencies and its own tokens, in turn."""

    def chain_s(index: int) -> float:
        asked = range(len(made[index].consultations))
        waited = (agent.waited_s.get(seed_of(specs[index].seed, "consultation", i), 0.0) for i in asked)
        return sum(waited) + token_s * (len(made[index].stream) - made[index].stream.prompt_length)

    return max(range(len(made)), key=chain_s)


Runner = Callable[[Coroutine[Any, Any, Any]], tuple[Any, Clock]]
CLOCKS: dict[str, Runner] = {"core to itself": on_a_free_core, "wall": on_the_wall}


def one_round(work: Bench, speed: float, run: Runner) -> dict[str, float]:
    """Measure the rollouts, then the two parts of their bound."""
    specs, agent, alone = work.specs(), Slow(speed), Slow(speed)
    made, with_agents = run(work.run(agent))
    unpaused, without_pauses = run(work.run(Slow(0.0)))
    first, probe = run(work.run(Slow(0.0), specs[:1]))
    token_s = probe.cpu_s / (len(first[0].stream) - first[0].stream.prompt_length)
    chosen = longest(specs, made, agent, token_s)
    _, chain = run(work.run(alone, [specs[chosen]]))
    return {
        "wall_s": with_agents.wall_s,
        "cpu_s": with_agents.cpu_s,
        "decode_wall_s": without_pauses.wall_s,
        "decode_cpu_s": without_pauses.cpu_s,
        "chain_wall_s": chain.wall_s,
        "chain_waited_s": sum(alone.waited_s.values()),
        "waited_s": sum(agent.waited_s.values()),
        "consultations": sum(len(r.consultations) for r in made),
        "tokens": sum(len(r.stream) - r.stream.prompt_length for r in made),
        "same_ids": sum(a.stream.ids == b.stream.ids for a, b in zip(made, unpaused, strict=True)),
    }


def by_trl(python: str) -> dict[str, float]:
    """Run TRL's tool loop in its own environment."""
    command = [python, str(ROOT / "benchmarks" / "overlap_trl.py")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=TRL_TIMEOUT_S,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure."""
    python = ROOT / "build" / "parity-venv" / "bin" / "python"
    given = options("overlap", arguments, str(python) if python.exists() else "")
    rollouts, groups, speed = (8, 2, 0.05) if given.quick else (ROLLOUTS, GROUPS, 1.0)
    work = bench(tokenizer(), rollouts=rollouts, groups=groups, quick=given.quick)
    asyncio.run(work.run(Slow(0.0), work.specs()[:2]))  # whatever is built on first use
    figures: list[Figure] = []
    details: dict[str, object] = {}
    walls: dict[str, float] = {}
    for clock, run in CLOCKS.items():
        rounds = [
            one_round(work, speed, run) for _ in range(given.repeats or (1 if given.quick else REPEATS))
        ]
        bounds = [max(r["decode_wall_s"], r["chain_wall_s"]) for r in rounds]
        walls[clock] = statistics.median(r["wall_s"] for r in rounds)
        ratio = median_ratio([r["wall_s"] for r in rounds], bounds)
        what = f"{rollouts} rollouts, up to 3 consultations each; clock: {clock}"
        bound, asked = statistics.median(bounds), f"at most {MOST:g} x the bound"
        figures.append(Figure(what, walls[clock], "s", "bound", bound, ratio, asked, ratio <= MOST))
        details[clock] = [{k: round(v, 3) for k, v in r.items()} for r in rounds]
    if given.peer:
        trl = by_trl(given.peer)
        details["trl"] = trl
        # Its tool loop waits for one rollout's agents at a time and computes nothing meanwhile.
        theirs = {"core to itself": trl["cpu_s"] + trl["waited_s"], "wall": trl["wall_s"]}
        for clock, wall in walls.items():
            what = f"the same work in TRL's own tool loop; clock: {clock}"
            figures.append(Figure(what, wall, "s", "TRL 1.16", theirs[clock], theirs[clock] / wall))
    report("overlap", figures, details, given)


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"{time.perf_counter() - started:.0f} s in all")
