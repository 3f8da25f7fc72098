"""Rewards of one's own: functions and judges named in `task.reward`, each call within a deadline.

A function is called with what the policy wrote, the problem's row and the rollout, and returns a number, or
None where it cannot tell. Whatever else it does (an exception, NaN, no end) makes the rollout UNGRADED with a
reason, and no other rollout is affected. Not stopped is code that holds Python's lock and never gives it
back, such as a regular expression that backtracks without end.
"""

import asyncio
import ctypes
import inspect
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import isfinite
from queue import SimpleQueue
from typing import Any, Protocol

from aipo.config.settings import TaskSettings
from aipo.core.registry import Registry
from aipo.core.rewards import REWARD
from aipo.core.types import Condition, Verdict
from aipo.grading import Grade
from aipo.rollout.episode import Rollout
from aipo.rollout.rewarded import Judge, JudgeMaker, Judgement, MakeAgent, RewardedRollout, RewardFunction
from aipo.rollout.rubric import NAME, RUBRIC_JUDGE
from aipo.tasks.base import Problem

LARGEST = 1e6
"""Of a reward's absolute value: beyond it, advantages and their squares lose their digits in float32."""


def is_reward(found: object) -> bool:
    """Say whether something can stand behind a name of `task.reward`."""
    return isinstance(found, JudgeMaker | Judge) or callable(found)


TASK_REWARDS: Registry[RewardFunction | Judge | JudgeMaker] = Registry(
    "task.reward", is_reward, "aipo.task_rewards"
)
TASK_REWARDS.register("verdict", lambda response, row, rollout: REWARD.get(rollout.verdict))
TASK_REWARDS.register(NAME, RUBRIC_JUDGE)


class Rewarding(Protocol):
    """Turns the task's grade of a rollout into one with a reward."""

    async def grade(self, problem: Problem, made: Rollout, condition: Condition, grade: Grade) -> Grade:
        """Return it; UNGRADED where there is no reward."""
        ...


@dataclass(frozen=True, slots=True)
class WeighedGrade(Grade):
    """A grade whose reward is the sum of what several functions gave, or that a judge was asked for."""

    parts: tuple[tuple[str, float], ...] = ()
    """Names and numbers, not yet weighed; (): there was one."""
    judgements: tuple[tuple[str, Judgement], ...] = ()
    """What each judge said, also where nothing came of it."""


def parts_of(grade: Grade) -> tuple[tuple[str, float], ...]:
    """Return what each of several functions gave; nothing where there were not several."""
    return grade.parts if isinstance(grade, WeighedGrade) else ()


def judgements_of(grade: Grade) -> tuple[tuple[str, Judgement], ...]:
    """Return what judges said, by name; nothing where none was asked."""
    return grade.judgements if isinstance(grade, WeighedGrade) else ()


class RewardSetupError(ValueError):
    """The rewards cannot be made from the settings."""


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

    functions: Mapping[str, RewardFunction | Judge]
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
        asked = (self._value(name, problem, made.policy_text, seen) for name in self.functions)
        found = dict(zip(self.functions, await asyncio.gather(*asked), strict=True))
        said = tuple((n, each) for n, each in found.items() if isinstance(self.functions[n], Judge))
        if failed := next((f"{n}: {each.detail}" for n, each in found.items() if each.value is None), ""):
            return _graded(Verdict.UNGRADED, f"reward: {failed}", judgements=said)
        values = {name: each.value for name, each in found.items() if each.value is not None}
        total = sum(self.weights[name] * value for name, value in values.items())
        verdict, reason = grade.verdict, grade.reason
        if self.threshold is not None:
            verdict = Verdict.CORRECT if total >= self.threshold else Verdict.INCORRECT
            reason = "reward"
        parts = tuple(values.items()) if len(values) > 1 else ()
        return _graded(verdict, reason, total, parts, said)

    async def _value(self, name: str, problem: Problem, text: str, seen: RewardedRollout) -> Judgement:
        """Return one function's number, or why there is none."""
        function, row = self.functions[name], row_of(problem)
        try:
            if isinstance(function, Judge):
                return await function.judge(problem, text, seen)
            if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
                found = function(text, row, seen)
            else:
                found = await self._thread.call(lambda: function(text, row, seen), self.timeout_s)
            if inspect.isawaitable(found):
                async with asyncio.timeout(self.timeout_s):
                    found = await found
            return Judgement(value=finite(found))
        except TimeoutError:
            why = f"no number within {self.timeout_s:g} s"
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the run itself is ending
            why = repr(error)
        except RewardError as error:
            why = str(error)
        except Exception as error:  # a bug in a user's reward is not a reward
            why = repr(error)
        return Judgement(value=None, detail=why)


def _graded(
    verdict: Verdict,
    reason: str,
    reward: float | None = None,
    parts: tuple[tuple[str, float], ...] = (),
    judgements: tuple[tuple[str, Judgement], ...] = (),
) -> Grade:
    if not parts and not judgements:
        return Grade(verdict, reason, reward)
    return WeighedGrade(verdict, reason, reward, parts, judgements)


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


def reward_rule(settings: TaskSettings, make_agent: MakeAgent | None = None) -> RewardRule | None:
    """Return what `task.reward` names; None where it names nothing. Raises `ValueError`s.

    `make_agent`: makes whoever stands behind a judge; without it no judge can be named.
    """
    if not settings.reward:
        return None

    def made(name: str) -> RewardFunction | Judge:
        found = TASK_REWARDS[name]
        if not isinstance(found, JudgeMaker):
            return found
        if make_agent is None:
            raise RewardSetupError(f"task.reward names {name!r}, but nobody can be asked here; take it out")
        return found.make(settings, make_agent)

    return RewardRule(
        functions={name: made(name) for name in settings.reward},
        weights=settings.reward,
        threshold=settings.reward_threshold,
        timeout_s=settings.reward_timeout_s,
    )
