"""What a checkpoint costs the training loop: seconds in which it waits, written in the loop and beside it.

    python benchmarks/checkpoint.py FOLDER_OF_A_POLICY [--output FOLDER]

Both ways in turn, of the same policy with AdamW's moments, on the same disk. `slowed` is how much longer a
matrix product on the remaining threads takes while the thread writes.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from transformers.utils.logging import disable_progress_bar

from aipo.config.settings import PolicySettings
from aipo.training.checkpoint import Checkpoints
from aipo.training.model import load_policy
from aipo.training.sharded import Whole
from aipo.training.snapshot import Learner, bytes_of_checkpoint, snapshot
from aipo.training.writer import Writer

TIMES = 3


def learner_of(folder: str) -> Learner:
    """Return a policy with an optimiser that has made a step."""
    model, tokenizer = load_policy(PolicySettings(model=folder), "cpu")
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimiser.step()
    optimiser.zero_grad()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1.0)
    return Learner(
        model=model, tokenizer=tokenizer, optimiser=optimiser, scheduler=scheduler, policy=Whole(model)
    )


def seconds(do: Callable[[], object]) -> float:
    """Return how long a call takes."""
    begun = time.perf_counter()
    do()
    return time.perf_counter() - begun


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policy")
    parser.add_argument("--output", type=Path, default=None, help="a folder on the disk in question")
    given = parser.parse_args()
    disable_progress_bar()
    learner, writer = learner_of(given.policy), Writer(600.0)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    rows: dict[str, list[float]] = {"in the loop": [], "beside it": [], "until it is there": [], "slowed": []}
    with TemporaryDirectory(dir=given.output) as folder:
        checkpoints, quiet = (
            Checkpoints(Path(folder), keep=2),
            median(seconds(lambda: a @ b) for _ in range(9)),
        )
        for step in range(1, 2 * TIMES, 2):
            whole = snapshot(learner, {"step": step}, periodic=True, copy=False)
            rows["in the loop"].append(seconds(partial(checkpoints.save, whole)))
            begun = time.perf_counter()
            own = snapshot(learner, {"step": step + 1}, periodic=True, copy=True)
            writer.begin("a checkpoint", partial(checkpoints.save, own))
            rows["beside it"].append(time.perf_counter() - begun)
            busy = []
            while writer.busy:
                busy.append(seconds(lambda: a @ b))
            rows["until it is there"].append(time.perf_counter() - begun)
            rows["slowed"].append(sum(busy) / len(busy) / quiet)
            assert writer.take() == ("a checkpoint", None)
            del own
    print(f"{bytes_of_checkpoint(learner.model) / 1e9:.2f} GB, {torch.get_num_threads()} threads")
    for name, found in rows.items():
        print(f"{name:18} median {median(found):6.2f}   {' '.join(f'{each:.2f}' for each in found)}")


if __name__ == "__main__":
    main()
