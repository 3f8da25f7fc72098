"""Started by torchrun from tests/e2e/test_ranks.py: one update on each rank, and what became of it.

`python updates_on_ranks.py OUTPUT ddp|fsdp MICROBATCH_TOKENS FAULT [mixed]`: writes the change of each
weight, which with plain descent at rate 1 is its gradient, and the metrics; or, with a FAULT, the errors of
all ranks. With `mixed`, a curve of losses in mixed precision comes first.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

from aipo.config.loader import load_settings
from aipo.training import update
from aipo.training.events import StopRunError
from aipo.training.log_probs import PolicyForward, token_log_probs
from aipo.training.ranks import disable_buffer_broadcast, end_process, join
from aipo.training.sharded import Sharded, Whole, use_fsdp
from aipo.training.update import Updater, UpdateSettings
from support.updates import OBJECTIVE, UNEVEN_ROWS, descent, double_model, loss_curve, mixed_model


def spoilt(
    model: torch.nn.Module, ids: torch.Tensor, temperature: float, first: int, *more: Any
) -> tuple[torch.Tensor, ...]:
    """Return NaNs where rows are learnt from."""
    found = token_log_probs(model, ids, temperature, first, *more)
    return tuple(values * float("nan") if torch.is_grad_enabled() else values for values in found)


def main(output: Path, kind: str, microbatch_tokens: int, fault: str, mixed: bool = False) -> None:
    ranks = join(load_settings(None, ["run.rank_timeout_s=60"]))
    torch.set_num_threads(1)
    model = mixed_model() if mixed else double_model()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    policy = Sharded(model) if kind == "fsdp" else Whole(model)
    accelerator = Accelerator(cpu=True)
    if kind == "fsdp":
        use_fsdp(accelerator, model)
    optimiser = descent(policy.trained) if mixed else torch.optim.SGD(policy.trained.parameters(), lr=1.0)
    prepared, own = accelerator.prepare(PolicyForward(policy.trained), optimiser)
    disable_buffer_broadcast(prepared)
    policy.wrapped(own)
    split = all(isinstance(parameter, DTensor) for parameter in prepared.parameters())
    if fault and ranks.rank == 1:
        update.token_log_probs = spoilt
    updater = Updater(
        accelerator,
        prepared,
        own,
        UpdateSettings(temperature=1.0, microbatch_tokens=microbatch_tokens, max_grad_norm=1e6, pad_id=0),
        None,
        ranks,
    )
    losses = loss_curve(updater) if mixed else []
    try:
        metrics = updater.apply([UNEVEN_ROWS], OBJECTIVE, by_source=not fault, keep_feedback=True)
        error = ""
    except StopRunError as stop:
        metrics, error = {}, f"{type(stop).__name__}: {stop}"
    moments = [value for of_one in own.state.values() for value in of_one.values() if torch.is_tensor(value)]
    kept = {value.dtype for value in [*prepared.parameters(), *moments]}
    policy.sync_to_sampler()
    found = {
        "changes": [a - b.detach() for a, b in zip(before, model.parameters(), strict=True)],
        "metrics": metrics,
        "losses": losses,
        "kept": kept,
        "feedback": [updater.feedback_log_p.get(id(row.stream)) for row in UNEVEN_ROWS],
        "split": split,
        "errors": ranks.all_gather(error),
    }
    ranks.first(lambda: torch.save(found, output))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4], mixed="mixed" in sys.argv[5:])
    end_process(0)
