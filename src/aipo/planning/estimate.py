"""In closed form: what a GPU holds, and what follows the rollouts, the update and the new weights to the
engine.

What does not fit is an error that names the amount and the number of GPUs that would do. A batch costs the
same FLOPs on any number of GPUs; what does not shrink with them is listed separately.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil

from aipo.planning.hardware import exchanged_s, gathered_s, ring_latency_s
from aipo.planning.memory import ADAM_BYTES, BYTES_FP32, DeviceMemory, Footprint, device_memory
from aipo.planning.model import BYTES_BF16
from aipo.planning.setting import Setting
from aipo.planning.workload import Trajectory

LOGIT_BYTES = 2 * BYTES_FP32
"""A float32 logit and its gradient, of verl's update."""
LOGITS_AT_ONCE = 2**25
"""As `training/log_probs.py`, where logits are computed a chunk at a time."""
RESERVED_BYTES = 2e9
"""CUDA context, NCCL's buffers, the engine's graphs."""
ROOMY_ROLLOUTS = 8
"""As many of the longest rollouts should fit a replica before tensor parallelism is worth its price."""
MOST_GPUS = 4096
_SAVERS = {
    "--checkpointing": "gradient_checkpointing",
    "--chunked-logits": "chunked_logits",
    "--offload": "offload",
}
OPTIMISER_TRAFFIC = 2 * (BYTES_FP32 + ADAM_BYTES) + BYTES_FP32
"""Bytes that AdamW reads and writes for each parameter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of one GPU."""

    trainer: DeviceMemory
    reserved: float
    rollout_resident: float
    """Of the trainer, while the policy samples."""
    rollout_weights: float
    rollout_cache: float
    usable: float

    @property
    def update(self) -> float:
        """While the policy is updated."""
        return self.trainer.update + self.reserved

    def as_dict(self) -> dict[str, float]:
        """Return all of it by name, the sum of the update too."""
        own = asdict(self)
        trainer = own.pop("trainer")
        for sampler in ("cache", "drawn_logits"):  # another process samples
            del trainer[sampler]
        return trainer | own | {"update": self.update}


def memory_of(setting: Setting) -> tuple[Memory, int]:
    """Return what a GPU holds, and the tensor parallelism of a replica. Raises `ValueError`, with the number
    of GPUs that are needed, where it does not fit."""
    model, cluster, split = setting.model, setting.cluster, setting.training.tensor_parallel
    if split and not _splits(setting, split):
        raise ValueError(
            f"--tensor-parallel {split} must divide {cluster.gpus} GPUs and {model.heads} attention heads, "
            f"and be at most {cluster.per_node}, the GPUs of a node"
        )
    found = _try(setting)
    if isinstance(found, str):
        where = f"{model.name} on {cluster.gpus} x {cluster.gpu.name}"
        raise ValueError(f"{where} does not fit: {found}; {_fix(setting)}")
    return found


def _splits(setting: Setting, split: int) -> bool:
    cluster = setting.cluster
    fits = cluster.gpus % split == 0 or setting.servers is not None
    return fits and setting.model.heads % split == 0 and split <= cluster.per_node


def _fix(setting: Setting) -> str:
    """Say what would help, after having tried it: more GPUs, or the options that save memory."""
    for gpus in (2**n for n in range(MOST_GPUS.bit_length())):
        larger = replace(setting, cluster=replace(setting.cluster, gpus=gpus))
        if gpus > setting.cluster.gpus and not isinstance(_try(larger), str):
            return f"at least {gpus} GPUs are needed (--gpus {gpus})"
    options = []
    for option, field in _SAVERS.items():
        if not getattr(setting.training, field):
            options.append(option)
            setting = replace(setting, training=replace(setting.training, **{field: True}))
            if not isinstance(_try(setting), str):
                return f"no number of GPUs helps, but {' and '.join(options)} would"
    return (
        "no number of GPUs helps: lower --microbatch-tokens or --max-response-tokens, or leave out "
        "--shard-gpus and --tensor-parallel"
    )


def _try(setting: Setting) -> tuple[Memory, int] | str:
    """Return the memory and the tensor parallelism, or what is in the way."""
    model, longest, asked = setting.model, setting.workload.longest, setting.training.tensor_parallel
    usable = setting.cluster.gpu.memory_bytes * setting.efficiency.usable_memory
    memory = trainer_memory(setting, usable)
    if memory.update > usable:
        return f"the update needs {memory.update / 1e9:.0f} GB a GPU of {usable / 1e9:.0f} usable"
    best: tuple[Memory, int] | None = None
    for split in [asked] if asked else [1, 2, 4, 8]:
        weights = BYTES_BF16 * model.parameters / split
        cache = usable - memory.rollout_resident - weights - RESERVED_BYTES
        tokens = split * cache / model.kv_bytes_per_token
        if _splits(setting, split) and tokens >= longest:
            best = replace(memory, rollout_weights=weights, rollout_cache=cache), split
            if tokens >= ROOMY_ROLLOUTS * longest:
                break
    return best or (
        f"beside {memory.rollout_resident / 1e9:.0f} GB of the trainer and the engine's weights, the "
        f"cache has no room for one rollout of {longest} tokens (--offload frees the trainer's)"
    )


def trainer_memory(setting: Setting, usable: float) -> Memory:
    """Return the trainer's part; the engine's is 0 here."""
    model, training = setting.model, setting.training
    tokens = max(training.microbatch_tokens, setting.workload.longest)
    logits = tokens * model.vocabulary
    held = device_memory(
        Footprint(
            shape=model,
            parameters=model.parameters,
            trained=model.parameters,
            compute_bytes=BYTES_BF16,
            residual_bytes=BYTES_BF16,
            shards=training.shards(setting.cluster),
            tokens=tokens,
            gradient_checkpointing=training.gradient_checkpointing,
            logit_bytes=LOGIT_BYTES,
            logits=min(logits, LOGITS_AT_ONCE) if training.chunked_logits else logits,
        )
    )
    return Memory(
        trainer=held,
        reserved=RESERVED_BYTES,
        rollout_resident=0.0 if training.offload or setting.servers else held.weights + held.optimiser,
        rollout_weights=0.0,
        rollout_cache=0.0,
        usable=usable,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """Seconds of one step's update."""

    compute_s: float
    """Forward and backward passes where every GPU has its share."""
    imbalance_s: float
    """What the longest rollout of a mini-batch takes beyond an even share: a GPU takes it whole."""
    gather_s: float
    """Collective operations that computing does not hide."""
    optimiser_s: float
    old_log_probs_s: float
    """The forward pass before the update, with its own gathering."""

    @property
    def total_s(self) -> float:
        """All of it."""
        rest = self.imbalance_s + self.gather_s + self.optimiser_s + self.old_log_probs_s
        return self.compute_s + rest


def update_of(setting: Setting, trajectories: Sequence[Trajectory]) -> Update:
    """Return the time of an update over `trajectories`, cut into mini-batches in their order.

    FLOPs: three times the forward pass (6 a parameter and token, and attention), four times with gradient
    checkpointing (8). A mini-batch takes its even share on each GPU, but no less than its longest rollout.
    Each micro-batch gathers the weights twice (bfloat16) and scatters gradients once (float32), side by side
    with computing: the longer of the two counts.
    """
    model, training = setting.model, setting.training
    cluster, efficiency = setting.cluster, setting.efficiency
    speed = cluster.gpu.bf16_flops * efficiency.update
    passes = 4 if training.gradient_checkpointing else 3
    shards = training.shards(cluster)
    layers = model.layers
    two_ways = 2 * BYTES_BF16 + BYTES_FP32
    round_s = gathered_s(cluster, two_ways * model.parameters, shards, efficiency)
    round_s += 3 * layers * ring_latency_s(cluster, shards, efficiency)
    forward_round_s = gathered_s(cluster, BYTES_BF16 * model.parameters, shards, efficiency)
    forward_round_s += layers * ring_latency_s(cluster, shards, efficiency)
    copies = ceil(cluster.gpus / shards)
    joined_s = exchanged_s(cluster, BYTES_FP32 * model.parameters / shards, copies, efficiency)
    optimiser = OPTIMISER_TRAFFIC * model.parameters / shards / (cluster.gpu.hbm_bytes_s * efficiency.memory)
    compute = imbalance = gather = old = 0.0
    count = min(training.minibatches, len(trajectories))
    for number in range(count):
        start, end = (len(trajectories) * n // count for n in (number, number + 1))
        lengths = [t.length for t in trajectories[start:end]]
        even = model.forward_flops(sum(lengths), sum(n * n for n in lengths)) / cluster.gpus / speed
        slowest = max(even, model.forward_flops(max(lengths), max(lengths) ** 2) / speed)
        rounds = max(1, ceil(max(sum(lengths) / cluster.gpus, max(lengths)) / training.microbatch_tokens))
        compute += passes * even
        imbalance += passes * (slowest - even)
        gather += max(0.0, rounds * round_s - passes * slowest) + joined_s
        if training.recompute_log_probs:
            old += max(slowest, rounds * forward_round_s)
    return Update(
        compute_s=compute,
        imbalance_s=imbalance,
        gather_s=gather,
        optimiser_s=count * optimiser,
        old_log_probs_s=old,
    )


def sync_of(setting: Setting, tensor_parallel: int) -> float:
    """Return the seconds that the new weights need from the trainer's shards to the engine.

    Trainer and engine share GPUs: each gathers the whole model layer by layer in bfloat16 and keeps its part.
    With `offload`, the trainer's state also leaves for the host's memory and comes back. To servers with GPUs
    of their own, the whole model goes through the host's memory, once out and once in, to all at once.
    """
    model, cluster, efficiency = setting.model, setting.cluster, setting.efficiency
    shards = setting.training.shards(cluster)
    size = BYTES_BF16 * model.parameters
    taken = gathered_s(cluster, size, shards, efficiency)
    taken += model.layers * ring_latency_s(cluster, shards, efficiency)
    taken += 2 * size / tensor_parallel / (cluster.gpu.hbm_bytes_s * efficiency.memory)
    if setting.servers:
        taken += (size + size / tensor_parallel) / (cluster.gpu.pcie_bytes_s * efficiency.collective)
    if setting.training.offload and not setting.servers:
        moved = 2 * (BYTES_FP32 + ADAM_BYTES) * model.parameters / shards
        taken += moved / (cluster.gpu.pcie_bytes_s * efficiency.collective)
    return taken
