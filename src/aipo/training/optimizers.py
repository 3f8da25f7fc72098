"""The optimisers by name, each an entry of `OPTIMIZERS` with what its state takes of memory.

A library that an entry needs is imported where its name is chosen. An entry of your own is taken as it is:
a checkpoint holds its `state_dict`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch.optim import Optimizer

from aipo.config.settings import Settings
from aipo.core.registry import Registry
from aipo.training.device import the_device

_BLOCK = 256
"""Values that share one scale in bitsandbytes' 8-bit states."""
_PROBED = 4096
"""Parameters from which on its states have 8 bits."""


class OptimizerError(ValueError):
    """The optimiser cannot be used here; the message names the field, the value and the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerEntry:
    """One optimiser."""

    make: Callable[..., Optimizer]
    """Called as torch's classes are: with a list of parameters, `lr` and `weight_decay`."""
    state_bytes: Callable[[int], float]
    """Of one parameter, which itself has the bytes given."""
    package: str = ""
    """What has to be installed for it, besides torch."""
    splits: bool = True
    """Whether it can step parameters that are split over ranks (run.ranks = "fsdp")."""


def _adamw_8bit(parameters: list[torch.nn.Parameter], **options: Any) -> Optimizer:
    made: Optimizer = import_module("bitsandbytes.optim").AdamW8bit(parameters, **options)
    return made


OPTIMIZERS = Registry[OptimizerEntry]("train.optimizer", OptimizerEntry)
"""What `train.optimizer` may be; `module:attribute` names one from outside."""
OPTIMIZERS.register(
    "adamw",
    OptimizerEntry(make=partial(torch.optim.AdamW, fused=True), state_bytes=lambda size: 2.0 * size),
)
# Block-wise quantised moments, arXiv 2110.02861. bitsandbytes' own step knows no DTensor.
OPTIMIZERS.register(
    "adamw8bit",
    OptimizerEntry(
        make=_adamw_8bit, state_bytes=lambda _: 2 * (1 + 4 / _BLOCK), package="bitsandbytes", splits=False
    ),
)


def check_optimizer(settings: Settings, ranks: int = 1) -> None:
    """Raise `OptimizerError` for one whose library is missing, or that cannot step on this device or on these
    ranks, and `RegistryError` for a name that stands for nothing."""
    name = settings.train.optimizer
    entry = OPTIMIZERS[name]
    field, fix = f"train.optimizer = {name!r}", "set train.optimizer = 'adamw'"
    if ranks > 1 and settings.run.ranks == "fsdp" and not entry.splits:
        raise OptimizerError(
            f"{field} cannot step what run.ranks = 'fsdp' splits; {fix}, or run.ranks = 'ddp'"
        )
    if not entry.package:
        return
    device = the_device(settings.run.device)
    try:
        probe = torch.nn.Parameter(torch.zeros(_PROBED, device=device))
        probe.grad = torch.zeros_like(probe)
        entry.make([probe], lr=1.0, weight_decay=0.0).step()
    except ImportError as error:
        raise OptimizerError(
            f"{field} needs {entry.package}, which cannot be imported ({error}); "
            f"`pip install {entry.package}`, or {fix}"
        ) from error
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:  # what it raises is the library's
        raise OptimizerError(f"{field} cannot step on run.device = {device!r} ({error}); {fix}") from error
