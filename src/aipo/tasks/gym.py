"""A data set of reasoning-gym by name: `task.name = "gym"`, `task.options.dataset = "chain_sum"`.

Items are drawn from three ranges of seeds, test items first, then validation, then training items; no
question of one split stands in another. The same options draw the same items in every process: items are
drawn with a fixed hash seed, on which some generators depend. A response's score is its reward; CORRECT is
what scores `task.options.right_from`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from aipo.config.settings import SandboxSettings, TaskSettings
from aipo.core.types import Verdict
from aipo.grading import Grade
from aipo.grading.gym import KIND, MIN_SCORE, GymScorer
from aipo.grading.outside import OutsideCommand, OutsideError, OutsidePool
from aipo.grading.text import without_gold
from aipo.tasks.base import Problem, Split, TaskError, TaskSpec
from aipo.tasks.benchmarks.gym_freeze import SEEDS, TRIES_PER_ITEM
from aipo.tasks.benchmarks.gym_tasks import TAG, GymTask, answer_of, why_excluded
from aipo.tasks.files import question_key
from aipo.tasks.parameters import listed, share_of

DRAW_S = 120.0
"""Deadline of one item: some puzzles are searched for."""
OPTIONS: Mapping[str, str | int | float] = {
    "dataset": "",
    "train_problems": 1000,
    "validation_problems": 100,
    "test_problems": 200,
    "right_from": 1.0,
    "interpreter": "",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GymOptions:
    """What `task.options` says, read."""

    dataset: str
    problems: Mapping[Split, int]
    right_from: float
    """A score from here on is CORRECT."""
    interpreter: str
    """The Python of the environment with reasoning-gym; '': this one."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """The data set's own."""


def options_of(settings: TaskSettings) -> GymOptions:
    """Return them. Raises `TaskError` with field, value and fix."""
    given = settings.options
    own = {name: value for name, value in given.items() if name not in OPTIONS}
    dataset = str(given["dataset"])
    if not dataset:
        raise TaskError(
            "task.name = 'gym' needs the name of a reasoning-gym data set, as in task.options.dataset = "
            "'chain_sum'"
        )
    if why := why_excluded(GymTask(name=dataset, generator=dataset)):
        raise TaskError(f"task.options.dataset = {dataset!r} is not used: {why}; choose another one")
    counts = {split: given[f"{split}_problems"] for split in Split}
    for split, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise TaskError(f"task.options.{split}_problems = {count!r}: must be a whole number from 1 on")
    return GymOptions(
        dataset=dataset,
        problems={split: int(count) for split, count in counts.items()},
        right_from=min(share_of("right_from", given["right_from"]), MIN_SCORE),
        interpreter=str(given["interpreter"]),
        parameters={name: listed(name, value) for name, value in own.items()},
    )


class GymDataset:
    """`aipo.tasks.base.Task` over one data set. Items are drawn when problems are first asked for."""

    def __init__(self, options: GymOptions, workers: int = 1, cpu_s: float = 2.0) -> None:
        """`workers`, `cpu_s`: processes of scoring, and CPU time of one score."""
        self.name, self.options = f"gym/{options.dataset}", options
        self._scorer = GymScorer(workers, cpu_s, options.interpreter)
        self._entries: dict[str, Mapping[str, Any]] = {}
        self._problems: dict[Split, list[Problem]] = {}

    def problems(self, split: Split) -> Sequence[Problem]:
        """Return a split's problems, in the order of their seeds. Raises `TaskError` where none are drawn."""
        if not self._problems:
            self._problems = self._drawn()
        return self._problems[split]

    async def grade(self, problem: Problem, response: str) -> Grade:
        """Grade by the data set's own scorer: the score is the reward."""
        answer = answer_of(response)
        if answer is None:
            return Grade(Verdict.INCORRECT, "no_answer", 0.0)
        value = await self._scorer.score(self.options.dataset, answer, self._entries[problem.id])
        if isinstance(value, Grade):
            lost = value.verdict is Verdict.UNGRADED
            return value if lost else Grade(value.verdict, value.reason, 0.0)
        right = value >= self.options.right_from
        return Grade(Verdict.CORRECT if right else Verdict.INCORRECT, f"score: {value:.2f}", value)

    def without_answer(self, problem: Problem, text: str) -> str | None:
        """Hide the gold, as it is written, in an agent's words."""
        return without_gold(text, problem.gold)

    def gold_response(self, problem: Problem) -> str:
        """Return a response that states the gold."""
        return f"<answer>{problem.gold}</answer>"

    def close(self) -> None:
        """End the processes. Closing twice is harmless."""
        self._scorer.close()

    def _drawn(self) -> dict[Split, list[Problem]]:
        command = OutsideCommand(arguments=(KIND, "0"), interpreter=self.options.interpreter)
        pool, taken = OutsidePool(command), set[str]()
        try:
            _check(self.options, pool)
            # What is held out is drawn first, so that nothing trained on takes its place.
            order = (Split.TEST, Split.VALIDATION, Split.TRAIN)
            return {split: list(self._of_split(split, pool, taken)) for split in order}
        except OutsideError as error:
            raise TaskError(f"{self._where}: reasoning-gym cannot draw it: {error}") from error
        finally:
            pool.close()

    def _of_split(self, split: Split, pool: OutsidePool, taken: set[str]) -> Iterator[Problem]:
        o, found = self.options, 0
        wanted = o.problems[split]
        most = wanted * TRIES_PER_ITEM
        asked = {"do": "draw", "dataset": o.dataset, "parameters": o.parameters}
        for index in range(most):
            reply = pool.ask_now({**asked, "seed": SEEDS[split], "size": most, "index": index}, DRAW_S)
            if "error" in reply:
                raise TaskError(f"{self._where}: {reply['error']}; correct or leave out what is not its own")
            entry = reply["entry"]
            key, gold = question_key(str(entry["question"])), str(entry["answer"]).strip()
            if key in taken or not gold:
                continue
            if float(reply["gold_score"]) < MIN_SCORE:
                raise TaskError(
                    f"{self._where}: the data set's own answer to item {index} does not score, so nothing "
                    "can be right; choose another one"
                )
            taken.add(key)
            identity = f"{o.dataset}/{split}/{index}"
            self._entries[identity] = entry
            text = f"{entry['question']}\n\n{TAG}"
            yield Problem(id=identity, text=text, gold=gold, row={"id": identity, **entry})
            found += 1
            if found == wanted:
                return
        raise TaskError(
            f"task.options.{split}_problems = {wanted}: {o.dataset!r} has {found} other questions in {most} "
            "draws; ask for fewer, or for longer ones by its own parameters"
        )

    @property
    def _where(self) -> str:
        own = "".join(f", {name} = {value!r}" for name, value in self.options.parameters.items())
        return f"task.options.dataset = {self.options.dataset!r}{own}"


def _check(options: GymOptions, pool: OutsidePool) -> None:
    """Raise `TaskError` where there is no reasoning-gym, or no such data set."""
    try:
        known = [str(name) for name in pool.greeting()["datasets"]]
    except OutsideError as error:
        raise TaskError(
            f"task.name = 'gym' needs reasoning-gym, which does not start here ({error}); install it with "
            "pip install 'reasoning-gym>=0.1.23', or name the Python of an environment that has it in "
            "task.options.interpreter"
        ) from error
    if options.dataset not in known:
        near = get_close_matches(options.dataset, known, 3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are: {', '.join(known)}"
        raise TaskError(f"task.options.dataset = {options.dataset!r}: reasoning-gym has no such one; {hint}")


def _make(settings: TaskSettings, sandbox: SandboxSettings) -> GymDataset:
    return GymDataset(options_of(settings), settings.grade_workers, settings.grade_timeout_s)


GYM_SPEC = TaskSpec(
    name="gym",
    title="A data set of reasoning-gym",
    make=_make,
    kind="reasoning_gym",
    source="drawn by reasoning-gym",
    options=OPTIONS,
    open_options=True,
    notes=(
        "Data sets whose scorer evaluates the answer as an expression, takes any answer, or does not take "
        "its own are refused.",
    ),
)
