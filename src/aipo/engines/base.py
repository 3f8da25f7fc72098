"""What an engine is: it continues token ids, and says what it sampled and how likely that was.

Token ids in, token ids out: an engine never re-tokenises, and knows neither agents nor tasks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from aipo.core.types import StopReason


class EngineError(Exception):
    """The engine could not sample; the rollout is lost, the run decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn. Training wants no truncation (docs/method.md#defaults-of-a-real-run)."""

    temperature: float = 1.0
    """0 means greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 means no limit."""
    exact_log_probs: bool = True
    """Log-probabilities will be trained on: they must be those of the tempered distribution before truncation
    and bans. An evaluation, which reads none, says False; an engine may then report any finite ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """Continue `prefix_ids` until an end token, a stop string or the limit."""

    session: str
    """One rollout. A later request of the same session extends the earlier one's ids."""
    prefix_ids: Sequence[int]
    """Everything so far: prompt, sampled tokens, inserted tokens."""
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    """Generation ends with the token that completes one of these in the newly sampled text."""
    banned_sequences: tuple[tuple[int, ...], ...] = ()
    """Id sequences whose last token cannot be sampled after the others."""
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    """One seed per rollout; draws depend on it and on the token's position only, never on the batch."""
    group: str = ""
    """Requests of a group begin alike, and are best sampled where that is cached; '': the session's own."""


def taken_away(banned_sequences: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return the banned tokens that can never come: sampler and trainer speak of what is left without them.

    The last token of a longer sequence is banned where the others stand before it, and nowhere taken away.

    >>> taken_away([(5,), (6, 7)])
    (5,)
    """
    return tuple(sequence[0] for sequence in banned_sequences if len(sequence) == 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """Newly sampled tokens; `log_probs` are the sampler's, one for each id: before truncation, without the
    tokens that are `taken_away`."""

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    stop: StopReason
    weights_version: int | None = None
    """The updates behind the weights that sampled, the oldest if they changed midway; None where the engine
    shares the trainer's weights and was not told."""
    versions: tuple[int, ...] = ()
    """The same of each id, where the weights changed midway; else ()."""


class Engine(Protocol):
    """Samples from the policy. Implementations: `engines.transformers`, `engines.vllm`."""

    async def generate(self, request: GenerationRequest) -> Completion:
        """Sample a continuation. Raises `EngineError`."""
        ...

    async def release(self, session: str) -> None:
        """Forget a session's cache; unknown sessions are ignored."""
        ...


@runtime_checkable
class MemoryHolder(Protocol):
    """An engine whose memory can be lent to the update, between the last rollout of a step and the next."""

    def free(self) -> None:
        """Give back what the next rollouts can ask for again."""
        ...


@runtime_checkable
class Pausable(Protocol):
    """An engine that samples from the trainer's own weights, also from one step to the next: it holds still
    while they change, and what was under way goes on with the new ones."""

    def pause(self) -> None:
        """Sample nothing until `resume`, and forget what the weights have computed: it holds no longer."""
        ...

    def resume(self, version: int) -> None:
        """Go on with the weights as they are now; `version` is the number of updates behind them."""
        ...


@runtime_checkable
class WeightSink(Protocol):
    """An engine with weights of its own, to be given the trainer's after each update.

    No request is in flight meanwhile.
    """

    async def load_weights(self, write: Callable[[Path], object], version: int) -> None:
        """Take the weights that `write` puts into a folder, as `save_pretrained` does; `version` names them.

        Every later completion is made with them and says so. Raises `EngineError`; the engine then refuses to
        sample until weights were loaded.
        """
        ...


@runtime_checkable
class AdapterSink(WeightSink, Protocol):
    """A `WeightSink` that may be given the adapters alone, beside the frozen weights that it has."""

    @property
    def takes_adapters(self) -> bool:
        """Whether `load_weights` takes a folder with adapters, as peft saves them, for whole weights."""
        ...


@runtime_checkable
class SharedSink(WeightSink, Protocol):
    """A `WeightSink` that several ranks sample from: one gives it the weights, the others are told of it."""

    @property
    def stamp(self) -> Any:
        """What another rank must know to tell these weights from others; it is sent to that rank."""
        ...

    @property
    def lost(self) -> Sequence[str]:
        """What is to be said of servers that took no weights at the last change, and are not sampled from."""
        ...

    def follow(self, stamp: Any) -> None:
        """Take what another rank has loaded: every later completion is of these weights, or an error."""
        ...
