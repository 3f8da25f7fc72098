"""`train.compile`: the policy's layers through torch.compile, in the update's passes with a gradient.

Layer by layer, so that all layers of a kind share one compilation. Passes without a gradient, which are the
engine's and those of rows that teach nothing, stay as they are. Shapes are dynamic, or each micro-batch would
compile anew.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from aipo.config.settings import Settings
from aipo.training.device import the_device


class CompileError(ValueError):
    """Nothing can be compiled here; the message names the field, the value and the fix."""


def check_compile(settings: Settings) -> None:
    """Compile something small for this device. Raises `CompileError` where that fails."""
    if not settings.train.compile:
        return
    device = the_device(settings.run.device)
    try:
        x = torch.ones(8, device=device, requires_grad=True)
        torch.compile(lambda x: (x.sin() + 1.0).sum())(x).backward()
    except (RuntimeError, ImportError, OSError) as error:  # torch's own wrap what a compiler says
        said = str(error).strip().splitlines()
        raise CompileError(
            f"train.compile = true, but torch.compile fails on run.device = {device!r} "
            f"({said[0] if said else type(error).__name__}); install a C++ compiler (on a GPU: triton), or "
            "set train.compile = false"
        ) from error


def compile_layers(model: PreTrainedModel) -> None:
    """Have each decoder layer compiled where a gradient is wanted of it.

    Raises `CompileError` for a model without a list of layers.
    """
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise CompileError(
            f"train.compile = true: {type(model).__name__} has no list of layers to compile; set it to false"
        )
    for layer in layers:
        _compile(layer)


def _compile(layer: nn.Module) -> None:
    plain = layer.forward
    compiled = torch.compile(plain, dynamic=True)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else plain)(*args, **kwargs)

    layer.forward = forward
