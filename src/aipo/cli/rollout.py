"""`aipo rollout`: look at what a policy and its agents do, before any training."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from rich.text import Text

from aipo.assembly.parts import Parts, assemble
from aipo.cli.console import console, plain_errors
from aipo.cli.screen import Terminal
from aipo.config.loader import load_settings
from aipo.core.types import Source
from aipo.rollout.group import Group, GroupShape, MemberRollout
from aipo.tasks.base import Problem, Split
from aipo.training.events import duration

LINES_EVERY_S = 10.0
STYLES = {
    Source.PROMPT: "dim",
    Source.POLICY: "default",
    Source.FEEDBACK: "bold green",
    Source.SCAFFOLD: "yellow",
}


def rollout(recipe: Path, overrides: Sequence[str], problems: int, stratum: str) -> None:
    """Print a few rollouts; see `aipo rollout --help`."""
    with plain_errors():
        settings = load_settings(recipe, overrides)
        with closing(assemble(settings)) as parts:
            pool = [p for p in parts.problems(Split.TRAIN) if not stratum or p.stratum == stratum]
            if not pool:
                raise ValueError(f"--stratum {stratum}: the task has no such problems")
            shape = GroupShape(consulting=1 if settings.agents.enabled else 0, solo=1)
            asyncio.run(_look(parts, pool[:problems], shape, settings.run.seed))


async def _look(parts: Parts, problems: Sequence[Problem], shape: GroupShape, seed: int) -> None:
    """Sample all problems at the same time and print each when it is there; say meanwhile that it goes on."""
    begun, reporter = time.monotonic(), Terminal()
    pending = {
        asyncio.create_task(parts.sampler.groups([problem], shape, (seed, "look"))) for problem in problems
    }
    while pending:
        done, pending = await asyncio.wait(
            pending, timeout=LINES_EVERY_S, return_when=asyncio.FIRST_COMPLETED
        )
        for task in done:
            _print_group(parts, task.result()[0])
        if not done:
            sampled = len(problems) - len(pending)
            waited = duration(time.monotonic() - begun)
            reporter.note(f"sampling: {sampled} of {len(problems)} problems, {waited}")


def _print_group(parts: Parts, group: Group) -> None:
    console.rule(Text(f"{group.problem.id}  ({group.problem.stratum})  gold {group.problem.gold}"))
    for member in group.members:
        grade = member.grade
        worth = "" if grade.reward is None else f", reward {grade.reward:.4g}"
        console.print(Text(f"{member.condition}: {grade.verdict} ({grade.reason}){worth}", style="bold"))
        console.print(_coloured(parts, member))
        for c in member.rollout.consultations if member.rollout else ():
            console.print(
                Text(
                    f"  {c.agent or 'no agent'} asked {c.request!r}: {c.outcome} {c.reply!r} {c.detail}",
                    style="cyan",
                )
            )
        console.print()


def _coloured(parts: Parts, member: MemberRollout) -> Text:
    text, shown = Text(), 0
    ids: list[int] = []
    for segment in member.rollout.stream.segments if member.rollout else ():
        ids += segment.ids
        so_far = parts.sampler.consult.codec.text(ids)  # whole, so that no space is shown that is not there
        text.append(so_far[shown:], style=STYLES[segment.source])
        shown = len(so_far)
    return text
