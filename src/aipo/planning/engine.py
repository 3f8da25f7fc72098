"""A replica of the rollout engine: the time of decode steps and of inserted tokens, and continuous
batching.

Every cost is linear in the batch and its context but for the larger-of-two of memory and products. All
rollouts that decode gain one token a step, so a stretch ends where the first of them pauses; what happens in
between is a formula, not a loop.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import ceil

from aipo.planning.model import BYTES_BF16
from aipo.planning.setting import Setting
from aipo.planning.workload import Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
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


def gpu_rates(setting: Setting, tensor_parallel: int, capacity_tokens: float) -> EngineRates:
    """Return what a replica of `tensor_parallel` GPUs takes; see docs/planning.md for each formula."""
    model, efficiency = setting.model, setting.efficiency
    gpu, split = setting.cluster.gpu, tensor_parallel
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
        max_sequences=setting.max_sequences,
        capacity_tokens=capacity_tokens,
    )


class Replica:
    """Its clock stands at the end of a step; who comes during a step joins at its end."""

    def __init__(self, rates: EngineRates, trajectories: Sequence[Trajectory]) -> None:
        self._rates, self._trajectories = rates, trajectories
        self.now_s = 0.0
        self.version = 0
        """Changes whenever an announced pause is no longer true."""
        self.decode_s = self.prefill_s = self.idle_s = self.hidden_s = 0.0
        self.steps = self.decoded = self.inserted = 0
        self.away = 0
        """Rollouts that wait for an agent."""
        self._running: list[tuple[int, int]] = []
        self._context = 0
        self._reserved = 0
        self._new: deque[int] = deque()
        self._returning: deque[int] = deque()
        self._turn: dict[int, int] = {}
        self._held: dict[int, int] = {}
        self._prompts: set[int] = set()

    def submit(self, rollouts: Sequence[int]) -> None:
        """Take a step's rollouts and start as many as fit."""
        self._new.extend(rollouts)
        self._admit()

    def resume(self, rollout: int, at_s: float) -> None:
        """Take a rollout back whose agent has answered."""
        self._advance_to(at_s)
        self.away -= 1
        self._returning.append(rollout)
        self._admit()

    def next_pause_s(self) -> float | None:
        """Return when the first of its rollouts pauses or ends; None: none decodes."""
        if not self._running:
            return None
        steps = self._running[0][0] - self.steps
        return self.now_s + self._rates.steps_s(len(self._running), self._context, steps)

    def pause(self) -> list[tuple[int, int]]:
        """Go to that moment; return the rollouts that pause, each with the number of the turn it has done."""
        self._advance(self._running[0][0] - self.steps)
        paused = []
        while self._running and self._running[0][0] == self.steps:
            rollout = heappop(self._running)[1]
            turn = self._turn[rollout]
            self._held[rollout] += self._trajectories[rollout].turns[turn].policy_tokens
            self._context -= self._held[rollout]
            if self._trajectories[rollout].turns[turn].consultation:
                self.away += 1
                self._turn[rollout] = turn + 1
            else:
                self._reserved -= self._trajectories[rollout].length
            paused.append((rollout, turn))
        self._admit()
        return paused

    def _advance_to(self, at_s: float) -> None:
        if not self._running:
            self.idle_s += max(0.0, at_s - self.now_s)
            self.now_s = max(self.now_s, at_s)
            return
        most = self._running[0][0] - self.steps
        self._advance(self._rates.steps_until(len(self._running), self._context, at_s - self.now_s, most))

    def _advance(self, steps: int) -> None:
        batch = len(self._running)
        taken_s = self._rates.steps_s(batch, self._context, steps)
        self.now_s += taken_s
        self.decode_s += taken_s
        self.hidden_s += taken_s if self.away else 0.0
        self.steps += steps
        self.decoded += steps * batch
        self._context += steps * batch

    def _admit(self) -> None:
        """Start what fits: who comes back first, since its place in the cache was kept."""
        while self._returning and len(self._running) < self._rates.max_sequences:
            rollout = self._returning.popleft()
            consultation = self._trajectories[rollout].turns[self._turn[rollout] - 1].consultation
            self._start(rollout, consultation.feedback_tokens if consultation else 0)
        while self._new and len(self._running) < self._rates.max_sequences:
            trajectory = self._trajectories[self._new[0]]
            if self._reserved + trajectory.length > self._rates.capacity_tokens and self._reserved:
                break
            rollout = self._new.popleft()
            self._reserved += trajectory.length
            self._turn[rollout], self._held[rollout] = 0, 0
            known = trajectory.group in self._prompts
            self._prompts.add(trajectory.group)
            self._start(rollout, trajectory.prompt_tokens, known=known)
        self.version += 1

    def _start(self, rollout: int, inserted: int, *, known: bool = False) -> None:
        """Feed `inserted` tokens, unless the prefix cache knows them, and let the rollout decode."""
        if not known:
            taken_s = self._rates.inserted_s(inserted, self._held[rollout])
            self.now_s += taken_s
            self.prefill_s += taken_s
            self.hidden_s += taken_s if self.away else 0.0
            self.inserted += inserted
        self._held[rollout] += inserted
        self._context += self._held[rollout]
        turn = self._trajectories[rollout].turns[self._turn[rollout]]
        heappush(self._running, (self.steps + turn.policy_tokens, rollout))
