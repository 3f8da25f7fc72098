"""What follows the rollouts, in closed form: the update and the way of the new weights to the engine.

A batch costs the same FLOPs on any number of GPUs; what does not shrink with them is listed separately.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from aipo.planning.hardware import Cluster, Efficiency, exchanged_s, gathered_s, ring_latency_s
from aipo.planning.memory import ADAM_BYTES, GRADIENT_BYTES, WEIGHT_BYTES, Training
from aipo.planning.model import BYTES_BF16, ModelShape
from aipo.planning.workload import Trajectory

OPTIMISER_TRAFFIC = 2 * (WEIGHT_BYTES + ADAM_BYTES) + GRADIENT_BYTES
"""Bytes that AdamW reads and writes for each parameter."""


@dataclass(frozen=True, slots=True)
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


def update_of(
    model: ModelShape,
    cluster: Cluster,
    trajectories: Sequence[Trajectory],
    training: Training,
    efficiency: Efficiency,
) -> Update:
    """Return the time of an update over `trajectories`, cut into mini-batches in their order.

    FLOPs: three times the forward pass (6 a parameter and token, and attention), four times with gradient
    checkpointing (8). A mini-batch takes its even share on each GPU, but no less than its longest rollout.
    Each micro-batch gathers the weights twice (bfloat16) and scatters gradients once (float32), side by side
    with computing: the longer of the two counts.
    """
    speed = cluster.gpu.bf16_flops * efficiency.update
    passes = 4 if training.gradient_checkpointing else 3
    shards = training.shards(cluster)
    layers = model.layers
    two_ways = 2 * BYTES_BF16 + GRADIENT_BYTES
    round_s = gathered_s(cluster, two_ways * model.parameters, shards, efficiency)
    round_s += 3 * layers * ring_latency_s(cluster, shards, efficiency)
    forward_round_s = gathered_s(cluster, BYTES_BF16 * model.parameters, shards, efficiency)
    forward_round_s += layers * ring_latency_s(cluster, shards, efficiency)
    copies = ceil(cluster.gpus / shards)
    joined_s = exchanged_s(cluster, GRADIENT_BYTES * model.parameters / shards, copies, efficiency)
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
    return Update(compute, imbalance, gather, count * optimiser, old)


def sync_of(
    model: ModelShape, cluster: Cluster, tensor_parallel: int, training: Training, efficiency: Efficiency
) -> float:
    """Return the seconds that the new weights need from the trainer's shards to the engine.

    Trainer and engine share GPUs: each gathers the whole model layer by layer in bfloat16 and keeps its part.
    With `offload`, the trainer's state also leaves for the host's memory and comes back.
    """
    shards = training.shards(cluster)
    size = BYTES_BF16 * model.parameters
    taken = gathered_s(cluster, size, shards, efficiency)
    taken += model.layers * ring_latency_s(cluster, shards, efficiency)
    taken += 2 * size / tensor_parallel / (cluster.gpu.hbm_bytes_s * efficiency.memory)
    if training.offload:
        moved = 2 * (WEIGHT_BYTES + ADAM_BYTES) * model.parameters / shards
        taken += moved / (cluster.gpu.pcie_bytes_s * efficiency.collective)
    return taken
