"""The page of all benchmarks as Markdown, written from their descriptions alone.

It is the generated part of docs/benchmarks.md; a test can tell when that is out of date.
"""

from collections.abc import Iterator

from aipo.tasks.benchmarks.benchmark import Benchmark, Kind
from aipo.tasks.benchmarks.catalogue import BENCHMARKS
from aipo.tasks.benchmarks.gym_tasks import PAPER_TASKS, why_excluded

_PROTOCOLS = {
    Kind.MATH: r"the last `\boxed{}` after the thinking; equal as normalised text, or by math-verify in a "
    "process that can be killed",
    Kind.INTEGER: r"the integer in the last `\boxed{}`, leading zeros and a degree sign aside; no algebra",
    Kind.CHOICE: r"the letter in the last `\boxed{}`, or after the last `answer is`",
    Kind.CODE: "the last fenced block is run in a sandbox; expected values are compared outside",
    Kind.REASONING_GYM: "the last `<answer>` block, or else the last box, by the generator's own scorer; "
    "CORRECT from a score of 1.0 only",
}


def describe() -> str:
    """Return the tables of benchmarks, protocols, prompts, traps and reasoning-gym tasks."""
    return "\n".join(_lines()) + "\n"


def rows_said(benchmark: Benchmark) -> str:
    """Return the confirmed row counts by split, as a table says them; `?` where nobody has counted."""
    return ", ".join(f"{s.value} {_counted(p.rows)}" for s, p in benchmark.parts.items())


def _counted(counts: tuple[int, ...]) -> str:
    return str(counts[0]) if counts else "?"


def _lines() -> Iterator[str]:
    described = [benchmark for _, benchmark in BENCHMARKS.items()]
    yield "| name | benchmark | kind | use | rows | Avg@n | licence |\n|---|---|---|---|---|--:|---|"
    for b in described:
        yield (
            f"| `{b.name}` | {b.title} | {b.kind} | {b.use} | {rows_said(b)} | {b.samples} | {b.licence} |"
        )
    yield "\n| name | hub id | configuration | split | revision | local file |\n|---|---|---|---|---|---|"
    for b in described:
        hub_splits = ", ".join(part.hub_split for part in b.parts.values() if part.hub_split) or "-"
        stems = ", ".join(f"`{part.stem}.*`" for part in b.parts.values())
        revision = b.revision if b.hub else "-"
        yield (
            f"| `{b.name}` | {b.hub or 'generated'} | {b.configuration or '-'} | {hub_splits} | {revision} | "
            f"{stems} |"
        )
    yield "\n## How answers are scored\n\n| kind | protocol |\n|---|---|"
    yield from (f"| {kind} | {text} |" for kind, text in _PROTOCOLS.items())
    yield "\n## What is asked\n\nThe problem, and then:\n\n| name | instruction |\n|---|---|"
    yield from (f"| `{b.name}` | {b.prompt} |" for b in described)
    yield "\n## Traps\n"
    for b in described:
        yield f"- `{b.name}`: {' '.join(b.notes)}"
    yield "\n## The reasoning-gym tasks\n\n| task | generator | parameters | used |\n|---|---|---|---|"
    for task in PAPER_TASKS:
        parameters = ", ".join(f"{name} = {value}" for name, value in task.parameters.items()) or "defaults"
        parameters += "".join(f" (training: {n} = {v})" for n, v in task.train_parameters.items())
        why = why_excluded(task)
        yield f"| {task.name} | {task.generator} | {parameters} | {f'no: {why}' if why else 'yes'} |"
