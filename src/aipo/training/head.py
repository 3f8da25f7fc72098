"""From hidden states through the vocabulary's matrix to log-probabilities and entropy, part by part.

The matrix is applied to a few hundred positions at a time; their logits are forgotten, and the backward pass
computes them again (as in "Cut Your Losses", arXiv 2411.09009, and Liger's linear cross entropy, arXiv
2410.10989, which know neither temperature nor entropy). That costs one more product with that matrix. What is
returned is what `log_softmax` of the model's own logits says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from aipo.core.divergence import KLEstimator, entropy_of


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
class States:
    """Hidden states (n, size) and the matrix that makes logits of them."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    def computed_in(self, precision: torch.dtype) -> "States":
        """Return them in a precision."""
        return States(*_as(precision, self.hidden, self.weight, self.bias))

    def logits(self, head: Head) -> Tensor:
        """Return the logits (n, vocabulary)."""
        return head.logits(self.hidden, self.weight, self.bias)

    def split(self, chunk: int) -> "list[States]":
        """Return them `chunk` positions at a time."""
        return [States(hidden, self.weight, self.bias) for hidden in self.hidden.split(chunk)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How the head is applied, and what is estimated of the distance to a reference."""

    head: Head
    temperature: float
    chunk: int
    kl: KLEstimator | None = None
    reference: States | Tensor | None = None
    """For an estimator over the vocabulary, the reference at the same positions: its hidden states, or its
    logits where those are held whole."""
    without: tuple[int, ...] = ()
    """Tokens to take away: the log of what probability the others have is returned last."""


class ChunkedLogProbs(torch.autograd.Function):
    """Hidden states (n, size), head and targets (n,) to log p and entropy (n,), part by part.

    With `plan.kl`, an estimator over the vocabulary, also to its estimate (n,); with `plan.without`, last, to
    the log of the probability that all other tokens have (n,).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, plan: Plan
    ) -> tuple[Tensor, ...]:
        """Compute them without keeping logits."""
        found: list[list[Tensor]] = []
        ctx.precision = product_precision(hidden, weight)
        states = States(hidden, weight, bias).computed_in(ctx.precision)
        there = _parts_of_reference(plan, ctx.precision, len(targets))
        for part, far, chosen in zip(states.split(plan.chunk), there, targets.split(plan.chunk), strict=True):
            of_all = torch.log_softmax(_scores(plan, part), dim=-1)
            log_p = of_all.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
            found.append([log_p, *_of_distribution(plan, of_all, far)])
            del of_all  # or it is still there when the next one is made
        ctx.plan = plan
        ctx.save_for_backward(states.hidden, states.weight, states.bias, targets)
        ctx.set_materialize_grads(False)
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        """Compute the logits of each part again."""
        hidden, weight, bias, targets = ctx.saved_tensors
        plan: Plan = ctx.plan
        dtype = next(given.dtype for given in gradients if given is not None)
        wanted_hidden, wanted_weight, wanted_bias = ctx.needs_input_grad[:3]
        of_hidden = torch.empty_like(hidden) if wanted_hidden else None
        of_weight = torch.zeros_like(weight, dtype=dtype) if wanted_weight else None
        of_bias = torch.zeros_like(bias, dtype=dtype) if wanted_bias else None
        there = _parts_of_reference(plan, ctx.precision, len(targets))
        start = 0
        for far, chosen in zip(there, targets.split(plan.chunk), strict=True):
            part = slice(start, start + len(chosen))
            states = States(hidden[part], weight, bias)
            given = [None if of_all is None else of_all[part] for of_all in gradients]
            product = _product_gradient(plan, states, given, chosen, far)
            if of_bias is not None:
                of_bias += product.sum(0)
            product = product.to(hidden.dtype)
            if of_hidden is not None:
                torch.mm(product, weight, out=of_hidden[part])
            if of_weight is not None and of_weight.dtype == hidden.dtype:
                of_weight.addmm_(product.t(), states.hidden)
            elif of_weight is not None:
                of_weight += product.t() @ states.hidden
            start += len(chosen)
            del product
        return (
            of_hidden,
            of_weight.to(weight.dtype) if of_weight is not None else None,
            of_bias.to(bias.dtype) if of_bias is not None else None,
            None,
            None,
        )


def _parts_of_reference(plan: Plan, precision: torch.dtype, positions: int) -> Sequence[States | None]:
    if not isinstance(plan.reference, States):
        return [None] * -(-positions // plan.chunk)
    return plan.reference.computed_in(precision).split(plan.chunk)


def _of_distribution(plan: Plan, log_p: Tensor, there: States | None) -> list[Tensor]:
    """Return the entropy (n,), and where a reference is given the divergence from it, of (n, vocabulary)."""
    found = [entropy_of(log_p)]
    if plan.kl is not None and there is not None:
        with torch.no_grad():
            log_q = torch.log_softmax(_scores(plan, there), dim=-1)
        found.append(plan.kl.term(log_p, log_q))
    return [*found, *_left_over(plan, log_p)]


def _left_over(plan: Plan, log_p: Tensor) -> list[Tensor]:
    """Return the log of what is left without some tokens, summed over the others: 1 - p would round to 0."""
    if not plan.without:
        return []
    taken = torch.tensor(plan.without, device=log_p.device)
    return [log_p.index_fill(-1, taken, -torch.inf).logsumexp(-1)]


def _scores(plan: Plan, states: States) -> Tensor:
    """Return logits over temperature, in float32 or better, as new memory."""
    return at_least_float32(states.logits(plan.head)).div_(plan.temperature)


def _product_gradient(
    plan: Plan, states: States, given: Sequence[Tensor | None], chosen: Tensor, there: States | None
) -> Tensor:
    """Return the gradient of hidden @ weight.T + bias, (n, vocabulary), from those of what was returned."""
    scores = _scores(plan, states)
    of_log_p, *others = given
    if of_log_p is None:
        gradient = torch.zeros_like(scores)
    else:
        gradient = torch.log_softmax(scores, dim=-1).exp_().mul_(-of_log_p.unsqueeze(-1))
        gradient.scatter_add_(-1, chosen.unsqueeze(-1), of_log_p.unsqueeze(-1))
    if any(of_other is not None for of_other in others):
        with torch.enable_grad():
            leaf = scores.detach().requires_grad_()
            found = _of_distribution(plan, torch.log_softmax(leaf, dim=-1), there)
        pairs = [(value, of_it) for value, of_it in zip(found, others, strict=True) if of_it is not None]
        gradient += torch.autograd.grad([v for v, _ in pairs], leaf, [g for _, g in pairs])[0]
    gradient.div_(plan.temperature)
    return plan.head.backward_(gradient, scores.mul_(plan.temperature))


def of_logits(logits: Tensor, targets: Tensor, plan: Plan) -> tuple[Tensor, ...]:
    """Return what `ChunkedLogProbs` does, (...) each, of logits (..., vocabulary) that are held whole."""
    of_all = _log_softmax(logits, plan)
    found = [of_all.gather(-1, targets.unsqueeze(-1)).squeeze(-1), entropy_of(of_all)]
    if plan.kl is not None:
        assert isinstance(plan.reference, Tensor)
        found.append(plan.kl.term(of_all, _log_softmax(plan.reference, plan)))
    return *found, *_left_over(plan, of_all)


def _log_softmax(logits: Tensor, plan: Plan) -> Tensor:
    logits = at_least_float32(logits)
    return torch.log_softmax(logits if plan.temperature == 1 else logits / plan.temperature, dim=-1)


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
