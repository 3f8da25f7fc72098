"""A cluster for verl: how many GPUs, and how a run is laid out on them.

What is here changes where and how fast, never the objective: a recipe says what is learnt, and runs on any
cluster.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from aipo.config.layers import load_layers
from aipo.config.problems import Section


class ClusterSettings(Section):
    """Where verl runs."""

    nodes: int = Field(1, ge=1, description="Nodes of trainer and policy servers, which share GPUs.")
    gpus_per_node: int = Field(8, ge=1, description="GPUs of each of them.")
    tensor_parallel: int = Field(1, ge=1, description="GPUs of one policy server.")
    sequence_parallel: int = Field(
        1, ge=1, description="GPUs that share one sequence in the update (Ulysses)."
    )
    strategy: Literal["fsdp2", "fsdp"] = Field("fsdp2", description="verl's engine of the update.")
    attention: Literal["sdpa", "flash_attention_2"] = Field(
        "sdpa", description="Of the update; `flash_attention_2` is faster and needs flash-attn, to be built."
    )
    tokens_per_gpu: int = Field(
        32768,
        ge=1,
        description="Tokens of a micro-batch on one GPU; at least the longest sequence / sequence_parallel.",
    )
    server_memory_share: float = Field(
        0.6, gt=0, le=1, description="Share of a GPU's memory for a policy server while it samples."
    )
    sequences_per_server: int = Field(256, ge=1, description="Sequences that decode at the same time.")
    offload: bool = Field(False, description="Keep weights and optimiser in host memory while sampling.")
    agent_processes: int = Field(8, ge=1, description="verl's agent-loop processes, which share the agents.")
    data_folder: Path = Field(Path("data/verl"), description="Where `aipo data export` wrote.")
    validate_every_steps: int = Field(20, ge=0, description="Solo validation; 0: never.")
    loggers: tuple[str, ...] = Field(("console",), description="verl's loggers, such as wandb.")

    @property
    def gpus(self) -> int:
        """All GPUs of the trainer."""
        return self.nodes * self.gpus_per_node


def load_cluster(recipe: Path | None, overrides: Sequence[str] = ()) -> ClusterSettings:
    """Return a cluster's settings. Raises `SettingsError` that lists every problem of the load."""
    return load_layers(ClusterSettings, recipe, overrides)
