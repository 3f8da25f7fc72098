"""The table `[warmstart]`, which only recipes of the CPU tasks mean something by."""

from typing import Literal

from pydantic import Field

from aipo.config.settings import Section, Settings


class WarmstartSettings(Section):
    """Supervised start of the tiny policy of a CPU task, read by `aipo warmstart` alone."""

    architecture: Literal["qwen3", "llama"] = Field("qwen3", description="Of the tiny policy.")
    hidden_size: int = Field(96, ge=16, description="Width.")
    layers: int = Field(2, ge=1, description="Depth.")
    heads: int = Field(4, ge=1, description="Attention heads.")
    kv_heads: int = Field(2, ge=1, description="Key-value heads; fewer than heads: grouped queries.")
    intermediate_size: int = Field(256, ge=16, description="Width of the feed-forward layers.")
    steps: int = Field(900, ge=1, description="Supervised updates.")
    sequences_per_step: int = Field(128, ge=1, description="Traces of an update.")
    learning_rate: float = Field(3e-3, gt=0, description="Of AdamW, warmed up and decayed.")


class CpuSettings(Settings):
    """The settings of a run, and of the start that it begins from."""

    warmstart: WarmstartSettings = WarmstartSettings()
