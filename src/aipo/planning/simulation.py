"""A step's rollouts as a discrete-event simulation: replicas that decode, agents that are asked.

Nothing is drawn at random here: trajectories and latencies come with the workload, and the same ones give the
same result to the last bit.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace

from aipo.planning.engine import EngineRates, Replica
from aipo.planning.setting import AgentService
from aipo.planning.workload import Trajectory

TAIL = 0.9
"""The tail begins when this share of the rollouts has ended."""
_PAUSE, _ANSWER = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What a step's rollouts took; seconds of the phase unless it says otherwise."""

    wall_s: float
    decode_s: float
    """Of the replica that ended last, as are the next two."""
    prefill_s: float
    idle_s: float
    """Nothing to decode, since all rollouts there waited for agents."""
    tail_s: float
    """From the moment when 90 % of all rollouts had ended."""
    hidden_s: float
    """Decoding or prefilling while others waited for agents, on average over replicas."""
    waited_s: float
    """Of all rollouts together, in seconds of a rollout."""
    queued_s: float
    """The part of it that was spent in the agents' queue."""
    busy_s: float
    """Of all agents' seats together, in seconds of a seat."""
    peak_asked: int
    """Most consultations that were open at the same time."""
    consultations: int
    decoded_tokens: int
    prefilled_tokens: int
    mean_batch: float
    """Rollouts in a decode step, on average over the steps of all replicas."""
    ends_s: tuple[float, ...]
    """When each rollout ended, in order of time."""


class _Desk:
    """The agents' seats and the queue before them."""

    def __init__(self, service: AgentService) -> None:
        self._free = service.seats
        self._queue: deque[tuple[float, int, float]] = deque()
        self.waited_s = self.queued_s = self.busy_s = 0.0
        self.open = self.peak = self.asked = 0

    def ask(self, rollout: int, service_s: float, at_s: float) -> list[tuple[float, int]]:
        """Take a request; return the answers that are now under way, as (when, rollout)."""
        self.open += 1
        self.asked += 1
        self.peak = max(self.peak, self.open)
        self._queue.append((at_s, rollout, service_s))
        return self._seat(at_s)

    def answered(self, at_s: float) -> list[tuple[float, int]]:
        """Free a seat; return the answers that are now under way."""
        self.open -= 1
        if self._free is not None:
            self._free += 1
        return self._seat(at_s)

    def _seat(self, at_s: float) -> list[tuple[float, int]]:
        under_way = []
        while self._queue and self._free != 0:
            asked_s, rollout, service_s = self._queue.popleft()
            if self._free is not None:
                self._free -= 1
            self.queued_s += at_s - asked_s
            self.busy_s += service_s
            self.waited_s += at_s - asked_s + service_s
            under_way.append((at_s + service_s, rollout))
        return under_way


def simulate(
    trajectories: Sequence[Trajectory], rates: EngineRates, replicas: int, service: AgentService
) -> Phase:
    """Run all rollouts on `replicas` equal replicas; rollouts that stand together stay together.

    Raises `ValueError` where a rollout does not fit into a replica's cache.
    """
    longest = max(t.length for t in trajectories)
    if longest > rates.capacity_tokens:
        raise ValueError(
            f"a rollout of {longest} tokens does not fit the {rates.capacity_tokens:.0f} tokens of a "
            "replica's cache; raise --tensor-parallel or lower --max-response-tokens"
        )
    places = [i * replicas // len(trajectories) for i in range(len(trajectories))]
    engines = [Replica(rates, trajectories) for _ in range(replicas)]
    consult = _Desk(service)
    events: list[tuple[float, int, int, int, int]] = []
    number = 0

    def announce(place: int) -> None:
        nonlocal number
        when = engines[place].next_pause_s()
        if when is not None:
            number += 1
            heappush(events, (when, number, _PAUSE, place, engines[place].version))

    share: dict[int, list[int]] = {}
    for rollout, place in enumerate(places):
        share.setdefault(place, []).append(rollout)
    for place, rollouts in share.items():
        engines[place].submit(rollouts)
        announce(place)
    ends: list[tuple[float, int]] = []
    while events:
        at_s, _, kind, who, version = heappop(events)
        answers: list[tuple[float, int]] = []
        if kind == _ANSWER:
            engines[places[who]].resume(who, at_s)
            announce(places[who])
            answers = consult.answered(at_s)
        elif version == engines[who].version:
            for rollout, turn in engines[who].pause():
                consultation = trajectories[rollout].turns[turn].consultation
                if consultation is None:
                    ends.append((at_s, who))
                    continue
                answers += consult.ask(rollout, service.service_s(consultation), at_s)
            announce(who)
        for when, rollout in answers:
            number += 1
            heappush(events, (when, number, _ANSWER, rollout, 0))
    return _phase(engines, consult, ends)


def _phase(engines: Sequence[Replica], consult: _Desk, ends: Sequence[tuple[float, int]]) -> Phase:
    last = engines[ends[-1][1]]
    times = tuple(at_s for at_s, _ in ends)
    return Phase(
        wall_s=times[-1],
        decode_s=last.decode_s,
        prefill_s=last.prefill_s,
        idle_s=last.idle_s,
        tail_s=times[-1] - times[min(len(times) - 1, int(TAIL * len(times)))],
        hidden_s=sum(engine.hidden_s for engine in engines) / len(engines),
        waited_s=consult.waited_s,
        queued_s=consult.queued_s,
        busy_s=consult.busy_s,
        peak_asked=consult.peak,
        consultations=consult.asked,
        decoded_tokens=sum(engine.decoded for engine in engines),
        prefilled_tokens=sum(engine.inserted for engine in engines),
        mean_batch=sum(engine.decoded for engine in engines) / max(1, sum(e.steps for e in engines)),
        ends_s=times,
    )


def graded_s(ends_s: Sequence[float], grade_s: float, workers: int) -> float:
    """Return when the last verdict is there, if `workers` grade each rollout as soon as it has ended."""
    free = [0.0] * workers
    heapify(free)
    done = 0.0
    for end_s in ends_s:
        done = max(free[0], end_s) + grade_s
        heapreplace(free, done)
    return max(free) if ends_s else done
