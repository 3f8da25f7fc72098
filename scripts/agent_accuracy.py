#!/usr/bin/env python3
"""How often a Knowledge agent is right: scripts/agent_accuracy.py RECIPE RECORD.json [override ...]

Asks the recipe's agent for the atomic number of each of the 118 elements, as a policy would on the task
`elements`, and writes what it answered. A reply is right if the first number in it is the element's.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path

from aipo.agents.base import Agent, AgentQuery
from aipo.assembly.agents import build_agents
from aipo.config.loader import load_settings
from aipo.config.settings import Settings
from aipo.core.types import KNOWLEDGE
from aipo.rollout.asking import ask
from aipo.tasks.words.elements import Element, elements
from aipo.tasks.words.measured import stated


async def asked(agent: Agent, element: Element, timeout_s: float) -> dict[str, object]:
    """Return what the agent said of one element."""
    query = AgentQuery(
        problem=f"Add 7 to the atomic number of {element.name}.",
        rollout="",
        request=f"atomic number of {element.name}",
        seed=element.number,
    )
    begun = time.monotonic()
    answer = await ask(agent, query, timeout_s)
    reply = answer.reply.text if answer.reply else ""
    return {
        "element": element.name,
        "outcome": answer.outcome.value,
        "reply": reply,
        "detail": answer.detail,
        "right": stated(reply, 0) == element.number,
        "seconds": round(time.monotonic() - begun, 2),
    }


async def measure(settings: Settings) -> list[dict[str, object]]:
    """Ask all, `agents.concurrency` at a time, without the cache."""
    agent = build_agents(settings, None, use_cache=False).agents[KNOWLEDGE]
    free = asyncio.Semaphore(settings.agents.of(KNOWLEDGE).concurrency)

    async def one(element: Element) -> dict[str, object]:
        async with free:
            return await asked(agent, element, settings.agents.timeout_s)

    return list(await asyncio.gather(*map(one, elements())))


def main() -> None:
    """Measure and write the record."""
    recipe, record, *overrides = sys.argv[1:]
    settings = load_settings(Path(recipe), overrides)
    answers = asyncio.run(measure(settings))
    right = sum(bool(answer["right"]) for answer in answers)
    fields = settings.agents.of(KNOWLEDGE)
    outcomes = Counter(str(answer["outcome"]) for answer in answers)
    result = {
        "backend": fields.backend,
        "model": fields.model,
        "temperature": fields.temperature,
        "right": right,
        "asked": len(answers),
        "outcomes": dict(outcomes),
        "answers": answers,
    }
    Path(record).write_text(json.dumps(result, indent=1) + "\n")
    print(f"{fields.model}: {right} of {len(answers)} right; {dict(outcomes)}")


if __name__ == "__main__":
    main()
