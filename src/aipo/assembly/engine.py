"""What an engine is to whoever puts a run together: how one is made, what for, and how it ends.

The engines by name are in `assembly/engines.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aipo.config.settings import Settings
from aipo.engines.base import Engine
from aipo.training.ranks import ALONE, Ranks


class EngineSetupError(ValueError):
    """The engine of the settings cannot be used; the message names the field and the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyEngine:
    """What samples, and how to end it."""

    engine: Engine
    dtype: str
    """What it computes in, as in `float32`."""
    close: Callable[[], None]
    """Ends a server that was started; may be called twice."""
    said: str = ""
    """More of it for whoever asks, such as how many servers there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """What an engine is made for: it samples from the weights of `model`."""

    settings: Settings
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    log_folder: Path | None
    """For a started server's log; none: a temporary one."""
    ranks: Ranks = ALONE
    """The processes that sample; each makes an engine of its own, all at the same time."""

    @property
    def capacity(self) -> int:
        """Tokens of the longest prompt with its response."""
        return self.settings.rollout.max_prompt_tokens + self.settings.rollout.max_response_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """An engine by name: how one is made, and where it computes."""

    make: Callable[[EngineRequest], Engine | PolicyEngine]
    """What is only an engine computes as the model does and needs no end."""
    in_process: bool = False
    """Whether it samples in the trainer's process, from the trainer's weights, computing as the trainer does:
    each of several ranks then samples its share, and its cache is part of the process's memory."""
    shared: bool = False
    """Whether several ranks can sample from it although it is not in their processes: `make` is then called
    on each, and makes a `SharedSink`, whose weights rank 0 alone loads."""

    @property
    def on_several_ranks(self) -> bool:
        """Whether each of several ranks can sample its share."""
        return self.in_process or self.shared
