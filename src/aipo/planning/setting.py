"""All that a plan depends on: model, machine, rollouts, agents' servers and the layout of the update."""

from dataclasses import dataclass, field

from aipo.planning.hardware import H100, Cluster, Efficiency
from aipo.planning.model import PRESETS, ModelShape
from aipo.planning.workload import Consultation, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How the update is laid out."""

    minibatches: int = 4
    """Optimiser steps of a batch."""
    microbatch_tokens: int = 16384
    gradient_checkpointing: bool = True
    recompute_log_probs: bool = True
    """One more forward pass for the old log-probabilities (verl's default)."""
    chunked_logits: bool = False
    """Logits are held a chunk at a time, as our own trainer does."""
    offload: bool = False
    """The trainer's state is in the host's memory while the policy samples."""
    shard_gpus: int = 0
    """GPUs that share one copy of the state; 0: all of them (FSDP), 8: a node each (hybrid sharding)."""
    tensor_parallel: int = 0
    """GPUs of a rollout replica; 0: chosen."""

    def shards(self, cluster: Cluster) -> int:
        """Return among how many GPUs the state is divided."""
        return min(self.shard_gpus or cluster.gpus, cluster.gpus)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentService:
    """Equal servers behind one queue."""

    servers: int | None = 2
    """None: as many as anybody could want, no queue."""
    concurrency: int = 64
    """Requests that a server answers at the same time."""
    tokens_s: float = 3000.0
    """Of a server with all seats taken, all its answers together; 0: latency is all there is."""
    gpus_per_server: int = 1
    instant: bool = False
    """Answers at once: what rollouts would take without waiting."""

    def __post_init__(self) -> None:
        if (self.servers is not None and self.servers < 1) or self.concurrency < 1 or self.tokens_s < 0:
            raise ValueError(
                f"--agent-servers {self.servers}, --agent-concurrency {self.concurrency}, --agent-tokens-s "
                f"{self.tokens_s:g}: at least one server with one seat, and no negative throughput"
            )

    @property
    def seats(self) -> int | None:
        """Requests that all servers answer at the same time; None: without limit."""
        return None if self.servers is None else self.servers * self.concurrency

    def service_s(self, consultation: Consultation) -> float:
        """Return the time that a request holds a seat.

        A seat writes at 1/concurrency of the server's throughput even when others are free: pessimistic for
        a server that is not full.
        """
        if self.instant:
            return 0.0
        written = consultation.feedback_tokens * self.concurrency / self.tokens_s if self.tokens_s else 0.0
        return consultation.latency_s + written


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """All that a plan depends on."""

    model: ModelShape = PRESETS["qwen2.5-7b"]
    cluster: Cluster = field(default_factory=lambda: Cluster(H100, 8))
    workload: Workload = field(default_factory=Workload)
    service: AgentService = field(default_factory=AgentService)
    training: Training = field(default_factory=Training)
    efficiency: Efficiency = field(default_factory=Efficiency)
    max_sequences: int = 256
    servers: int | None = None
    """Policy servers on GPUs of their own, each of which is a replica; None: the trainer's GPUs sample."""
    steps: int = 300
    seed: int = 0
