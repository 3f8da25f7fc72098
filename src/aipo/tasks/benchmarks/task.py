"""A benchmark as a task: problems by split and their grading, one protocol for each kind.

An evaluation-only benchmark has no training problems, whatever files it is given. Golds, tests and entries
leave this module only to be given to a grader.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from aipo.core.types import Verdict
from aipo.grading import Grade
from aipo.grading.choice import grade_choice
from aipo.grading.extract import extract_answer
from aipo.grading.gym import GymScorer
from aipo.grading.pool import MathPool, grade_math
from aipo.grading.text import without_gold
from aipo.tasks.base import Problem, Split, TaskError
from aipo.tasks.benchmarks.benchmark import Benchmark, Kind, Row
from aipo.tasks.benchmarks.gpqa import LETTERS
from aipo.tasks.benchmarks.gym_tasks import grade_gym
from aipo.tasks.benchmarks.load import load, packaged, part_of
from aipo.tasks.benchmarks.programs import code_tests
from aipo.tasks.benchmarks.schemas import aime_integer
from aipo.tasks.files import canonical
from aipo.tasks.splits import disjoint

if TYPE_CHECKING:
    from aipo.config.settings import SandboxSettings
    from aipo.grading.code import CodePool


@dataclass(frozen=True, slots=True)
class GradingLimits:
    """Processes and deadlines of grading."""

    timeout_s: float = 2.0
    """CPU time of one symbolic comparison, or of one of reasoning-gym's scorers."""
    workers: int = 1
    """Processes: of math-verify, of sandboxes, of reasoning-gym."""
    sandbox: "SandboxSettings | None" = None
    """Where programs run; none: the default, which refuses to run where no sandbox works."""


class Graders:
    """The graders of one benchmark. Close them when done.

    Raises:
        TaskError: the benchmark's answers are programs and no sandbox works here.
    """

    def __init__(self, kind: Kind, limits: GradingLimits) -> None:
        self.kind = kind
        self._math = MathPool(limits.workers, limits.timeout_s) if kind is Kind.MATH else None
        self._code = _code_pool(limits) if kind is Kind.CODE else None
        gym = kind is Kind.REASONING_GYM
        self._gym = GymScorer(limits.workers, limits.timeout_s) if gym else None

    async def grade(self, row: Row, response: str) -> Grade:
        """Grade a response to a row. Never raises for what a response contains.

        Raises:
            RuntimeError: the graders are closed.
        """
        if self._math is not None:
            return await grade_math(response, row.gold, self._math)
        if self._code is not None:
            return await _grade_program(response, row, self._code)
        if self._gym is not None:
            return await grade_gym(response, row.material, self._gym)
        if self.kind is Kind.INTEGER:
            return grade_integer(response, row.gold)
        return grade_choice(response, row.gold, LETTERS)

    def close(self) -> None:
        """End their processes. Closing twice is harmless."""
        for pool in (self._math, self._code, self._gym):
            if pool is not None:
                pool.close()


class BenchmarkTask:
    """`aipo.tasks.base.Task` over a benchmark.

    With files, their splits are loaded and what is packaged; without, every split that is packaged or on the
    hub.
    Training and validation rows whose question stands in a split that is held out from them are dropped and
    counted in `dropped_overlaps`; without a validation split, 5 % of the training rows become it.

    Raises:
        TaskError: a file for a split that the benchmark does not have, an evaluation-only benchmark with a
            training file, a row that cannot be used, or no sandbox for programs.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        files: Mapping[Split, Path] | None = None,
        limits: GradingLimits | None = None,
    ) -> None:
        self.name, self.benchmark = benchmark.name, benchmark
        given = dict(files or {})
        for split, path in given.items():
            _refuse_held_out(benchmark, split, path)
        loaded = {split: load(benchmark, split, given.get(split)) for split in _wanted(benchmark, given)}
        parts = disjoint(loaded, lambda row: row.problem)
        self.dropped_overlaps = parts.dropped
        self._rows = {row.id: row for rows in parts.rows.values() for row in rows}
        self._problems = {split: [_problem(benchmark, r) for r in rows] for split, rows in parts.rows.items()}
        self._graders = Graders(benchmark.kind, limits or GradingLimits())

    def problems(self, split: Split) -> Sequence[Problem]:
        """Return the problems of a split, in the order of its file.

        Raises:
            TaskError: the split is empty; the message says which file or which other task to give.
        """
        if problems := self._problems[split]:
            return problems
        if split is not Split.VALIDATION or self.benchmark.evaluation_only:
            part_of(self.benchmark, split)
        raise TaskError(
            f"task.name = {self.name!r} has no {split.value} problems; set task.{split.value}_file"
        )

    async def grade(self, problem: Problem, response: str) -> Grade:
        """Grade the assistant's whole turn by the benchmark's protocol."""
        return await self._graders.grade(self._rows[problem.id], response)

    def without_answer(self, problem: Problem, text: str) -> str | None:
        """Hide the gold, as it is written, in an agent's words. A program's gold is not searched for."""
        hidden = None
        for secret in self._rows[problem.id].secrets:
            hidden = without_gold(hidden or text, secret) or hidden
        return hidden

    def fingerprint(self, problem: Problem) -> str:
        """Return a digest of all that a verdict depends on but the response: question, gold and tests."""
        row = self._rows[problem.id]
        material = asdict(row.material) if is_dataclass(type(row.material)) else row.material
        return sha256(canonical([problem.text, row.gold, row.kind, material]).encode()).hexdigest()

    def gold_response(self, problem: Problem) -> str | None:
        """Return a response that states the gold as the protocol wants it, or None without one."""
        return gold_response(self._rows[problem.id])

    def close(self) -> None:
        """End the graders' processes. Closing twice is harmless."""
        self._graders.close()


def grade_integer(response: str, gold: str) -> Grade:
    r"""Grade by the integer in the last box: no algebra, so `\boxed{140/2}` is no integer.

    >>> [grade_integer(rf"\boxed{{{x}}}", "70").reason for x in ("070", r"70^\circ", "71", "140/2")]
    ['integer', 'integer', 'different', 'no_integer']
    """
    answer = extract_answer(response)
    if answer is None:
        return Grade(Verdict.INCORRECT, "no_answer")
    number = aime_integer(answer)
    if number is None:
        return Grade(Verdict.INCORRECT, "no_integer")
    return Grade(Verdict.CORRECT, "integer") if number == gold else Grade(Verdict.INCORRECT, "different")


def gold_response(row: Row) -> str | None:
    """Return a response that states a row's gold; None where only tests are known, as in LiveCodeBench."""
    if row.kind is Kind.REASONING_GYM:
        return f"<answer>{row.material['answer']}</answer>"
    if row.kind is Kind.CODE:
        return f"```python\n{row.gold}\n```" if row.has_reference else None
    return f"\\boxed{{{row.gold}}}"


def _wanted(benchmark: Benchmark, given: Mapping[Split, Path]) -> list[Split]:
    if given:
        return [
            split for split in {**benchmark.parts, **given} if split in given or packaged(benchmark, split)
        ]
    # What has to be made by the user first is not fetched: reasoning-gym's training items.
    return [split for split in benchmark.parts if benchmark.hub or split is Split.TEST]


def _refuse_held_out(benchmark: Benchmark, split: Split, path: Path) -> None:
    if benchmark.evaluation_only and split is not Split.TEST:
        raise TaskError(
            f"task.{split.value}_file = '{path}': {benchmark.title} is for evaluation only, nothing is "
            f"trained or chosen on it; give it as task.test_file and train on another task"
        )
    part = benchmark.parts.get(split)
    if part is None and split is Split.TEST:
        raise TaskError(
            f"task.test_file = '{path}': {benchmark.title} is a training set without a test split; evaluate "
            "on a benchmark of its own, `aipo tasks list` names them"
        )


def _problem(benchmark: Benchmark, row: Row) -> Problem:
    return Problem(id=row.id, text=benchmark.ask(row), gold=row.gold, stratum=row.stratum)


def _code_pool(limits: GradingLimits) -> "CodePool":
    from aipo.config.settings import SandboxSettings
    from aipo.grading.code import CodePool
    from aipo.grading.sandbox.base import Limits, SandboxError
    from aipo.grading.sandbox.detect import open_sandbox

    asked = limits.sandbox or SandboxSettings()
    try:
        sandbox = open_sandbox(asked.backend, asked.url, asked.interpreter, asked.library_paths)
        return CodePool(
            sandbox,
            limits.workers,
            Limits(cpu_s=asked.cpu_s, wall_s=asked.wall_s, memory_mb=asked.memory_mb),
        )
    except SandboxError as error:
        raise TaskError(f"programs cannot be graded here: {error}") from error


async def _grade_program(response: str, row: Row, pool: "CodePool") -> Grade:
    from aipo.grading.code import grade_code

    return await grade_code(response, code_tests(row.material), pool)
