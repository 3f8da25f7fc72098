"""A whole GRPO step without agents, sampling and update, beside TRL's GRPOTrainer and beside a bare loop.

16 sequences (2 prompts of 8) from random weights of three sizes; a pretrained model: step_smollm2.py. Each
side is a process of its own with one thread, from the same folder, and they make their steps turn by turn. A
step's CPU-seconds decide, the wall stands beside it. Memory: the peak of a side's process over its steps
(VmHWM), whole, and beyond what it held when the policy was loaded and no step made.

`--peer PYTHON` is an environment with TRL 1.16 (build/parity-venv/bin/python, made by `scripts/parity.sh`).
Not measured: quality (weights are random and verdicts a coin's), GPUs, checkpoints, which are off.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measure import ROOT, Figure, median_ratio, options, report
from step_work import PROMPTS, ROLLOUTS, SHAPES, TINY, Side, Work, prepare

MOST = {"0.43 M": 0.7, "3.2 M": 0.85, "25 M": 0.95}
REPEATS = {"0.43 M": 9, "3.2 M": 9, "25 M": 3}
WARM_UP = 2
"""Steps of each side before those that count."""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
Steps = dict[str, list[dict[str, Any]]]


def measured(
    commands: dict[str, str],
    work: Work,
    repeats: int,
    warm_up: int,
    between: Callable[[], None] = lambda: None,
    together: bool = True,
) -> Steps:
    """Have every side make its steps, turn by turn; return the steps that count.

    Between two rounds something else may be measured, while every side waits. Not `together`: one side after
    the other, for a machine that has no memory for all of them.
    """
    if not together:
        alone = [
            measured({side: python}, work, repeats, warm_up, between) for side, python in commands.items()
        ]
        return {side: steps for each in alone for side, steps in each.items()}
    folder = Path(work.folder)
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT / "src")}
    sides: dict[str, Side] = {}
    steps: Steps = {side: [] for side in commands}
    try:
        for side, python in commands.items():
            script = str(ROOT / "benchmarks" / f"step_{side}.py")
            with (folder / f"{side}.log").open("wb") as log:
                sides[side] = Side([python, script], work, log, environment)
        for _ in range(warm_up + repeats):
            between()
            for side, process in sides.items():
                steps[side].append(process.step())
    finally:
        for process in sides.values():
            process.close()
    wanted = work.sequences * work.new_tokens
    for side, made in steps.items():
        for step in made:
            assert step["tokens"] == wanted, f"{side}: {step['tokens']} tokens, not {wanted}"
            assert step["teaching"] == work.prompts, (
                f"{side}: a group without variance costs no backward pass"
            )
    return {side: made[warm_up:] for side, made in steps.items()}


def figures_of(name: str, what: str, steps: Steps) -> list[Figure]:
    """Compare ours with each other side."""
    figures = []
    ours = steps["aipo"]
    for side, beside in (("trl", "TRL 1.16"), ("bare", "bare loop")):
        if side not in steps:
            continue
        for key, clock in (("cpu_s", "CPU-s"), ("wall_s", "s on the wall")):
            a, b = [s[key] for s in ours], [s[key] for s in steps[side]]
            ratio, most = median_ratio(a, b), MOST.get(name) if (side, key) == ("trl", "cpu_s") else None
            asked = f"at most {most:g}" if most else ""
            passed = ratio <= most if most else None
            medians = statistics.median(a), statistics.median(b)
            figures.append(Figure(what, medians[0], clock, beside, medians[1], ratio, asked, passed))
    if "trl" in steps:
        for memory, kept in (("peak memory, whole", 0.0), ("peak memory beyond the loaded policy", 1.0)):
            peaks = [steps[s][-1]["peak_mb"] - kept * steps[s][-1]["loaded_mb"] for s in ("aipo", "trl")]
            ratio = peaks[0] / peaks[1]
            told = (peaks[0], "MB", "TRL 1.16", peaks[1], ratio, "at most TRL's", ratio <= 1.0)
            figures.append(Figure(f"{what}: {memory}", *told))
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure."""
    python = ROOT / "build" / "parity-venv" / "bin" / "python"
    given = options("step", arguments, str(python) if python.exists() else "")
    commands = {"aipo": sys.executable, **({"trl": given.peer} if given.peer else {}), "bare": sys.executable}
    figures: list[Figure] = []
    details: dict[str, Any] = {"warm_up_steps": WARM_UP, "sequences": PROMPTS * ROLLOUTS}
    for name in ["tiny"] if given.quick else list(SHAPES):
        repeats = given.repeats or (1 if given.quick else REPEATS[name])
        with tempfile.TemporaryDirectory(prefix="aipo-step-") as folder:
            work, parameters = prepare(Path(folder), SHAPES.get(name, TINY))
            steps = measured(commands, work, repeats, WARM_UP)
        new = SHAPES.get(name, TINY).new_tokens
        figures += figures_of(name, f"step, {name} parameters, {new} new tokens", steps)
        details[name] = {"parameters": parameters, "steps": {s: rounded(made) for s, made in steps.items()}}
    report("step", figures, details, given)


def rounded(steps: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Return steps as a record keeps them."""
    return [{k: round(v, 3) for k, v in step.items()} for step in steps]


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"{time.perf_counter() - started:.0f} s in all")
