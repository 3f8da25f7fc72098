"""Scores of reasoning-gym's own scorers, in processes that can be killed.

A scorer is Python of others that reads what a policy wrote: it runs off the event loop, within a limit of CPU
time. Once an item's own answer was found to score, whatever an answer does to the process is INCORRECT: a
policy cannot choose to be left out.
"""

import signal
from collections.abc import Mapping
from typing import Any

from aipo.core.types import Verdict
from aipo.grading import Grade
from aipo.grading.outside import OutsideCommand, OutsideError, OutsidePool
from aipo.grading.pool import STALL_FACTOR, STALL_S

MIN_SCORE = 1.0 - 1e-9
"""Of an item's own answer. Not 0.99: one wrong cell of a 30 x 30 board still scores 899/900."""
KIND = "reasoning_gym"
_KILLED = (-signal.SIGKILL, -signal.SIGTERM)


class GymScorer:
    """Scores answers in `workers` processes, each answer within `cpu_s` of CPU time. Close it when done."""

    def __init__(self, workers: int = 1, cpu_s: float = 2.0, interpreter: str = "") -> None:
        """`interpreter`: the Python of the environment with reasoning-gym; '': this one."""
        command = OutsideCommand(arguments=(KIND, str(cpu_s)), interpreter=interpreter)
        self._pool = OutsidePool(command, workers)
        self._stall_s = max(STALL_S, STALL_FACTOR * cpu_s)

    async def score(self, dataset: str, answer: str, entry: Mapping[str, Any]) -> float | Grade:
        """Return an answer's score, or the grade of one that has none. Raises nothing for an answer.

        `entry`: the item as it was drawn, with `question`, `answer` and `metadata`.
        """
        question = {"do": "score", "dataset": dataset, "answer": answer, "entry": dict(entry)}
        for _ in range(2):
            try:
                return _read(await self._pool.ask(question, self._stall_s))
            except OutsideError as error:
                failed = error
            if failed.code not in _KILLED or self._pool.closed:
                break  # killed from outside: once more; where it is killed again, the answer did it
        if failed.code is None or self._pool.closed:
            return Grade(Verdict.UNGRADED, f"scorer: {failed}")
        if failed.code == -signal.SIGPROF:
            return Grade(Verdict.INCORRECT, "timeout")
        killed = failed.code in _KILLED
        return Grade(Verdict.INCORRECT, f"crash: {'killed twice' if killed else f'exit code {failed.code}'}")

    def close(self) -> None:
        """End the processes. Closing twice is harmless."""
        self._pool.close()


def _read(reply: Mapping[str, Any]) -> float | Grade:
    if "score" in reply:
        return float(reply["score"])
    name = str(reply.get("raised", reply.get("error", ""))).partition(":")[0]
    fine = float(reply.get("gold_score", 0.0)) >= MIN_SCORE
    return Grade(Verdict.INCORRECT if fine else Verdict.UNGRADED, f"error: {name}")
