"""The grader process: math-verify behind a pipe, started by `pool` as `python -m aipo.grading.worker`.

One question, one reply; a question that does not end is the parent's to kill.

The library's own timeouts are off: they are alarms, which miss big-integer arithmetic and destroy the
caller's alarm (https://github.com/huggingface/Math-Verify/issues/65 and /issues/50).
"""

import json
import logging
import math
import resource
import sys
import time
from functools import lru_cache
from multiprocessing.connection import Connection
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

MEMORY_BYTES = 2 << 30
READY = b"ready"
# What sympy raises on odd input. RuntimeError covers RecursionError and NotImplementedError.
_FAILURES = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


@lru_cache(maxsize=256)
def _parse(latex: str) -> list[Any]:
    """Parse inline mathematics or a box; [] when it does not parse. Cached: rollouts share golds."""
    parsed: list[Any] = parse(
        latex,
        [LatexExtractionConfig(boxed_match_priority=0)],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
    )
    return parsed


def compare(gold: str, answer: str) -> str:
    """Return `equal`, `different`, `unparsed` or `gold: unparsed`; raises what sympy raises.

    >>> compare("1/2", "0.5")
    'equal'
    """
    if not (golds := _parse(f"${gold}$")):
        return "gold: unparsed"
    if not (answers := _parse(rf"\boxed{{{answer}}}")):
        return "unparsed"
    # The gold comes first: verify is not symmetric.
    same = verify(golds, answers, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True)
    return "equal" if same else "different"


def _limit(what: int, value: int) -> None:
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def serve(pipe: Connection, timeout_s: float) -> None:
    """Answer questions until the other end closes."""
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    compare("\\frac{1}{2}", "0.5")  # the first parse builds ANTLR's tables; no question should pay for that
    pipe.send_bytes(READY)
    while True:
        try:
            gold, answer = json.loads(pipe.recv_bytes())
        except EOFError:
            return
        # If the parent dies during a question nobody is left to kill us: the kernel then does, by CPU time.
        _limit(resource.RLIMIT_CPU, math.ceil(time.process_time() + timeout_s + 10))
        try:
            reply = compare(gold, answer)
        except _FAILURES as error:  # anything else ends this process, which the parent reads as a crash
            reply = f"error: {type(error).__name__}"
        pipe.send_bytes(reply.encode())


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    serve(Connection(int(sys.argv[1])), float(sys.argv[2]))
