"""Log-probability and entropy of each token of a batch, never holding all logits where they are many.

What is returned is what `log_softmax` of the model's own logits says, whichever way it was computed.

How the vocabulary's matrix is applied to a part of the positions at a time: `training/head.py`.

Simplification: the head must be a plain linear layer, and what follows it one of the scalings that
`Head.of` reads from the model's settings. Of any other model the logits are held whole; `PolicyForward.check`
tells which it is.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from aipo.core.divergence import KLEstimator
from aipo.engines.precision import compute_dtype, computing
from aipo.engines.slots import ATTENTION_LAYERS
from aipo.engines.vocabulary import rows_of
from aipo.training.head import (
    ChunkedLogProbs,
    Head,
    Plan,
    States,
    of_logits,
    product_precision,
)
from aipo.training.lora import has_lora, without_adapters
from aipo.training.packed_attention import attend_by_blocks, with_blocks
from aipo.training.prefixes import PackedRows, packed_rows, prefix_tree

LOGITS_AT_ONCE = 2**25
"""Logits at a time where nobody says otherwise: 128 MiB in float32, 220 positions of Qwen's 151,936."""
CHECKED_TOKENS = 16
MAX_CHECK_ERROR = {torch.bfloat16: 0.05, torch.float16: 0.02}
"""Mean distance of log p between the two ways that rounding explains; 1e-4 in float32 and better."""


def logit_chunk(chunk_tokens: int | None, positions: int, vocabulary: int) -> int:
    """Return how many positions have their logits in memory at a time under `train.logit_chunk_tokens`.

    0: all at once.
    """
    chunk = chunk_tokens
    if chunk is None:
        chunk = 0 if positions * vocabulary <= LOGITS_AT_ONCE else max(1, LOGITS_AT_ONCE // vocabulary)
    return chunk if chunk < positions else 0


def token_log_probs(
    model: nn.Module,
    ids: Tensor,
    temperature: float,
    first: int = 1,
    kl: KLEstimator | None = None,
    without: Sequence[int] = (),
) -> tuple[Tensor, ...]:
    """Return log p of each token given what stands before it, and the entropy there; (B, T) float32 each.

    With `kl`, thirdly what it estimates of the distance from the reference policy, which has no gradient;
    with `without`, last the log of the probability that all tokens but these have together.

    `ids` is (B, T), right-padded: behind a causal mask padding needs no attention mask. Positions before
    `first`, at least 1, are 0, and their logits are not computed: nobody reads those of a prompt.
    `model` is a `PolicyForward`, however wrapped, or a transformers model. One in float64 answers in that.
    """
    forward = PolicyForward(model) if isinstance(model, PreTrainedModel) else model
    found: tuple[Tensor, ...] = forward(ids, temperature, first, kl=kl, without=without)
    return found


def packed_log_probs(
    model: nn.Module,
    rows: PackedRows,
    temperature: float,
    kl: KLEstimator | None = None,
    without: Sequence[int] = (),
) -> tuple[Tensor, ...]:
    """Return what `token_log_probs` says of the batch that the rows were packed from; (B, T) each."""
    forward = PolicyForward(model) if isinstance(model, PreTrainedModel) else model
    found = forward(rows.ids, temperature, packed=rows, kl=kl, without=without)
    return tuple(map(rows.spread, found))


def attention_masks(model: PreTrainedModel, rows: PackedRows) -> Tensor | dict[str, Tensor]:
    """Return the mask that the model's layers take, or one for each kind of layer."""
    config: Any = model.config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None) or 0
    kinds = set(getattr(config, "layer_types", None) or ())
    additive = config._attn_implementation == "eager"

    def mask(window: int) -> Tensor:
        allowed = rows.allowed(window)
        if not additive:
            return allowed if window else with_blocks(model, rows, allowed)
        return torch.zeros_like(allowed, dtype=model.dtype).masked_fill_(
            ~allowed, torch.finfo(model.dtype).min
        )

    if len(kinds) > 1 or "sliding_attention" in kinds:
        return {kind: mask(window if kind == "sliding_attention" else 0) for kind in kinds}
    return mask(0 if kinds else window)


class PolicyForward(nn.Module):
    """The policy as the update calls it: what is wrapped for several ranks, so that hooks see each call.

    Parameters are the policy's own, under `policy.`, and those of a frozen reference, under `reference.`.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        chunk_tokens: int | None = None,
        gradient_checkpointing: bool = False,
        reference: PreTrainedModel | None = None,
    ) -> None:
        """`chunk_tokens` positions have their logits in memory at a time; 0: all, None: by their number.

        With `gradient_checkpointing` a layer's activations are computed again in the backward pass. Dropout
        stays as the policy's mode has it. Raises `ValueError` for a model that cannot do so.

        A policy with adapters is its own `reference`, without them; any other needs one for KL.
        """
        super().__init__()
        self.policy = policy
        self.reference = PolicyForward(reference, chunk_tokens) if reference is not None else None
        self._chunk_tokens = chunk_tokens
        size = int(policy.config.get_text_config(decoder=True).vocab_size)
        self._vocabulary_size = int(getattr(policy.get_output_embeddings(), "known_ids", size))
        self._head: Head | None = None
        self._checked = False
        self._packs: bool | None = None
        self._layers = _checkpointing_layers(policy) if gradient_checkpointing else []

    def forward(
        self,
        ids: Tensor,
        temperature: float,
        first: int = 1,
        packed: PackedRows | None = None,
        kl: KLEstimator | None = None,
        without: Sequence[int] = (),
    ) -> tuple[Tensor, ...]:
        """See `token_log_probs`, and `packed_log_probs`, whose rows take the place of `ids`.

        Raises `ValueError` for `kl` where there is no reference.
        """
        wanted = _Wanted(ids, first, packed)
        chunk = self.chunk_of(wanted.targets.numel())
        by_states = (chunk > 0 or packed is not None) and self._usable_head(ids)
        number = wanted.targets.numel()
        head, without = self._head or Head(), tuple(without)
        plan = Plan(head=head, temperature=temperature, chunk=chunk or number, without=without)
        if kl is not None and kl.over_vocabulary:
            with self._as_reference() as reference, computing(self.policy):
                there = reference._states(wanted) if by_states else reference._logits(wanted)
            plan = replace(plan, kl=kl, reference=there)
        elif kl is not None:
            with self._as_reference() as reference:
                log_q = reference.forward(ids, temperature, first, packed)[0]
        # A context of its own: autocast keeps what it cast, and what it cast without a gradient has none.
        with _checkpointing(self._layers), computing(self.policy):
            found = self._from_states(wanted, plan, chunk) if by_states else self._from_logits(wanted, plan)
        if kl is None or kl.over_vocabulary:
            return found
        log_p, entropy, *left_over = found
        return log_p, entropy, kl.term(log_p, log_q), *left_over

    @contextmanager
    def _as_reference(self) -> Iterator["PolicyForward"]:
        """Within the block what is yielded is the reference policy, without gradient."""
        with torch.no_grad():
            if self.reference is not None:
                self.reference._head, self.reference._checked = self._head, self._checked
                yield self.reference
            elif has_lora(self.policy):
                with without_adapters(self.policy):
                    yield self
            else:
                raise ValueError(
                    "algorithm.kl_weight: this policy has neither adapters nor a frozen copy of where it "
                    "started, so there is no reference; set it to 0, or pass `reference` to PolicyForward"
                )

    def can_pack(self) -> bool:
        """Compare packed log-probabilities with padded ones on two short sequences, once; say if they agree.

        Rows of a model that ignores its mask, or whose layers keep a recurrent state, are padded.
        """
        config: Any = self.policy.config.get_text_config(decoder=True)
        if set(getattr(config, "layer_types", None) or ()) - ATTENTION_LAYERS:
            return False
        if self._packs is None:
            attend_by_blocks(self.policy)
            if self.reference is not None:
                attend_by_blocks(self.reference.policy)
            spread = [i * 7919 % self._vocabulary_size for i in range(CHECKED_TOKENS)]
            half = CHECKED_TOKENS // 2
            pair = [tuple(spread), (*spread[:half], *reversed(spread[half:]))]
            rows = packed_rows([prefix_tree(pair)], [[1, 1]], 0).to(self.policy.device)
            with torch.no_grad():
                expected, _ = self(torch.tensor(pair, device=self.policy.device), 1.0)
                found = rows.spread(self(rows.ids, 1.0, packed=rows)[0])
            most = MAX_CHECK_ERROR.get(compute_dtype(self.policy), 1e-4)
            self._packs = float((expected - found).abs().mean()) <= most
        return self._packs

    def chunk_of(self, positions: int) -> int:
        """Return how many of these positions are computed at a time; 0: all at once."""
        return logit_chunk(self._chunk_tokens, positions, self._vocabulary_size)

    def check(self, ids: Tensor | None = None) -> str:
        """Compare both ways on a few tokens, once; return what must be said if the logits will be held whole.

        Degenerate case: without `ids`, tokens spread over the vocabulary.
        """
        if self._checked:
            return ""
        if ids is None:
            spread = torch.arange(CHECKED_TOKENS, device=self.policy.device) * 7919
            ids = spread.unsqueeze(0) % self._vocabulary_size
        ids, self._checked = ids[:1, :CHECKED_TOKENS], True
        name = type(self.policy).__name__
        head = Head.of(self.policy)
        if head is None:
            return f"{name}: its head is no plain linear layer; the logits of a micro-batch are held whole"
        self._head = head
        with torch.no_grad(), computing(self.policy):
            wanted, chunk = _Wanted(ids, 1, None), CHECKED_TOKENS // 4
            plan = Plan(head=head, temperature=1.0, chunk=chunk)
            expected = self._from_logits(wanted, plan)
            found = self._from_states(wanted, plan, chunk)
            weight = self.policy.get_output_embeddings().weight
            precision = product_precision(weight, weight)
        abs_diff = max(float((a - b).abs().mean()) for a, b in zip(expected, found, strict=True))
        if abs_diff <= MAX_CHECK_ERROR.get(precision, 1e-4):
            return ""
        self._head = None
        return (
            f"{name}: log-probabilities computed in chunks are {abs_diff:.2g} from those of its own logits; "
            "the logits of a micro-batch are held whole. Lower train.microbatch_tokens if memory runs out"
        )

    def _usable_head(self, ids: Tensor) -> bool:
        self.check(ids)
        return self._head is not None

    def _states(self, wanted: "_Wanted") -> States:
        """Return the hidden states that predict the wanted tokens, (n, size)."""
        hidden = self.policy.get_decoder()(**wanted.inputs(self.policy)).last_hidden_state
        if wanted.packed is None:
            hidden = hidden[:, wanted.first - 1 : -1].reshape(-1, hidden.shape[-1])
        else:
            hidden = hidden.reshape(-1, hidden.shape[-1])[wanted.packed.predictors]
        return States(hidden, *rows_of(self.policy.get_output_embeddings()))

    def _logits(self, wanted: "_Wanted") -> Tensor:
        """Return the model's own logits: (B, T - first + 1, vocabulary), of packed rows (n, vocabulary)."""
        if wanted.packed is not None:
            logits = self.policy(**wanted.inputs(self.policy)).logits
            rows: Tensor = logits.reshape(-1, logits.shape[-1])[wanted.packed.predictors]
            return rows
        # The last position's logits, which predict nothing, stay: to cut them off would copy all the others.
        kept = wanted.ids.shape[1] - wanted.first + 1
        output = self.policy(**wanted.inputs(self.policy), logits_to_keep=kept)
        padded: Tensor = output.logits[:, -kept:]  # a few old architectures return all
        return padded

    def _from_logits(self, wanted: "_Wanted", plan: Plan) -> tuple[Tensor, ...]:
        logits = self._logits(wanted)
        following = wanted.targets if wanted.packed is not None else pad(wanted.targets, (0, 1))
        found = of_logits(logits, following, plan)
        if wanted.packed is not None:
            return found
        return tuple(pad(values[:, :-1], (wanted.first, 0)) for values in found)

    def _from_states(self, wanted: "_Wanted", plan: Plan, chunk: int) -> tuple[Tensor, ...]:
        states, targets = self._states(wanted), wanted.targets
        if not chunk and plan.head == Head():
            there = plan.reference.logits(Head()) if isinstance(plan.reference, States) else None
            return of_logits(states.logits(Head()), targets, replace(plan, reference=there))
        found = ChunkedLogProbs.apply(states.hidden, states.weight, states.bias, targets.reshape(-1), plan)
        if wanted.packed is not None:
            return tuple(found)
        return tuple(pad(values.view(targets.shape), (wanted.first, 0)) for values in found)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the model reads, and the tokens whose log-probabilities are wanted."""

    ids: Tensor
    first: int
    packed: PackedRows | None

    @property
    def targets(self) -> Tensor:
        """Those tokens: (n,) of packed rows, else (B, T - first)."""
        return self.ids[:, self.first :] if self.packed is None else self.packed.targets

    def inputs(self, policy: PreTrainedModel) -> dict[str, Any]:
        """Return the arguments of a forward pass."""
        if self.packed is None:
            return {"input_ids": self.ids, "use_cache": False}
        return {
            "input_ids": self.packed.ids,
            "position_ids": self.packed.positions,
            "attention_mask": attention_masks(policy, self.packed),
            "use_cache": False,
        }


def _checkpointing_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Switch gradient checkpointing on; return the layers that it applies to."""
    if not model.supports_gradient_checkpointing:
        raise ValueError(
            f"train.gradient_checkpointing: {type(model).__name__} cannot do so; set it to false and lower "
            "train.microbatch_tokens"
        )
    enable = getattr(model, "activation_checkpointing_enable", None)  # its name from transformers 5.20 on
    if enable is not None:
        enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # Not needed without re-entrance, and it would reach into the engine's forward passes.
    model.disable_input_require_grads()
    return [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]


@contextmanager
def _checkpointing(layers: list[nn.Module]) -> Iterator[None]:
    """Let layers forget their activations: transformers does so in training mode only.

    Their submodules stay in the mode that they are in, so no dropout is switched on; and it ends with the
    forward pass, because a layer in that mode also forgets the key-value cache that the engine hands it.
    """
    modes = [layer.training for layer in layers]
    for layer in layers:
        layer.training = torch.is_grad_enabled()
    try:
        yield
    finally:
        for layer, mode in zip(layers, modes, strict=True):
            layer.training = mode
