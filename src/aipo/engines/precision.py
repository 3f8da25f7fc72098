"""What a policy's forward passes compute in, the same for whoever samples from it and whoever trains it.

A policy in mixed precision has float32 weights, and products in a smaller type by torch's autocast: linear
layers and attention in bfloat16; embedding, norms and the residual stream in float32.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_AUTOCAST = "_aipo_autocast"


def compute_in(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Let the policy compute its products in `dtype` from now on; its weights stay as they are."""
    setattr(model, _AUTOCAST, dtype)


def compute_dtype(model: PreTrainedModel) -> torch.dtype:
    """Return what the policy's products are computed in: the type of its weights, if nothing else is set."""
    dtype: torch.dtype = getattr(model, _AUTOCAST, model.dtype)
    return dtype


def computing(model: PreTrainedModel) -> AbstractContextManager[object]:
    """Return the context that each of the policy's forward passes runs in."""
    dtype = compute_dtype(model)
    return nullcontext() if dtype == model.dtype else torch.autocast(model.device.type, dtype)


class CastWeights:
    """The weights of a policy in mixed precision, cast once for many forward passes instead of once for each.

    A pass gives the bits that autocast gives. Simplification: only weights of linear layers are cast here;
    others, as those of experts that are one tensor, are cast by autocast in each pass.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._cast: dict[str, Tensor] = {}
        self._made_of: list[tuple[int, int]] = []

    def free(self) -> None:
        """Forget them: the weights are about to change."""
        self._cast, self._made_of = {}, []

    def refresh(self) -> None:
        """Cast the weights, unless they are those that were cast; once for a stretch of passes."""
        dtype = compute_dtype(self._model)
        if dtype == self._model.dtype:
            return
        linear = list(_linear_weights(self._model))
        made_of = [(weight.data_ptr(), weight._version) for _, weight in linear]
        if made_of != self._made_of:
            self.free()  # first, so that there are never two sets of them
            with torch.no_grad():
                self._cast = {name: weight.to(dtype) for name, weight in linear}
            self._made_of = made_of

    def forward(self, **inputs: Any) -> Any:
        """Call the policy. Degenerate case: nothing is cast, it is called as it is."""
        with computing(self._model):
            if not self._cast:
                return self._model(**inputs)
            return torch.func.functional_call(self._model, self._cast, (), inputs, tie_weights=False)


def _linear_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            for kind, parameter in module.named_parameters(recurse=False):
                if parameter.dtype == torch.float32:
                    yield f"{name}.{kind}", parameter
