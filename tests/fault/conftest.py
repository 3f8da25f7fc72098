"""What several tests of faults share: a process that runs children, and a small run in them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.checkpoints import lines, quick_folder
from support.kill_points import Ran, Zygote
from support.policies import counting_policy, counting_recipe

SMALL = [
    "train.steps=4",
    "train.checkpoint_every_steps=2",
    "train.keep_checkpoints=1",
    "train.prompts_per_step=2",
    "train.reward=random",  # so that there is something to learn in every step
    "rollout.rollouts_per_prompt=4",
    "rollout.max_response_tokens=40",
    "evaluate.at_steps=[2, 4]",
    "evaluate.problems=1",
    "evaluate.samples_per_problem=2",
    'evaluate.modes=["unanswered"]',
    "evaluate.pass_at=[1]",
]


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.close()


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    with quick_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counting_policy(tmp_path_factory)


@pytest.fixture(scope="module")
def start(zygote: Zygote, base: Path, policy: Path) -> Callable[..., Ran]:
    """Run the small recipe in a folder `NAME/run`; the same name goes on."""

    def run(name: str, *overrides: str, **how: Any) -> Ran:
        folder = base / name
        folder.mkdir(exist_ok=True)
        own = [f"policy.model={policy}", f"run.output={folder / 'run'}"]
        recipe = counting_recipe(folder)
        return zygote.run(folder / "log", "train", recipe, *own, *SMALL, *overrides, **how)

    return run


@pytest.fixture(scope="module")
def whole(start: Callable[..., Ran], base: Path) -> Path:
    """The run that nothing happened to."""
    ran = start("whole", trace=str(base / "trace"))
    assert ran.status == 0, ran.output
    assert all(row["grad_norm"] > 0 for row in lines(base / "whole" / "run"))
    return base / "whole" / "run"
