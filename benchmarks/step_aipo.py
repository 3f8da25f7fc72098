"""Our side of step.py: the Trainer on the parts that `aipo train` assembles, a turn for each step.

Plain GRPO without agents; guards and the record of every step as they are by default. The verdict is a coin's
(train.reward = "random"), so that both groups of a step teach. Not in the clock: the start's self-test.
"""

import asyncio
import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from aipo.agents.named import AGENTS
from aipo.assembly.parts import assemble
from aipo.config.settings import Settings
from aipo.tasks.base import Split
from aipo.training.events import Progress
from aipo.training.journal import TIMINGS
from aipo.training.loop import Trainer
from aipo.training.update import Updater
from step_work import LEARNING_RATE, Turns, Work

EVER = 1_000_000
UPDATE_CPU_S: list[float] = []
"""Of each update."""
SEED = 10
"""With it the coin leaves no group of the first two hundred steps without variance; step.py checks that."""


def settings_of(work: Work) -> Settings:
    """Return what a recipe would say."""
    folder = Path(work.folder)
    everyone = tuple(AGENTS) if work.consulting else ()
    return Settings.model_validate(
        {
            "run": {"output": folder / "run", "seed": SEED},
            "policy": {"model": str(folder / "policy")},
            "task": {"name": "jsonl", "train_file": folder / "problems.jsonl", "match": "exact"},
            "agents": {"enabled": everyone, "backend": "dead"},
            "consult": {
                "solo_prompt": "" if work.consulting else work.system,
                "max_feedback_tokens": min(256, work.new_tokens // 2),  # nobody asks; it must only fit
            },
            "rollout": {
                "rollouts_per_prompt": work.rollouts,
                "solo_fraction": 0.0 if work.consulting else 0.5,
                "max_prompt_tokens": work.capacity - work.new_tokens,
                "max_response_tokens": work.new_tokens,
                "slots": work.sequences,
            },
            "algorithm": {"name": "grpo", "coefficient": "masked", "stripped_copies": False},
            "train": {
                "steps": EVER,
                "prompts_per_step": work.prompts,
                "minibatches_per_step": 1,
                "learning_rate": LEARNING_RATE,
                "warmup_steps": 0,
                "checkpoint_every_steps": EVER,
                "reward": "random",
            },
        }
    )


def clock_updates() -> None:
    """Note the CPU-seconds of every update."""
    apply = Updater.apply

    def clocked(*arguments: Any, **options: Any) -> dict[str, float]:
        began = time.process_time()
        found = apply(*arguments, **options)
        UPDATE_CPU_S.append(time.process_time() - began)
        return found

    Updater.apply = clocked  # type: ignore[method-assign]


def main() -> None:
    """Make steps."""
    clock_updates()
    work, turns = Work.given(), Turns()
    settings = settings_of(work)
    timings = settings.run.output / TIMINGS
    with closing(assemble(settings)) as parts:
        problems = parts.task.problems(Split.TRAIN)
        with closing(Trainer(settings, parts.model, parts.tokenizer, parts.sampler, problems)) as trainer:

            async def after_step(progress: Progress) -> None:
                m = progress.metrics
                note = {"tokens": m["policy_tokens"], "teaching": m["teaching_groups"]}
                times = json.loads(timings.read_text().splitlines()[-1])
                turns.wait({**note, "update_cpu_s": UPDATE_CPU_S[-1], "rollout_s": times["rollout_s"]})

            turns.wait()
            asyncio.run(trainer.run(after_step))


if __name__ == "__main__":
    main()
