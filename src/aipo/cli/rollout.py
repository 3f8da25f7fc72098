"""`aipo rollout`: look at what a policy and its agents do, before any training."""

import asyncio
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from rich.text import Text

from aipo.assembly.parts import Parts, assemble
from aipo.cli.console import console, plain_errors
from aipo.config.loader import load_settings
from aipo.core.types import Source
from aipo.rollout.group import Group, GroupShape, MemberRollout
from aipo.tasks.base import Split

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
            groups = asyncio.run(parts.sampler.groups(pool[:problems], shape, (settings.run.seed, "look")))
            for group in groups:
                _print_group(parts, group)


def _print_group(parts: Parts, group: Group) -> None:
    console.rule(Text(f"{group.problem.id}  ({group.problem.stratum})  gold {group.problem.gold}"))
    for member in group.members:
        console.print(
            Text(f"{member.condition}: {member.grade.verdict} ({member.grade.reason})", style="bold")
        )
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
