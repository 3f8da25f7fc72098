"""Runs on several CPU ranks: how torchrun starts them, how they end, how they compare with one process."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from support.policies import counting_recipe, succeed

Train = Callable[..., Path]
SMALL = [
    "train.steps=3",
    "train.checkpoint_every_steps=1",
    "train.reward=random",  # so that there is something to learn in every step
    "train.microbatch_tokens=400",  # several in each mini-batch, and not as many on both ranks
    "rollout.rollouts_per_prompt=4",
    "rollout.max_response_tokens=40",
    "run.rank_timeout_s=120",
]


def torchrun(log: Path, ranks: int, *arguments: str | Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    own = (
        path for path in sys.path if path and not path.startswith(sys.prefix)
    )  # not for a server of another Python
    with log.open("ab") as file:
        return subprocess.Popen(
            [*command, *map(str, arguments)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(own)},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def training_in(folder: Path, policy: Path) -> Train:
    """Return what trains the tiny policy in a subfolder, on so many ranks, and returns that."""

    def run(name: str, *overrides: str, ranks: int = 1) -> Path:
        own = [f"policy.model={policy}", f"run.output={folder / name}", *SMALL, *overrides]
        if ranks == 1:
            succeed("train", counting_recipe(folder), *own)
        else:
            log = folder / f"{name}.log"
            process = torchrun(log, ranks, "-m", "aipo", "train", counting_recipe(folder), *own)
            assert process.wait(timeout=400) == 0, log.read_text()
        return folder / name

    return run


@contextmanager
def started(folder: Path, policy: Path, *overrides: str) -> "Iterator[subprocess.Popen[bytes]]":
    """Start two ranks in `folder/run`; at the end of the block none is left."""
    own = [f"policy.model={policy}", f"run.output={folder / 'run'}", *SMALL, *overrides]
    process = torchrun(folder / "run.log", 2, "-m", "aipo", "train", counting_recipe(folder), *own)
    try:
        yield process
    finally:
        if process.poll() is None:
            for left in [*psutil.Process(process.pid).children(recursive=True), process]:
                left.kill()
            process.wait()


def workers_after_a_step(process: "subprocess.Popen[bytes]", run: Path) -> list[psutil.Process]:
    """Wait for the first checkpoint; return the processes of rank 0 and 1."""
    until = time.monotonic() + 200
    while not (run / "checkpoints" / "step-000001" / "manifest.json").exists():
        assert process.poll() is None and time.monotonic() < until, run.with_suffix(".log").read_text()
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    ranks = {child.environ().get("RANK"): child for child in children}
    return [ranks["0"], ranks["1"]]


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
