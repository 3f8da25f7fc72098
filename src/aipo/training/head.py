"""From hidden states through the vocabulary's matrix to log-probabilities and entropy, part by part.

The matrix is applied to a few hundred positions at a time; their logits are forgotten, and the backward pass
computes them again (as in "Cut Your Losses", arXiv 2411.09009, and Liger's linear cross entropy, arXiv
2410.10989, which know neither temperature nor entropy). That costs one more product with that matrix. What is
returned is what `log_softmax` of the model's own logits says.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Head:
    """What a model makes of the product with its vocabulary's matrix before it calls that logits."""

    scale: float = 1.0
    """Granite divides by `logits_scaling`; Cohere and Falcon-H1 multiply."""
    softcap: float = 0.0
    """Gemma 2 and later: c tanh(x / c); 0: none."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Head | None":
        """Return the model's; None if it is no plain linear layer."""
        layer = model.get_output_embeddings()
        if type(layer) is not nn.Linear:
            return None
        config: Any = model.config.get_text_config(decoder=True)
        scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
        scale /= getattr(config, "logits_scaling", None) or 1.0
        return cls(scale, getattr(config, "final_logit_softcapping", None) or 0.0)

    def logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return logits (n, vocabulary) in the model's precision, as the model's own forward rounds them."""
        logits = linear(hidden, weight, bias)
        if self.scale != 1.0:
            logits = logits.mul_(self.scale)
        if self.softcap:
            logits = logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def backward_(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Turn, in place, the gradient of the `logits` into that of the product; `logits` are spent."""
        if self.softcap:
            gradient.mul_(logits.div_(self.softcap).square_().neg_().add_(1.0))
        return gradient.mul_(self.scale) if self.scale != 1.0 else gradient


@dataclass(frozen=True, slots=True)
class Plan:
    """How the head is applied."""

    head: Head
    temperature: float
    chunk: int


class ChunkedLogProbs(torch.autograd.Function):
    """Hidden states (n, size), head and targets (n,) to log p and entropy (n,), part by part."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, plan: Plan
    ) -> tuple[Tensor, Tensor]:
        """Compute them without keeping logits."""
        log_p, entropy = [], []
        ctx.precision = product_precision(hidden, weight)
        hidden, weight, bias = _as(ctx.precision, hidden, weight, bias)
        for states, chosen in zip(hidden.split(plan.chunk), targets.split(plan.chunk), strict=True):
            of_all = torch.log_softmax(_scores(plan, states, weight, bias), dim=-1)
            log_p.append(of_all.gather(-1, chosen.unsqueeze(-1)).squeeze(-1))
            entropy.append(-of_all.exp().mul_(of_all).sum(-1))
            del of_all  # or it is still there when the next one is made
        ctx.plan = plan
        ctx.save_for_backward(hidden, weight, bias, targets)
        result = torch.cat(log_p), torch.cat(entropy)
        ctx.mark_non_differentiable(result[1])
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        """Compute the logits of each part again."""
        hidden, weight, bias, targets = ctx.saved_tensors
        plan: Plan = ctx.plan
        wanted_hidden, wanted_weight, wanted_bias = ctx.needs_input_grad[:3]
        of_hidden = torch.empty_like(hidden) if wanted_hidden else None
        of_weight = torch.zeros_like(weight, dtype=gradients[0].dtype) if wanted_weight else None
        of_bias = torch.zeros_like(bias, dtype=gradients[0].dtype) if wanted_bias else None
        start = 0
        for given, chosen in zip(gradients[0].split(plan.chunk), targets.split(plan.chunk), strict=True):
            states = hidden[start : start + len(chosen)]
            product = _product_gradient(plan, (states, weight, bias), given, chosen)
            if of_bias is not None:
                of_bias += product.sum(0)
            product = product.to(hidden.dtype)
            if of_hidden is not None:
                torch.mm(product, weight, out=of_hidden[start : start + len(chosen)])
            if of_weight is not None and of_weight.dtype == hidden.dtype:
                of_weight.addmm_(product.t(), states)
            elif of_weight is not None:
                of_weight += product.t() @ states
            start += len(chosen)
            del product
        return (
            of_hidden,
            of_weight.to(weight.dtype) if of_weight is not None else None,
            of_bias.to(bias.dtype) if of_bias is not None else None,
            None,
            None,
        )


def _scores(plan: Plan, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return logits over temperature, in float32 or better, as new memory."""
    logits = plan.head.logits(states, weight, bias)
    return at_least_float32(logits).div_(plan.temperature)


def _product_gradient(
    plan: Plan, head: tuple[Tensor, Tensor, Tensor | None], given: Tensor, chosen: Tensor
) -> Tensor:
    """Return d(sum of given * log p) / d(hidden @ weight.T + bias), (n, vocabulary)."""
    scores = _scores(plan, *head)
    gradient = torch.log_softmax(scores, dim=-1).exp_().mul_(-given.unsqueeze(-1))
    gradient.scatter_add_(-1, chosen.unsqueeze(-1), given.unsqueeze(-1))
    gradient.div_(plan.temperature)
    return plan.head.backward_(gradient, scores.mul_(plan.temperature))


def chosen_of(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return log p of the targets (n,) and the entropy, of logits (n, vocabulary)."""
    of_all = torch.log_softmax(at_least_float32(logits) / temperature, dim=-1)
    with torch.no_grad():
        entropy = -of_all.exp().mul_(of_all).sum(-1)
    return of_all.gather(-1, targets.unsqueeze(-1)).squeeze(-1), entropy


def at_least_float32(values: Tensor) -> Tensor:
    """Return the values in float32, or in float64 if they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def product_precision(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Return what the model's own product would be computed in, under autocast too."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(hidden.dtype, weight.dtype)


def _as(precision: torch.dtype, *tensors: Tensor | None) -> tuple[Any, ...]:
    return tuple(None if tensor is None else tensor.to(precision) for tensor in tensors)
