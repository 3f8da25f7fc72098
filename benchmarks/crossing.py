"""Steps with slow agents: rollouts that cross steps beside the least that any schedule could take.

The tiny policy (leg counting, after a short warm start), 8 problems of 8 rollouts a step, agents whose
latency is log-normal: median 2 s, 99th percentile 30 s, no longest. The bound of a step is the larger of two:
a step whose agents answer at once (decoding and update), and the mean consultation chain of a rollout times a
step's rollouts over the rollouts that may be in flight.

A group is complete with its slowest rollout, and a step waits for groups that are due: the bound can be
reached only where N steps take longer than the longest chain of consultations.

Not here: TRL's tool loop with these latencies; overlap.py has it with shorter ones.

The clock is that of a core to itself (`measure.FreeCore`): CPU-seconds of this process and waits, which is
right under load too. A thread's update takes its time on it, and timers go on meanwhile. Steps are counted
from the one on in which as many groups are under way as may be.
"""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from typer.testing import CliRunner

from aipo.agents.base import AgentQuery, AgentReply
from aipo.assembly.parts import assemble
from aipo.cli.main import app
from aipo.config.loader import load_settings
from aipo.config.toml import toml_text
from aipo.core.types import PAPER_AGENTS
from aipo.tasks.base import Split
from aipo.training.events import Progress
from aipo.training.loop import Trainer
from measure import ROOT, Figure, FreeCore, options, report

MEDIAN_S, P99_S = 2.0, 30.0
SIGMA = math.log(P99_S / MEDIAN_S) / 2.3263
"""2.3263 standard deviations are the 99th percentile of a normal distribution."""
MOST = 1.15
STALENESS = (0, 16)
WARM = {"hidden_size": 64, "intermediate_size": 128, "steps": 250, "sequences_per_step": 32}


@dataclass
class Slow:
    """An agent that takes its time; `speed` 0 answers at once."""

    name: str
    speed: float
    waited_s: list[float] = field(default_factory=list)

    async def answer(self, query: AgentQuery) -> AgentReply:
        """Wait, and say a word."""
        wait_s = self.speed * MEDIAN_S * math.exp(SIGMA * Random(query.seed).gauss(0.0, 1.0))
        self.waited_s.append(wait_s)
        if wait_s:
            await asyncio.sleep(wait_s)
        return AgentReply(text="8")


class StepCore(FreeCore):
    """The clock of a core to itself, on which a thread's update takes its time."""

    trainer: Trainer | None = None

    def __init__(self) -> None:
        super().__init__()
        jumping, selector = self._selector.select, self._selector  # type: ignore[attr-defined]
        really = type(selector).select

        def select(timeout: float | None = None) -> Any:
            if self.trainer is None or not self.trainer._aside.busy:
                return jumping(timeout)
            return really(selector, 0.002 if timeout is None else min(timeout, 0.002))

        selector.select = select


def run(recipe: Path, most: int, speed: float, steps: int) -> dict[str, float]:
    """Train; return the seconds of a step, and what the agents took."""
    with TemporaryDirectory() as folder:
        more = [f"run.output={folder}/run", f"rollout.max_staleness_steps={most}", f"train.steps={steps}"]
        settings = load_settings(recipe, more)
        agents = {name: Slow(name, speed) for name in PAPER_AGENTS}
        parts = assemble(settings, agents)
        whole = (parts.model, parts.tokenizer, parts.sampler, parts.problems(Split.TRAIN))
        loop, ends, stale = StepCore(), list[float](), list[float]()
        loop.trainer = trainer = Trainer(settings, *whole)

        async def after(progress: Progress) -> None:
            ends.append(loop.time())
            stale.append(progress.metrics.get("staleness_mean", 0.0))

        try:
            loop.run_until_complete(trainer.run(after))
        finally:
            trainer.close()
            loop.close()
        skipped = min(most + 1, steps // 2)
        waited = [wait for agent in agents.values() for wait in agent.waited_s]
        rollouts = steps * settings.train.prompts_per_step * settings.rollout.rollouts_per_prompt
        return {
            "step_s": (ends[-1] - ends[skipped - 1]) / (steps - skipped),
            "chain_s": sum(waited) / rollouts,
            "longest_s": max(waited, default=0.0),
            "consultations": len(waited),
            "staleness": sum(stale[skipped:]) / len(stale[skipped:]),
            "steps": steps,
        }


def recipe_of(folder: Path, quick: bool) -> Path:
    """Make the policy and the recipe of its runs."""
    recipe = folder / "recipe.toml"
    size = {"prompts_per_step": 2 if quick else 8}
    table: dict[str, Any] = {
        "base": str(ROOT / "recipes" / "tiny.toml"),
        "policy": {"model": str(folder / "warm" / "policy")},
        "rollout": {"slots": 8192},
        "agents": {"timeout_s": 1000.0},
        "train": {"checkpoint_every_steps": 1000, "record_rollouts_every_steps": 1000, **size},
        "guards": {"zero_variance": "skip", "max_mismatch_nats": 1000.0},
        "warmstart": WARM | ({"steps": 20} if quick else {}) | {"learning_rate": 1e-2},
    }
    recipe.write_text(toml_text(table))
    made = CliRunner().invoke(app, ["warmstart", str(recipe), f"run.output={folder / 'warm'}"])
    if made.exit_code:
        raise SystemExit(made.output)
    return recipe


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure."""
    given = options("crossing", arguments)
    figures, details = list[Figure](), dict[str, object]()
    with TemporaryDirectory() as folder:
        recipe = recipe_of(Path(folder), given.quick)
        at_once = run(recipe, 0, 0.0, 3 if given.quick else 6)
        details["agents that answer at once"] = at_once
        for most in (0, 1) if given.quick else STALENESS:
            found = run(recipe, most, 0.02 if given.quick else 1.0, 2 * most + 6)
            bound = max(at_once["step_s"], found["chain_s"] / (most + 1))
            ratio = found["step_s"] / bound
            what = f"a step of 64 rollouts, at most {most} updates old; {found['staleness']:.1f} in the mean"
            asked = f"at most {MOST:g} x the bound" if most == max(STALENESS) else ""
            passed = ratio <= MOST if asked else None
            figures.append(Figure(what, found["step_s"], "s", "bound", bound, ratio, asked, passed))
            details[f"at most {most} updates old"] = found
    report("crossing", figures, details, replace(given))


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"{time.perf_counter() - started:.0f} s in all")
