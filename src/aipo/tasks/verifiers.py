"""An environment of verifiers by name: `task.name = "verifiers"`, `task.options.environment = "gsm8k"`.

The library wants another `openai` than this package has, so it runs in processes of another Python, which
`task.options.interpreter` names; only lines of JSON pass between the two. Read are environments with a single
turn, their rows and their rubric: the weighted sum of its reward functions is the reward, and CORRECT is what
reaches `task.options.right_from`. A reward function that raises, or does not end, is UNGRADED, never 0.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from aipo.config.settings import SandboxSettings, TaskSettings
from aipo.core.types import Verdict
from aipo.grading import Grade
from aipo.grading.outside import OutsideCommand, OutsideError, OutsidePool
from aipo.grading.text import without_gold
from aipo.tasks.base import Problem, Split, TaskError, TaskSpec
from aipo.tasks.cells import turns_of
from aipo.tasks.parameters import listed
from aipo.tasks.splits import disjoint

KIND = "verifiers"
ROWS_AT_ONCE = 100
LOAD_S = 600.0
"""Deadline of an environment's loading, which may read a data set."""
_REASON_CHARACTERS = 300
OPTIONS: Mapping[str, str | int | float] = {
    "environment": "",
    "interpreter": "",
    "module_path": "",
    "right_from": 1.0,
}
_INSTALL = (
    "make one with `python -m venv vf && vf/bin/pip install 'verifiers<0.2' YOUR-ENVIRONMENT`, and write "
    "task.options.interpreter = 'vf/bin/python'"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiersOptions:
    """What `task.options` says, read."""

    environment: str
    interpreter: str
    """The Python that verifiers and the environment are installed in; '': this one."""
    module_path: str
    """A folder in which the environment's module stands, where it is not installed; '': none."""
    right_from: float
    """A reward from here on is CORRECT."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of the environment's `load_environment`."""


def options_of(settings: TaskSettings) -> VerifiersOptions:
    """Return them. Raises `TaskError` with field, value and fix."""
    given = settings.options
    if not given["environment"]:
        raise TaskError(
            "task.name = 'verifiers' needs the name of an environment, as in task.options.environment = "
            "'gsm8k'"
        )
    right_from = given["right_from"]
    if isinstance(right_from, bool | str) or not isfinite(right_from):
        raise TaskError(f"task.options.right_from = {right_from!r}: must be a reward, as in right_from = 1.0")
    return VerifiersOptions(
        environment=str(given["environment"]),
        interpreter=str(given["interpreter"]),
        module_path=str(given["module_path"]),
        right_from=float(right_from),
        arguments={name: listed(name, value) for name, value in given.items() if name not in OPTIONS},
    )


class VerifiersTask:
    """`aipo.tasks.base.Task` over one environment. It is loaded when problems are first asked for.

    Its evaluation rows are the test split; 5 % of its training rows become the validation split. Training
    rows whose question stands in the test split are left out.
    """

    def __init__(self, options: VerifiersOptions, workers: int, score_s: float) -> None:
        """`workers`: processes that score. `score_s`: deadline of one score."""
        self.name, self.options = f"verifiers/{options.environment}", options
        paths = (options.module_path,) if options.module_path else ()
        loaded = {"environment": options.environment, "arguments": dict(options.arguments)}
        command = OutsideCommand(
            arguments=(KIND, "0", json.dumps(loaded)),
            interpreter=options.interpreter,
            start_s=LOAD_S,
            paths=paths,
        )
        self._pool, self._score_s = OutsidePool(command, workers), score_s
        self._rows: dict[str, Mapping[str, Any]] = {}
        self._problems: dict[Split, list[Problem]] = {}

    def problems(self, split: Split) -> Sequence[Problem]:
        """Return a split's problems. Raises `TaskError` where there are none, with the reason."""
        if not self._problems:
            train, test = self._loaded("train"), self._loaded("eval")
            found = {Split.TRAIN: train, Split.TEST: test}
            self._problems = dict(disjoint(found, lambda problem: problem.text).rows)
        if not self._problems[split]:
            raise TaskError(
                f"{self._where} has no {split.value} rows; take another split, as in evaluate.split = "
                "'validation', or another environment"
            )
        return self._problems[split]

    async def grade(self, problem: Problem, response: str) -> Grade:
        """Grade by the environment's rubric: its reward is the reward."""
        question = {"do": "score", "row": self._rows[problem.id], "completion": response}
        try:
            reply = await self._pool.ask(question, self._score_s)
        except OutsideError as error:
            return Grade(Verdict.UNGRADED, f"rubric: {error}"[:_REASON_CHARACTERS])
        why = reply.get("raised") or reply.get("error")
        reward = reply.get("reward")
        if why or not isinstance(reward, int | float) or not isfinite(reward):
            return Grade(
                Verdict.UNGRADED, f"rubric: {why or f'{reward!r} is no reward'}"[:_REASON_CHARACTERS]
            )
        parts = ", ".join(f"{name} {value:g}" for name, value in reply["metrics"].items())
        right = reward >= self.options.right_from
        verdict = Verdict.CORRECT if right else Verdict.INCORRECT
        return Grade(verdict, f"rubric: {parts}"[:_REASON_CHARACTERS], float(reward))

    def without_answer(self, problem: Problem, text: str) -> str | None:
        """Hide the gold, as it is written, in an agent's words."""
        return without_gold(text, problem.gold) if problem.gold.strip() else None

    def gold_response(self, problem: Problem) -> str:
        """Return '': in what form an environment wants its answer, it does not say."""
        return ""

    def close(self) -> None:
        """End the processes. Closing twice is harmless."""
        self._pool.close()

    def _loaded(self, split: str) -> list[Problem]:
        try:
            self._pool.greeting()
        except OutsideError as error:
            raise TaskError(f"{self._where} cannot be loaded: {error}{self._hint(str(error))}") from error
        found: list[Problem] = []
        asked = {"do": "rows", "split": split, "count": ROWS_AT_ONCE}
        while True:
            try:
                reply = self._pool.ask_now({**asked, "start": len(found)}, LOAD_S)
            except OutsideError as error:
                raise TaskError(f"{self._where} cannot be loaded: {error}") from error
            if "error" in reply:
                raise TaskError(f"{self._where} cannot be loaded: {reply['error']}")
            found += [
                self._problem(split, row, len(found) + index) for index, row in enumerate(reply["rows"])
            ]
            if len(found) >= reply["total"] or not reply["rows"]:
                return found

    def _hint(self, error: str) -> str:
        """Return how to install verifiers, where it was not even imported."""
        if "Error: " in error and not error.startswith(("ModuleNotFoundError", "ImportError")):
            return ""
        return (
            f"; task.options.interpreter = {self.options.interpreter!r} is to name a Python with verifiers: "
            f"{_INSTALL}"
        )

    def _problem(self, split: str, row: Mapping[str, Any], index: int) -> Problem:
        identity = f"{self.options.environment}/{split}/{index}"
        try:
            turns = turns_of(row, "prompt")
        except ValueError as error:
            raise TaskError(f"{self._where}, {split} row {index}: {error}") from error
        self._rows[identity] = row
        gold = row.get("answer")
        return Problem(
            id=identity,
            text=turns[-1][1],
            gold="" if gold is None else str(gold),
            turns=turns if len(turns) > 1 else (),
            place=f"{self._where}, {split} row {index}",
            row={"id": identity, **row},
        )

    @property
    def _where(self) -> str:
        own = "".join(f", {name} = {value!r}" for name, value in self.options.arguments.items())
        return f"task.options.environment = {self.options.environment!r}{own}"


def _make(settings: TaskSettings, sandbox: SandboxSettings) -> VerifiersTask:
    return VerifiersTask(options_of(settings), settings.grade_workers, settings.reward_timeout_s)


VERIFIERS_SPEC = TaskSpec(
    name="verifiers",
    title="An environment of verifiers",
    make=_make,
    kind="verifiers",
    source="an environment's own rows",
    options=OPTIONS,
    open_options=True,
    notes=("Environments with a single turn, without tools; group rewards are refused.",),
)
