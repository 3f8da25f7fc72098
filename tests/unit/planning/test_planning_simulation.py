"""The simulation of rollouts and agents, held against what can be worked out by hand."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest

from aipo.planning.engine import EngineRates, gpu_rates
from aipo.planning.setting import AgentService, Setting
from aipo.planning.simulation import Phase, graded_s, simulate
from aipo.planning.workload import (
    Consultation,
    Spread,
    Trajectory,
    Turn,
    Workload,
    draw_trajectories,
)

STEP = EngineRates(overhead_s=0.01)
REAL = gpu_rates(Setting(), 1, 700_000)
INSTANT = AgentService(servers=None, instant=True)
UNLIMITED = AgentService(servers=None, tokens_s=0)
SMALL = Workload(
    prompts_per_step=12,
    rollouts_per_prompt=8,
    response_tokens=Spread(400, 0.7, 2000),
    consultations={"verify": 1.0, "knowledge": 0.5},
)


def asking(tokens: Sequence[int], latency_s: float, feedback: int = 0, group: int = 0) -> Trajectory:
    """Return a rollout that consults after each stretch of tokens but the last."""
    asked = [Turn(n, Consultation("verify", latency_s, feedback)) for n in tokens[:-1]]
    return Trajectory(group, 10, (*asked, Turn(tokens[-1])))


def token_by_token(trajectories: Sequence[Trajectory], rates: EngineRates) -> float:
    """Return the time that one replica takes without agents, adding up one decode step after the other."""
    now, seen = 0.0, set()
    held = []
    for t in trajectories:
        if t.group not in seen:
            now += rates.inserted_s(t.prompt_tokens, 0)
        seen.add(t.group)
        held.append([t.prompt_tokens, t.policy_tokens])
    while held:
        batch, context = len(held), sum(tokens for tokens, _ in held)
        read = rates.weights_s + rates.read_per_token_s * context
        product = rates.product_per_sequence_s * batch + rates.attend_per_token_s * context
        now += rates.overhead_s + rates.overhead_per_sequence_s * batch + max(read, product)
        held = [[tokens + 1, left - 1] for tokens, left in held if left > 1]
    return now


def test_a_single_rollout_takes_its_steps_and_its_waits() -> None:
    phase = simulate([asking([30, 20, 50], 2.5)], STEP, 1, UNLIMITED)
    assert phase.wall_s == pytest.approx(100 * 0.01 + 2 * 2.5)
    assert phase.idle_s == pytest.approx(5.0)
    assert (phase.decoded_tokens, phase.consultations) == (100, 2)


@pytest.mark.parametrize(
    "rates",
    [
        STEP,
        REAL,
        replace(REAL, product_per_sequence_s=1e-3),
        EngineRates(
            weights_s=0.02, product_per_sequence_s=0.009, attend_per_token_s=1e-5, read_per_token_s=2e-5
        ),
        EngineRates(
            weights_s=0.02, product_per_sequence_s=0.004, attend_per_token_s=3e-5, read_per_token_s=1e-5
        ),
    ],
)
def test_without_consultations_it_is_decoding_step_by_step(rates: EngineRates) -> None:
    rollouts = draw_trajectories(replace(SMALL, prompts_per_step=2, consultations={}), seed=3)
    phase = simulate(rollouts, rates, 1, AgentService())
    assert phase.wall_s == pytest.approx(token_by_token(rollouts, rates), rel=1e-9)
    assert (phase.consultations, phase.waited_s, phase.hidden_s) == (0, 0.0, 0.0)


def test_an_agent_joins_at_the_end_of_the_step_that_runs_meanwhile() -> None:
    # The first waits from 0.05 to 0.172; the second's step that runs then ends at 0.18.
    phase = simulate([asking([5, 10], 0.122), asking([100], 0, group=1)], STEP, 1, UNLIMITED)
    assert phase.ends_s[0] == pytest.approx(0.28)
    assert phase.wall_s == pytest.approx(1.0)
    assert phase.hidden_s == pytest.approx(0.13)


def test_feedback_is_prefilled_and_holds_the_others_up() -> None:
    rates = EngineRates(overhead_s=0.01, prefill_overhead_s=0.1, prefill_per_token_s=0.002)
    alone = simulate([asking([100], 0, group=1)], rates, 1, UNLIMITED)
    both = simulate([asking([5, 10], 0.1, feedback=50), asking([100], 0, group=1)], rates, 1, UNLIMITED)
    prompt, feedback = 0.1 + 10 * 0.002, 0.1 + 50 * 0.002
    assert alone.wall_s == pytest.approx(prompt + 1.0)
    assert both.wall_s == pytest.approx(2 * prompt + 1.0 + feedback)
    assert both.prefilled_tokens == 10 + 10 + 50


def test_a_prompt_is_prefilled_once_for_its_group_on_a_replica() -> None:
    rollouts = [Trajectory(0, 40, (Turn(5),)) for _ in range(4)]
    assert simulate(rollouts, STEP, 1, INSTANT).prefilled_tokens == 40
    assert simulate(rollouts, STEP, 2, INSTANT).prefilled_tokens == 80


@pytest.mark.parametrize("replicas", [1, 3, 96, 200])
@pytest.mark.parametrize("servers", [1, None])
def test_every_token_and_consultation_that_was_asked_for_happens_once(
    replicas: int, servers: int | None
) -> None:
    rollouts = draw_trajectories(SMALL)
    phase = simulate(rollouts, REAL, replicas, AgentService(servers=servers, concurrency=3))
    assert phase.decoded_tokens == sum(t.policy_tokens for t in rollouts)
    assert phase.consultations == sum(bool(turn.consultation) for t in rollouts for turn in t.turns)
    assert len(phase.ends_s) == len(rollouts)
    assert list(phase.ends_s) == sorted(phase.ends_s)
    if replicas == 1:
        prompts = {t.group: t.prompt_tokens for t in rollouts}
        assert phase.prefilled_tokens == sum(prompts.values()) + sum(t.feedback_tokens for t in rollouts)


def test_few_seats_and_a_small_cache_hold_rollouts_back_but_lose_none() -> None:
    rollouts = draw_trajectories(SMALL)
    free = simulate(rollouts, STEP, 1, UNLIMITED)
    seats = simulate(rollouts, replace(STEP, max_sequences=4), 1, UNLIMITED)
    small = simulate(rollouts, replace(STEP, capacity_tokens=5000), 1, UNLIMITED)
    assert seats.mean_batch <= 4 < free.mean_batch
    assert free.decoded_tokens == seats.decoded_tokens == small.decoded_tokens
    assert min(seats.wall_s, small.wall_s) > free.wall_s
    with pytest.raises(ValueError, match="does not fit the 100 tokens"):
        simulate(rollouts, replace(STEP, capacity_tokens=100), 1, UNLIMITED)


def test_a_saturated_seat_answers_one_request_per_service_time() -> None:
    service = AgentService(servers=1, concurrency=1, tokens_s=50.0)
    rollouts = [asking([1, 1], 0.5, feedback=25, group=i) for i in range(40)]
    phase = simulate(rollouts, STEP, 40, service)
    assert service.service_s(Consultation("verify", 0.5, 25)) == 1.0
    shared = AgentService(servers=1, concurrency=4, tokens_s=50.0)  # a seat has a quarter of the tokens
    assert shared.service_s(Consultation("verify", 0.5, 25)) == 2.5
    assert phase.wall_s == pytest.approx(0.01 + 40 * 1.0 + 0.01)
    assert phase.queued_s == pytest.approx(sum(range(40)) * 1.0)
    assert phase.busy_s == pytest.approx(40.0)


def test_little_s_law_holds_in_the_agents_queue() -> None:
    """Open requests on average = rate of arrivals x time that each is open; counted in two ways."""
    rollouts = draw_trajectories(SMALL)
    phase = simulate(rollouts, REAL, 4, AgentService(servers=1, concurrency=2, tokens_s=100))
    rate, each_s = phase.consultations / phase.wall_s, phase.waited_s / phase.consultations
    assert phase.waited_s == pytest.approx(phase.queued_s + phase.busy_s)
    assert phase.busy_s / phase.wall_s <= 2.0 + 1e-9
    assert 2.0 < rate * each_s < phase.peak_asked
    assert phase.busy_s / phase.wall_s > 1.8  # saturated: throughput = seats / service time


@pytest.mark.parametrize("seed", range(4))
def test_more_agent_servers_are_never_slower(seed: int) -> None:
    rollouts = draw_trajectories(SMALL, seed)
    walls = [
        simulate(rollouts, REAL, 4, AgentService(servers=servers, concurrency=2, tokens_s=200)).wall_s
        for servers in (1, 2, 4, 8, 16, None)
    ]
    for fewer, more in pairwise(walls):
        assert more <= fewer * 1.02  # other batches, by chance a little slower
    assert walls[-1] < walls[0] / 2


def test_unlimited_agents_equal_as_many_seats_as_are_ever_open() -> None:
    rollouts = draw_trajectories(SMALL)
    free = simulate(rollouts, REAL, 4, AgentService(servers=None, concurrency=1))
    enough = simulate(rollouts, REAL, 4, AgentService(servers=free.peak_asked, concurrency=1))
    short = simulate(rollouts, REAL, 4, AgentService(servers=free.peak_asked - 1, concurrency=1))
    assert enough == free
    assert short.queued_s > 0 == free.queued_s


def test_the_same_seed_gives_the_same_phase_and_another_seed_another() -> None:
    def phase(seed: int) -> Phase:
        return simulate(draw_trajectories(SMALL, seed), REAL, 4, AgentService(servers=1, concurrency=4))

    assert phase(1) == phase(1) != phase(2)


def test_grading_is_a_queue_of_workers() -> None:
    assert graded_s([1.0, 1.0, 1.0, 5.0], 0.5, 1) == 5.5
    assert graded_s([1.0, 1.0, 1.0], 0.5, 1) == 2.5
    assert graded_s([1.0, 1.0, 1.0], 0.5, 2) == 2.0


def test_a_plan_of_2048_rollouts_takes_seconds() -> None:
    from time import process_time

    rollouts, began = draw_trajectories(Workload()), process_time()
    simulate(rollouts, REAL, 8, AgentService())
    assert len(rollouts) == 2048
    assert process_time() - began < 5.0
