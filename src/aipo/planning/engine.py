"""How long a replica of the rollout engine takes for decode steps and for inserted tokens.

Every cost is linear in the batch and its context but for the larger-of-two of memory and products, so that a
stretch of steps with an unchanged batch has a closed form.
"""

from bisect import bisect_left
from dataclasses import dataclass
from math import ceil

from aipo.planning.hardware import Cluster, Efficiency
from aipo.planning.model import BYTES_BF16, ModelShape


@dataclass(frozen=True, slots=True)
class EngineRates:
    """Seconds of one replica. A decode step of `batch` rollouts with `context` tokens in the cache takes

    overhead + overhead_per_sequence * batch
      + max(weights + read_per_token * context, product_per_sequence * batch + attend_per_token * context).
    """

    overhead_s: float = 0.0
    overhead_per_sequence_s: float = 0.0
    weights_s: float = 0.0
    read_per_token_s: float = 0.0
    product_per_sequence_s: float = 0.0
    attend_per_token_s: float = 0.0
    prefill_overhead_s: float = 0.0
    prefill_per_token_s: float = 0.0
    prefill_attend_s: float = 0.0
    """Of an inserted token to one token before it."""
    max_sequences: int = 256
    """Rollouts that decode at the same time."""
    capacity_tokens: float = float("inf")
    """Of the key-value cache."""

    def steps_s(self, batch: int, context: float, steps: int) -> float:
        """Return the time of `steps` decode steps, of which each adds `batch` tokens to the context."""
        read, product = self.weights_s, self.product_per_sequence_s * batch
        read += self.read_per_token_s * context
        product += self.attend_per_token_s * context
        read_grows, product_grows = self.read_per_token_s * batch, self.attend_per_token_s * batch
        # The larger of two straight lines, which change places at most once.
        first, second = (read, read_grows), (product, product_grows)
        if (read, read_grows) < (product, product_grows):
            first, second = second, first
        until = steps
        if second[1] > first[1]:
            until = min(steps, ceil((first[0] - second[0]) / (second[1] - first[1])))
        fixed = self.overhead_s + self.overhead_per_sequence_s * batch
        return steps * fixed + _line(first, 0, until) + _line(second, until, steps)

    def steps_until(self, batch: int, context: float, seconds: float, most: int) -> int:
        """Return the smallest number of steps that take `seconds`, at most `most`."""
        if seconds <= 0:
            return 0
        found = bisect_left(range(1, most), seconds, key=lambda steps: self.steps_s(batch, context, steps))
        return min(1 + found, most)

    def inserted_s(self, tokens: int, before: float) -> float:
        """Return how long `tokens` behind `before` others hold the replica up. Degenerate case: none, 0."""
        if not tokens:
            return 0.0
        attended = self.prefill_attend_s * (before + tokens / 2)
        return self.prefill_overhead_s + tokens * (self.prefill_per_token_s + attended)


def _line(line: tuple[float, float], start: int, end: int) -> float:
    """Return the sum of a straight line's values at start, ..., end - 1."""
    return (end - start) * line[0] + line[1] * (start + end - 1) * (end - start) / 2


def gpu_rates(
    model: ModelShape, cluster: Cluster, tensor_parallel: int, efficiency: Efficiency, capacity_tokens: float
) -> EngineRates:
    """Return what a replica of `tensor_parallel` GPUs takes; see docs/planning.md for each formula."""
    gpu, split = cluster.gpu, tensor_parallel
    read = gpu.hbm_bytes_s * efficiency.memory * split
    products = gpu.bf16_flops * efficiency.decode * split
    prefill = gpu.bf16_flops * efficiency.prefill * split
    joined_s, joined_bytes = 0.0, 0.0
    if split > 1:  # two all-reduces a layer
        joined_s = 2 * model.layers * 2 * (split - 1) * efficiency.near_hop_s
        joined_bytes = 2 * model.layers * model.hidden * BYTES_BF16 * 2 * (split - 1) / split
    moved_s = joined_bytes / (gpu.nvlink_bytes_s * efficiency.collective)
    return EngineRates(
        overhead_s=efficiency.step_overhead_s + joined_s,
        overhead_per_sequence_s=efficiency.sequence_overhead_s + moved_s,
        weights_s=model.multiplied * BYTES_BF16 / read,
        read_per_token_s=model.kv_bytes_per_token / read,
        product_per_sequence_s=2 * model.multiplied / products,
        attend_per_token_s=model.attention_flops / products,
        prefill_per_token_s=2 * model.multiplied / prefill + moved_s,
        prefill_attend_s=model.attention_flops / prefill,
        capacity_tokens=capacity_tokens,
    )
