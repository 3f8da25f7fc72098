"""Continuous batching in one replica of the rollout engine: which rollouts decode, and until when.

All rollouts that decode gain one token a step, so a stretch ends where the first of them pauses; what happens
in between is a formula, not a loop.
"""

from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush

from aipo.planning.engine import EngineRates
from aipo.planning.workload import Trajectory


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
