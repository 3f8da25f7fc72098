"""A policy whose trained copy is split over ranks (FSDP), beside a whole copy that samples and is saved.

Weights and the optimiser's state move between the two here. After `sync_to_sampler` and after
`sync_from_sampler` both copies are the same policy, and a checkpoint looks like that of one process.

Simplification: every rank keeps the whole policy in memory to sample from. FSDP splits the trained weights,
the gradients and the optimiser's state.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel


class Whole:
    """The policy of one process or under DDP: the trained copy is the one that samples; nothing moves."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.trained = model

    def wrapped(self, optimiser: torch.optim.Optimizer) -> Any:
        """Return the optimiser as a checkpoint reads and writes it; after accelerate has prepared it."""
        return optimiser

    def sync_to_sampler(self) -> None:
        """Copy the trained weights into the policy that samples; on all ranks at once."""

    def sync_from_sampler(self) -> None:
        """Copy the weights of the policy that samples into the one that is trained."""

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Within the block rank 0 holds the optimiser's whole state; on all ranks at once."""
        yield


class Sharded(Whole):
    """The policy under FSDP."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Raises `ValueError` for a model without a list of layers to split."""
        _layer_names(model)
        self._model, self.trained = model, deepcopy(model)
        self._split: list[DTensor] = []
        self._optimiser: WholeOptimiser | None = None

    def wrapped(self, optimiser: torch.optim.Optimizer) -> "WholeOptimiser":
        """See `Whole`."""
        # Noted now: in and behind a forward pass the model's parameters may be the whole ones.
        self._split = [_split(parameter) for parameter in _learning(self.trained)]
        self._optimiser = WholeOptimiser(optimiser)
        return self._optimiser

    @torch.no_grad()
    def sync_to_sampler(self) -> None:
        """See `Whole`."""
        for whole, split in zip(_learning(self._model), self._split, strict=True):
            whole.copy_(split.full_tensor())

    @torch.no_grad()
    def sync_from_sampler(self) -> None:
        """See `Whole`."""
        for whole, split in zip(_learning(self._model), self._split, strict=True):
            split.copy_(_split_as(split, whole))

    @contextmanager
    def collected(self) -> Iterator[None]:
        """See `Whole`."""
        assert self._optimiser is not None
        self._optimiser.collect()
        try:
            yield
        finally:
            self._optimiser.forget()


class WholeOptimiser:
    """An optimiser of split parameters, as a checkpoint of one process reads and writes it."""

    def __init__(self, optimiser: torch.optim.Optimizer) -> None:
        self._optimiser = optimiser
        self._whole: dict[str, Any] | None = None

    def collect(self) -> None:
        """Gather the state; all ranks at once. Ranks other than 0 discard it immediately."""
        found = self._optimiser.state_dict()
        is_main = torch.distributed.get_rank() == 0
        state: dict[int, dict[str, Any]] = {}
        for index, of_parameter in found["state"].items():
            whole = {name: _whole(value, is_main) for name, value in of_parameter.items()}
            state[index] = whole if is_main else {}
        self._whole = {**found, "state": state}

    def forget(self) -> None:
        """Discard the gathered state."""
        self._whole = None

    def state_dict(self) -> dict[str, Any]:
        """Return what was collected; before that, this rank's part."""
        return self._whole or self._optimiser.state_dict()

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take this rank's part of a whole state, without communication."""
        parameters = [p for group in self._optimiser.param_groups for p in group["params"]]
        state = {
            index: {
                name: _split_as(parameters[index], value) if value.shape == parameters[index].shape else value
                for name, value in of_parameter.items()
            }
            for index, of_parameter in saved["state"].items()
        }
        self._optimiser.load_state_dict({**saved, "state": state})


def use_fsdp(accelerator: Accelerator, model: PreTrainedModel) -> None:
    """Let `accelerator.prepare` split models layer by layer, by FSDP 2.

    The head stays in the outermost unit, because `PolicyForward` reads its weights. By itself accelerate
    splits on GPUs only. torch can do it on CPUs too, so it is set here, and a CPU runs the same code.
    """
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=_layer_names(model),
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
    )
    accelerator.state.distributed_type = DistributedType.FSDP


def reshard(model: nn.Module) -> None:
    """Free whole parameters after a forward pass without a backward pass: they would go stale, because the
    optimiser changes the split ones."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _layer_names(model: PreTrainedModel) -> list[str]:
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(
            f"run.ranks = 'fsdp': {type(model).__name__} has no list of layers to split; use "
            "run.ranks = 'ddp'"
        )
    return sorted({type(layer).__name__ for layer in layers})


def _learning(model: PreTrainedModel) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _split(parameter: Tensor) -> DTensor:
    assert isinstance(parameter, DTensor)
    return parameter


def _split_as(split: DTensor, whole: Tensor) -> DTensor:
    """Return `whole` split as `split` is; each rank takes its part of what it holds."""
    there = whole.detach().to(split.device)
    return distribute_tensor(there, split.device_mesh, split.placements, src_data_rank=None)


def _whole(value: Any, keep: bool) -> Any:
    if not isinstance(value, DTensor):
        return value
    whole = value.full_tensor()
    return whole.cpu() if keep else None
