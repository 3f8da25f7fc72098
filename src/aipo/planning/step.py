"""One step, planned: where its time goes, what memory holds, how many agent servers it takes, what it costs,
and how all that scales with the number of GPUs.

The phases follow one another on the same GPUs: rollouts, verdicts, update, weights to the engine; the rows
of `Step.rows` add up to `Step.total_s`. The batch of a scaling table is fixed: efficiency is (time x GPUs) of
the smallest size that fits over the same here, and each lost GPU-second is some row's.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil

from aipo.planning.engine import gpu_rates
from aipo.planning.estimate import Memory, Update, memory_of, sync_of, update_of
from aipo.planning.setting import AgentService, Setting
from aipo.planning.simulation import Phase, graded_s, simulate
from aipo.planning.workload import draw_trajectories

BUSY = 0.05
"""Agents keep the policy busy where waiting for them adds less than this share to decoding."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
STOP = 0.5
"""Below this efficiency more GPUs are mostly wasted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agents:
    """What the agents' servers do to a step."""

    exposed_s: float
    """What the phase takes longer than with agents that answer at once."""
    exposed_unlimited_s: float
    """The same without a queue: what their own latency costs, whatever the number of servers."""
    seats_asked: float
    """Seats that answer on average, if the phase took no longer than with agents that answer at once."""
    servers_needed: int | None
    """Fewest with an exposed time below 5 % of decoding; None: no number reaches it."""
    servers_useful: int
    """Fewest that come within 5 % of decoding of what unlimited servers do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A planned step."""

    setting: Setting
    replicas: int
    tensor_parallel: int
    memory: Memory
    phase: Phase
    instant: Phase
    """The same rollouts with agents that answer at once."""
    agents: Agents
    grade_exposed_s: float
    update: Update
    sync_s: float
    trained_tokens: int

    @property
    def rows(self) -> dict[str, float]:
        """Where the time goes: seconds on the clock, one after the other."""
        wait = min(self.agents.exposed_s, self.phase.wall_s)
        prefill = min(self.instant.prefill_s, self.phase.wall_s - wait)
        return {
            "decode": self.phase.wall_s - wait - prefill,
            "prefill": prefill,
            "consult": wait,
            "grade": self.grade_exposed_s,
            "old_log_probs": self.update.old_log_probs_s,
            "update": self.update.compute_s + self.update.imbalance_s + self.update.optimiser_s,
            "gather": self.update.gather_s,
            "weight_sync": self.sync_s,
        }

    @property
    def total_s(self) -> float:
        """The step."""
        return sum(self.rows.values())

    @property
    def gpus(self) -> int:
        """The trainer's, the policy servers' where those have their own, and the agents'."""
        servers = self.setting.service.servers
        count = self.agents.servers_useful if servers is None else servers
        asked = count if self.phase.consultations else 0
        sampling = (self.setting.servers or 0) * self.tensor_parallel
        return self.setting.cluster.gpus + sampling + asked * self.setting.service.gpus_per_server

    @property
    def gpu_hours(self) -> float:
        """Of one step, agents included."""
        return self.gpus * self.total_s / 3600


def plan_step(setting: Setting, *, search: bool = True) -> Step:
    """Return the planned step. Raises `ValueError` where it does not fit.

    Without `search`, the numbers of servers are not looked for: `servers_needed` is None then, and
    `servers_useful` what seats are asked for on average.
    """
    memory, split = memory_of(setting)
    trajectories = draw_trajectories(setting.workload, setting.seed)
    cache = memory.rollout_cache * split / setting.model.kv_bytes_per_token
    rates = gpu_rates(setting, split, cache)
    replicas = setting.servers or setting.cluster.gpus // split

    def run(service: AgentService) -> Phase:
        return simulate(trajectories, rates, replicas, service)

    phase = run(setting.service)
    instant = run(replace(setting.service, servers=None, instant=True))
    done = graded_s(phase.ends_s, setting.workload.grade_s, setting.workload.grade_workers)
    return Step(
        setting=setting,
        replicas=replicas,
        tensor_parallel=split,
        memory=memory,
        phase=phase,
        instant=instant,
        agents=_agents(setting, phase, instant, run, search),
        grade_exposed_s=done - phase.wall_s,
        update=update_of(setting, trajectories),
        sync_s=sync_of(setting, split),
        trained_tokens=sum(t.length for t in trajectories),
    )


def _agents(
    setting: Setting, phase: Phase, instant: Phase, run: Callable[[AgentService], Phase], search: bool
) -> Agents:
    if not phase.consultations:
        return Agents(
            exposed_s=0.0, exposed_unlimited_s=0.0, seats_asked=0.0, servers_needed=0, servers_useful=0
        )
    bearable_s = BUSY * instant.decode_s
    free = run(replace(setting.service, servers=None))
    unlimited_s = max(0.0, free.wall_s - instant.wall_s)
    exposed_s = max(0.0, phase.wall_s - instant.wall_s)
    seats = phase.busy_s / instant.wall_s
    most = max(1, ceil(free.peak_asked / setting.service.concurrency))

    def exposed(servers: int) -> float:
        return run(replace(setting.service, servers=servers)).wall_s - instant.wall_s

    def fewest(below_s: float) -> int:
        """Return the smallest number up to `most` that is enough; `most` is, since nobody queues then."""
        return 1 + bisect_left(range(1, most), True, key=lambda servers: exposed(servers) < below_s)

    useful, needed = max(1, ceil(seats / setting.service.concurrency)), None
    if search:
        useful = fewest(unlimited_s + bearable_s)
        needed = fewest(bearable_s) if unlimited_s < bearable_s else None
    return Agents(
        exposed_s=exposed_s,
        exposed_unlimited_s=unlimited_s,
        seats_asked=seats,
        servers_needed=needed,
        servers_useful=useful,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """One row: a planned step, or why there is none."""

    gpus: int
    step: Step | None
    problem: str = ""
    efficiency: float = 0.0
    limit: str = ""
    """Which part of the step shrinks least, in words; empty at the smallest size."""


def scaling(setting: Setting, sizes: Sequence[int] = SIZES, *, search: bool = True) -> list[Size]:
    """Plan the same batch on each number of GPUs."""
    rows: list[Size] = []
    first: Step | None = None
    for gpus in sizes:
        cluster = replace(setting.cluster, gpus=gpus)
        try:
            step = plan_step(replace(setting, cluster=cluster), search=search)
        except ValueError as error:
            rows.append(Size(gpus=gpus, step=None, problem=str(error)))
            continue
        first = first or step
        share = first.setting.cluster.gpus / gpus
        efficiency = first.total_s * share / step.total_s
        limit = "" if step is first else _limit(first, step, share)
        rows.append(Size(gpus=gpus, step=step, efficiency=efficiency, limit=limit))
    return rows


def stops_at(rows: Sequence[Size]) -> Size | None:
    """Return the smallest size of less than half the efficiency; None: none is."""
    return next((row for row in rows if row.step and row.efficiency < STOP), None)


def _parts(step: Step) -> dict[str, float]:
    """Return the step's seconds by what keeps them from shrinking."""
    rows = step.rows
    tail = min(step.instant.tail_s, rows["decode"])
    return {
        "decoding at small batches": rows["decode"] - tail,
        "long tail of rollouts": tail,
        "prefill": rows["prefill"],
        "agents": rows["consult"],
        "grading": rows["grade"],
        "longest rollout of a mini-batch": step.update.imbalance_s,
        "update": rows["update"] - step.update.imbalance_s + rows["old_log_probs"],
        "all-gather": rows["gather"],
        "weight sync": rows["weight_sync"],
    }


def _limit(first: Step, step: Step, share: float) -> str:
    ideal, real = _parts(first), _parts(step)
    excess = {name: real[name] - ideal[name] * share for name in real}
    worst = max(excess, key=lambda name: excess[name])
    return f"{worst} ({excess[worst] / step.total_s:.0%} of the step)"
