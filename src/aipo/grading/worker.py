"""The grader process: `algebra` behind a pipe, started by `pool` as `python -m aipo.grading.worker`.

One question, one reply; before it, `GOLD` as soon as the gold alone was read and compared with itself. What
happens afterwards is the answer's doing.

The kernel ends a process that has used its CPU time, in the middle of big-integer arithmetic too, and also
when the parent is gone; a busy machine changes nothing.
"""

import json
import logging
import resource
import signal
import sys
from functools import lru_cache
from multiprocessing.connection import Connection

from aipo.grading.algebra import compare

MEMORY_BYTES = 2 << 30
READY, GOLD = b"ready", b"gold"
# What sympy raises on odd input. RuntimeError covers RecursionError and NotImplementedError.
_FAILURES = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError),
    ValueError,
)


@lru_cache(maxsize=512)
def problem_with(gold: str) -> str:
    """Return why nothing can be compared with a gold, '' where something can."""
    try:
        reply = compare(gold, gold)
    except _FAILURES as error:
        return f"gold: {type(error).__name__}"
    return reply if reply.startswith("gold") else ""


def serve(pipe: Connection, cpu_s: float) -> None:
    """Answer questions until the other end closes; each half of one may take `cpu_s` of CPU time."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    memory = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (memory, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    problem_with("\\frac{1}{2}")  # the first parse builds ANTLR's tables; no question should pay for that
    pipe.send_bytes(READY)
    while True:
        signal.setitimer(signal.ITIMER_PROF, 0)
        try:
            gold, answer = json.loads(pipe.recv_bytes())
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        reply = problem_with(gold)
        if not reply:
            pipe.send_bytes(GOLD)
            signal.setitimer(signal.ITIMER_PROF, cpu_s)
            try:
                reply = compare(gold, answer)
            except _FAILURES as error:  # anything else ends this process, which the parent reads as a crash
                reply = f"error: {type(error).__name__}"
        pipe.send_bytes(reply.encode())


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    serve(Connection(int(sys.argv[1])), float(sys.argv[2]))
