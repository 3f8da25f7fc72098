"""What a GPU holds: the trainer's shard while it updates, the engine's cache while it samples.

What does not fit is an error that names the amount and the number of GPUs that would do.
"""

from dataclasses import asdict, dataclass, replace

from aipo.planning.hardware import Cluster, Efficiency
from aipo.planning.model import BYTES_BF16, ModelShape
from aipo.planning.workload import Workload

BYTES_FP32 = 4
WEIGHT_BYTES, GRADIENT_BYTES, ADAM_BYTES = BYTES_FP32, BYTES_FP32, 2 * BYTES_FP32
"""float32 master weights, their gradients, and the two moments of AdamW: 16 bytes a parameter."""
LAYER_BYTES = 34
"""Activations of a layer, in bytes per token and hidden unit, with an attention that stores no scores
(arXiv 2205.05198, equation 2 without its last term)."""
LOGIT_BYTES = 2 * BYTES_FP32
"""A float32 logit and its gradient."""
LOGITS_AT_ONCE = 2**25
"""As `training/log_probs.py`, where logits are computed a chunk at a time."""
RESERVED_BYTES = 2e9
"""CUDA context, NCCL's buffers, the engine's graphs."""
PREFETCHED_LAYERS = 2
ROOMY_ROLLOUTS = 8
"""As many of the longest rollouts should fit a replica before tensor parallelism is worth its price."""
MOST_GPUS = 4096
_SAVERS = {
    "--checkpointing": "gradient_checkpointing",
    "--chunked-logits": "chunked_logits",
    "--offload": "offload",
}


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one GPU."""

    weights: float
    gradients: float
    optimiser: float
    gathered: float
    """Layers that are whole for as long as they are computed."""
    activations: float
    logits: float
    reserved: float
    rollout_resident: float
    """Of the trainer, while the policy samples."""
    rollout_weights: float
    rollout_cache: float
    usable: float

    @property
    def update(self) -> float:
        """While the policy is updated."""
        state = self.weights + self.gradients + self.optimiser
        return state + self.gathered + self.activations + self.logits + self.reserved

    def as_dict(self) -> dict[str, float]:
        """Return all of it, the sum of the update too."""
        return asdict(self) | {"update": self.update}


def memory_of(
    model: ModelShape, cluster: Cluster, workload: Workload, training: Training, efficiency: Efficiency
) -> tuple[Memory, int]:
    """Return what a GPU holds, and the tensor parallelism of a replica. Raises `ValueError`, with the number
    of GPUs that are needed, where it does not fit."""
    split = training.tensor_parallel
    if split and not _splits(model, cluster, split):
        raise ValueError(
            f"--tensor-parallel {split} must divide {cluster.gpus} GPUs and {model.heads} attention heads, "
            f"and be at most {cluster.per_node}, the GPUs of a node"
        )
    found = _try(model, cluster, workload, training, efficiency)
    if not isinstance(found, str):
        return found
    fix = _fix(model, cluster, workload, training, efficiency)
    raise ValueError(f"{model.name} on {cluster.gpus} x {cluster.gpu.name} does not fit: {found}; {fix}")


def _splits(model: ModelShape, cluster: Cluster, split: int) -> bool:
    return cluster.gpus % split == 0 and model.heads % split == 0 and split <= cluster.per_node


def _fix(
    model: ModelShape, cluster: Cluster, workload: Workload, training: Training, efficiency: Efficiency
) -> str:
    """Say what would help, after having tried it: more GPUs, or the options that save memory."""
    for gpus in (2**n for n in range(MOST_GPUS.bit_length())):
        larger = replace(cluster, gpus=gpus)
        if gpus > cluster.gpus and not isinstance(_try(model, larger, workload, training, efficiency), str):
            return f"at least {gpus} GPUs are needed (--gpus {gpus})"
    options = []
    for option, field in _SAVERS.items():
        if not getattr(training, field):
            options.append(option)
            training = replace(training, **{field: True})
            if not isinstance(_try(model, cluster, workload, training, efficiency), str):
                return f"no number of GPUs helps, but {' and '.join(options)} would"
    return (
        "no number of GPUs helps: lower --microbatch-tokens or --max-response-tokens, or leave out "
        "--shard-gpus and --tensor-parallel"
    )


def _try(
    model: ModelShape, cluster: Cluster, workload: Workload, training: Training, efficiency: Efficiency
) -> tuple[Memory, int] | str:
    """Return the memory and the tensor parallelism, or what is in the way."""
    usable = cluster.gpu.memory_bytes * efficiency.usable_memory
    memory = trainer_memory(model, cluster, workload, training, usable)
    if memory.update > usable:
        return f"the update needs {memory.update / 1e9:.0f} GB a GPU of {usable / 1e9:.0f} usable"
    best: tuple[Memory, int] | None = None
    for split in [training.tensor_parallel] if training.tensor_parallel else [1, 2, 4, 8]:
        weights = BYTES_BF16 * model.parameters / split
        cache = usable - memory.rollout_resident - weights - RESERVED_BYTES
        tokens = split * cache / model.kv_bytes_per_token
        if _splits(model, cluster, split) and tokens >= workload.longest:
            best = replace(memory, rollout_weights=weights, rollout_cache=cache), split
            if tokens >= ROOMY_ROLLOUTS * workload.longest:
                break
    return best or (
        f"beside {memory.rollout_resident / 1e9:.0f} GB of the trainer and the engine's weights, the "
        f"cache has no room for one rollout of {workload.longest} tokens (--offload frees the trainer's)"
    )


def trainer_memory(
    model: ModelShape, cluster: Cluster, workload: Workload, training: Training, usable: float
) -> Memory:
    """Return the trainer's part; the engine's is 0 here."""
    shards = training.shards(cluster)
    tokens = max(training.microbatch_tokens, workload.longest)
    per_token = model.hidden * LAYER_BYTES * (1 if training.gradient_checkpointing else model.layers)
    if training.gradient_checkpointing:
        per_token += BYTES_BF16 * model.hidden * model.layers
    whole = 0.0
    if shards > 1:
        layer = (model.multiplied - model.embedding) / model.layers
        whole = BYTES_BF16 * (PREFETCHED_LAYERS * layer + model.embedding)
    logits = tokens * model.vocabulary
    state = {
        "weights": WEIGHT_BYTES * model.parameters / shards,
        "gradients": GRADIENT_BYTES * model.parameters / shards,
        "optimiser": ADAM_BYTES * model.parameters / shards,
    }
    return Memory(
        **state,
        gathered=whole,
        activations=float(tokens * per_token),
        logits=float(LOGIT_BYTES * (min(logits, LOGITS_AT_ONCE) if training.chunked_logits else logits)),
        reserved=RESERVED_BYTES,
        rollout_resident=0.0 if training.offload else state["weights"] + state["optimiser"],
        rollout_weights=0.0,
        rollout_cache=0.0,
        usable=usable,
    )
