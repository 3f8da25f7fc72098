"""Looking at problems before a run: rows that cannot be used, prompts too long, duplicates, by file and line.

What is found is what `aipo train` finds at its start: the same readers, graders and prompts.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from aipo.assembly.fitting import too_long
from aipo.assembly.parts import build_prompts, build_task
from aipo.config.settings import Settings
from aipo.grading.pool import MathPool
from aipo.rollout.group import Prompts
from aipo.tasks.base import Problem, Split, TaskError
from aipo.tasks.files import question_key
from aipo.tasks.jsonl import read
from aipo.tasks.registry import jsonl_sources
from aipo.tasks.splits import disjoint


@dataclass(slots=True, kw_only=True)
class Checked:
    """One file, or the problems of one split."""

    where: str
    split: Split
    problems: Sequence[Problem]
    """Those whose rows can be used."""
    bad: list[str] = field(default_factory=list)
    """Place and reason of each row that cannot be used."""
    long: list[str] = field(default_factory=list)
    """Place and tokens of each prompt that is too long."""
    repeated: list[str] = field(default_factory=list)
    """Places of problems that stand there before, and whether their golds agree."""

    @property
    def rows(self) -> int:
        """All rows."""
        return len(self.problems) + len(self.bad)

    @property
    def left_out(self) -> int:
        """How many rows task.on_bad_row = 'drop' would leave out."""
        return len(self.bad) + len(self.long)

    @property
    def strata(self) -> Mapping[str, int]:
        """Usable problems by stratum."""
        counts: dict[str, int] = defaultdict(int)
        for problem in self.problems:
            counts[problem.stratum] += 1
        return counts


def check_problems(settings: Settings) -> tuple[list[Checked], int]:
    """Return what there is to say of each file of a task, and how many rows stand in a held-out file too.

    Prompts are measured where policy.model names a model. Raises `ValueError` subclasses where a file as a
    whole cannot be read, or a task's rows are refused one by one.
    """
    task, prompts = settings.task, _prompts(settings)
    if task.name == "jsonl":
        pool = MathPool(task.grade_workers, task.grade_timeout_s) if task.match == "math" else None
        try:
            loaded = {split: read(source, pool) for split, source in jsonl_sources(task).items()}
        finally:
            if pool:
                pool.close()
        parts = disjoint({split: each.problems for split, each in loaded.items()}, lambda p: p.text)
        found = [
            Checked(
                where=str(jsonl_sources(task)[split].path),
                split=split,
                problems=each.problems,
                bad=[str(bad) for bad in each.bad],
            )
            for split, each in loaded.items()
        ]
        dropped = parts.dropped
    else:
        found, dropped = list(_of_task(settings)), 0
    for each in found:
        each.repeated = list(_repeated(each.problems))
        if prompts is not None:
            long = too_long(prompts, each.problems)
            each.long = [f"{one.place}: a prompt of {one.tokens} tokens" for one in long]
    return found, dropped


def _of_task(settings: Settings) -> Iterator[Checked]:
    task = build_task(settings.task, settings.sandbox)
    for split in Split:
        try:
            problems = task.problems(split)
        except TaskError:
            continue  # a task need not have every split
        yield Checked(where=task.name, split=split, problems=problems)


def _repeated(problems: Sequence[Problem]) -> Iterator[str]:
    first: dict[str, Problem] = {}
    for problem in problems:
        before = first.setdefault(question_key(problem.text), problem)
        if before is not problem:
            same = "" if before.gold == problem.gold else f", with gold {before.gold!r} for {problem.gold!r}"
            yield f"{problem.place or problem.id}: also at {before.place or before.id}{same}"


def _prompts(settings: Settings) -> Prompts | None:
    if not settings.policy.model:
        return None
    from transformers import AutoTokenizer

    return build_prompts(settings, AutoTokenizer.from_pretrained(settings.policy.model), {})
