"""A scripted agent errs, fails and delays at the rates asked for, and in the same places every time."""

import asyncio
import time

import pytest

from aipo.agents.base import AgentError, AgentQuery
from aipo.agents.scripted import ScriptedAgent, Unreliability
from aipo.core.types import KNOWLEDGE, VERIFY

SEEDS = range(400)
WORDS = "a 4 12 100 ;"


def oracle(agent: str, problem: str, rollout: str, request: str) -> str:
    return WORDS if request != "silent" else "nothing to count"


def ask(seed: int, request: str = "a", **how: float) -> str:
    """Return the agent's words, FAILED where it raises."""
    agent = ScriptedAgent(name=KNOWLEDGE, oracle=oracle, unreliability=Unreliability(**how))
    try:
        return asyncio.run(
            agent.answer(AgentQuery(problem="problem", rollout="rollout", request=request, seed=seed))
        ).text
    except AgentError as error:
        assert "knowledge" in str(error)
        return "FAILED"


def test_by_default_it_says_what_the_oracle_says_of_all_it_is_asked() -> None:
    seen: list[tuple[str, ...]] = []
    agent = ScriptedAgent(name=VERIFY, oracle=lambda *asked: seen.append(asked) or "ok")
    assert (
        asyncio.run(
            agent.answer(AgentQuery(problem="problem", rollout="rollout", request="request", seed=5))
        ).text
        == "ok"
    )
    assert seen == [(VERIFY, "problem", "rollout", "request")]


@pytest.mark.parametrize("how", [{"error_rate": 0.3}, {"failure_rate": 0.3}])
def test_what_goes_wrong_comes_at_its_rate_and_in_the_same_places_every_time(how: dict[str, float]) -> None:
    first = [ask(seed, **how) for seed in SEEDS]
    assert first == [ask(seed, **how) for seed in reversed(SEEDS)][::-1]
    wrong = sum(words != WORDS for words in first) / len(SEEDS)
    assert abs(wrong - 0.3) < 0.08  # three standard deviations of 400 draws are 0.069


def test_a_wrong_reply_differs_in_one_number_of_the_same_width() -> None:
    replies = [ask(seed, error_rate=1.0) for seed in SEEDS]
    for reply in replies:
        changed = [(a, b) for a, b in zip(WORDS.split(), reply.split(), strict=True) if a != b]
        assert len(changed) == 1
        assert changed[0][1].isdigit() and len(changed[0][0]) == len(changed[0][1])
    places = {next(i for i, (a, b) in enumerate(zip(WORDS.split(), r.split(), strict=True)) if a != b)
              for r in replies}  # fmt: skip
    assert places == {1, 2, 3}


def test_a_reply_without_numbers_cannot_be_made_wrong() -> None:
    assert ask(0, "silent", error_rate=1.0) == "nothing to count"


def test_errors_and_failures_do_not_move_each_other() -> None:
    failing = {seed for seed in SEEDS if ask(seed, failure_rate=0.3) == "FAILED"}
    both = [ask(seed, failure_rate=0.3, error_rate=0.5) for seed in SEEDS]
    assert {seed for seed in SEEDS if both[seed] == "FAILED"} == failing
    assert {WORDS} < set(both)


@pytest.mark.parametrize("failure_rate", [0.0, 1.0])
def test_latency_delays_replies_and_failures_and_changes_neither(failure_rate: float) -> None:
    begun = time.monotonic()
    delayed = ask(1, latency_s=0.03, failure_rate=failure_rate)
    assert time.monotonic() - begun >= 0.029
    assert delayed == ask(1, failure_rate=failure_rate)
    assert ask(7, latency_s=0.001, error_rate=0.5) == ask(7, error_rate=0.5)


def test_agents_that_delay_do_so_side_by_side() -> None:
    agent = ScriptedAgent(name=VERIFY, oracle=oracle, unreliability=Unreliability(latency_s=0.05))

    async def many() -> None:
        await asyncio.gather(
            *(agent.answer(AgentQuery(problem="p", rollout="", request="", seed=seed)) for seed in range(40))
        )

    begun = time.monotonic()
    asyncio.run(many())
    assert time.monotonic() - begun < 1.0
