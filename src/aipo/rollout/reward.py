"""Rewards of one's own: functions named in `task.reward`, each call within a deadline.

A function is called with what the policy wrote, the problem's row and the rollout, and returns a number, or
None where it cannot tell. Whatever else it does (an exception, NaN, no end) makes the rollout UNGRADED with a
reason, and no other rollout is affected. Not stopped is code that holds Python's lock and never gives it
back, such as a regular expression that backtracks without end.
"""

import asyncio
import ctypes
import inspect
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import isfinite
from queue import SimpleQueue
from typing import Any, Protocol

from aipo.config.settings import TaskSettings
from aipo.core.registry import Registry
from aipo.core.rewards import REWARD
from aipo.core.types import Condition, Source, StopReason, Verdict
from aipo.grading import Grade
from aipo.rollout.episode import Consultation, Rollout
from aipo.tasks.base import Problem

LARGEST = 1e6
"""Of a reward's absolute value: beyond it, advantages and their squares lose their digits in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardedRollout:
    """What a reward sees of a rollout beside its text."""

    condition: Condition
    verdict: Verdict
    """The task's own; UNGRADED where it has none."""
    reason: str
    """Why the task graded so."""
    response: str
    """The assistant's whole turn, agents' words included, without the end token."""
    stop: StopReason
    """`LENGTH`: the response was cut."""
    consultations: tuple[Consultation, ...]
    """Each with its agent, request, outcome and reply, in order."""
    sources: tuple[Source, ...]
    """Who wrote each token of the response, the end token included."""

    @property
    def tokens(self) -> int:
        """All tokens of the response."""
        return len(self.sources)

    @property
    def policy_tokens(self) -> int:
        """Tokens that the policy wrote."""
        return self.sources.count(Source.POLICY)

    @property
    def feedback_tokens(self) -> int:
        """Tokens of agents' words, and of the tags around them."""
        return self.sources.count(Source.FEEDBACK)


Value = float | None
RewardFunction = Callable[[str, Mapping[str, Any], RewardedRollout], Value | Awaitable[Value]]
"""(what the policy wrote, the problem's row, the rollout) -> a number, or None where it cannot tell; may be a
coroutine function. The row has the columns of the problem's file, and `id`, `problem`, `answer`, `stratum`
and `solution` where the file has no column of that name."""

TASK_REWARDS: Registry[RewardFunction] = Registry("task.reward", callable, "aipo.task_rewards")
TASK_REWARDS.register("verdict", lambda response, row, rollout: REWARD.get(rollout.verdict))


class Rewarding(Protocol):
    """Turns the task's grade of a rollout into one with a reward."""

    async def grade(self, problem: Problem, made: Rollout, condition: Condition, grade: Grade) -> Grade:
        """Return it; UNGRADED where there is no reward."""
        ...


@dataclass(frozen=True, slots=True)
class WeighedGrade(Grade):
    """A grade whose reward is the sum of what several functions gave."""

    parts: tuple[tuple[str, float], ...] = ()
    """Names and numbers, not yet weighed."""


def parts_of(grade: Grade) -> tuple[tuple[str, float], ...]:
    """Return what each of several functions gave; nothing where there were not several."""
    return grade.parts if isinstance(grade, WeighedGrade) else ()


class RewardError(Exception):
    """A function gave no reward; the message says why."""


class _Thread:
    """Runs functions that are no coroutines, one call at a time, off the event loop.

    A call that passes its deadline is abandoned with its thread, and those that wait get another one.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._current: threading.Thread | None = None
        self._running: Callable[[], None] | None = None
        self._lock = threading.Lock()
        """Of the two above: a thread that is told to end is in the call that has hung, and takes no other."""

    async def call(self, function: Callable[[], Any], timeout_s: float) -> Any:
        """Return what the call returns. Raises what it raises, and `TimeoutError`."""
        loop = asyncio.get_running_loop()
        begun: asyncio.Future[None] = loop.create_future()
        ended: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()

        def settle(which: asyncio.Future[Any], what: Any) -> None:
            if not which.done():
                which.set_result(what)

        def run() -> None:
            said: tuple[Any, BaseException | None]
            with suppress(RuntimeError):  # the loop was closed: nobody waits any more
                loop.call_soon_threadsafe(settle, begun, None)
                try:
                    said = function(), None
                except Exception as error:
                    said = None, error
                except BaseException as error:  # an exit in a user's function ends its call alone
                    said = None, RewardError(repr(error))
                loop.call_soon_threadsafe(settle, ended, said)

        self._calls.put(run)
        if self._current is None:
            self._start()
        await begun  # each call before it has a deadline
        try:
            async with asyncio.timeout(timeout_s):
                value, error = await ended
        except TimeoutError:
            self._abandon(run)
            raise
        if error is not None:
            raise error
        return value

    def _start(self) -> None:
        self._current = threading.Thread(target=self._run, name="reward", daemon=True)
        self._current.start()

    def _run(self) -> None:
        own = threading.current_thread()
        while True:
            call = self._calls.get()
            with self._lock:
                self._running = call
            call()
            with self._lock:
                if self._current is not own:
                    return
                self._running = None

    def _abandon(self, call: Callable[[], None]) -> None:
        """Leave the thread to a call that still runs in it, and have it end as soon as Python lets it."""
        with self._lock:
            if self._running is not call or self._current is None:
                return
            hung = ctypes.c_ulong(self._current.ident or 0)
            self._start()
            # A loop in Python ends with this; a sleep or a request in C ends when it returns.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(hung, ctypes.py_object(SystemExit))


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardRule:
    """The functions of `task.reward`, weighed and added up, and the verdict that their sum may decide."""

    functions: Mapping[str, RewardFunction]
    weights: Mapping[str, float]
    threshold: float | None
    """CORRECT from here on; None: the task's verdict stays."""
    timeout_s: float
    _thread: _Thread = field(default_factory=_Thread, repr=False)

    async def grade(self, problem: Problem, made: Rollout, condition: Condition, grade: Grade) -> Grade:
        """Return the task's grade with a reward; UNGRADED where there is none. Raises nothing of theirs."""
        if grade.verdict is Verdict.UNGRADED and (self.threshold is None or "verdict" in self.functions):
            return grade
        stream = made.stream
        seen = RewardedRollout(
            condition=condition,
            verdict=grade.verdict,
            reason=grade.reason,
            response=made.response,
            stop=made.stop,
            consultations=made.consultations,
            sources=tuple(stream.sources[stream.prompt_length :]),
        )
        text, names = made.policy_text, list(self.functions)
        found = await asyncio.gather(*(self._value(name, text, row_of(problem), seen) for name in names))
        if failed := next((each for each in found if isinstance(each, str)), ""):
            return Grade(Verdict.UNGRADED, f"reward: {failed}")
        values = [float(each) for each in found]
        total = sum(self.weights[name] * value for name, value in zip(names, values, strict=True))
        verdict = grade.verdict
        if self.threshold is not None:
            verdict = Verdict.CORRECT if total >= self.threshold else Verdict.INCORRECT
        reason = grade.reason if self.threshold is None else "reward"
        if len(names) == 1:
            return Grade(verdict, reason, total)
        return WeighedGrade(verdict, reason, total, tuple(zip(names, values, strict=True)))

    async def _value(
        self, name: str, text: str, row: Mapping[str, Any], seen: RewardedRollout
    ) -> float | str:
        """Return one function's number, or why there is none."""
        function = self.functions[name]
        try:
            if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
                found = function(text, row, seen)
            else:
                found = await self._thread.call(lambda: function(text, row, seen), self.timeout_s)
            if inspect.isawaitable(found):
                async with asyncio.timeout(self.timeout_s):
                    found = await found
            return finite(found)
        except TimeoutError:
            return f"{name}: no number within {self.timeout_s:g} s"
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the run itself is ending
            return f"{name}: {error!r}"
        except RewardError as error:
            return f"{name}: {error}"
        except Exception as error:  # a bug in a user's reward is not a reward
            return f"{name}: {error!r}"


def finite(value: object) -> float:
    """Return a reward as a float; of numpy and torch too. Raises `RewardError` for what is none."""
    if value is None:
        raise RewardError("it returned None")
    if isinstance(value, str | bytes):
        raise RewardError(f"{value!r:.60} is no number")
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise RewardError(f"{type(value).__name__} is no number") from error
    if not isfinite(number) or abs(number) > LARGEST:
        raise RewardError(f"{number:g} is no reward; at most {LARGEST:g}")
    return number


def row_of(problem: Problem) -> dict[str, Any]:
    """Return a problem's row: its columns, and what a task without columns knows of it."""
    own = {name: getattr(problem, name) for name in ("id", "stratum", "solution")}
    return {**own, "problem": problem.text, "answer": problem.gold, **problem.row}


def reward_rule(settings: TaskSettings) -> RewardRule | None:
    """Return what `task.reward` names; None where it names nothing. Raises `RegistryError`."""
    if not settings.reward:
        return None
    return RewardRule(
        functions={name: TASK_REWARDS[name] for name in settings.reward},
        weights=settings.reward,
        threshold=settings.reward_threshold,
        timeout_s=settings.reward_timeout_s,
    )
