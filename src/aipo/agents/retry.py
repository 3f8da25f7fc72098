"""The one retry policy of agents behind a server.

No wait goes past the consultation's deadline: what cannot be tried again in time fails at once.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from random import Random

from openai import APIConnectionError, APIStatusError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

RETRIED_STATUS = frozenset({408, 409, 429})
LONGEST_WAIT_S = 20.0


class TooLongError(Exception):
    """A response is longer than it may be; another attempt would not be shorter."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and how long after."""

    retries: int
    first_wait_s: float
    """Longest wait before the second attempt; doubled for each further one."""

    def attempts(
        self, deadline: float, seed: int, passing: Callable[[BaseException], bool] | None = None
    ) -> AsyncRetrying:
        """Return tenacity's loop up to a deadline of `time.monotonic()`; the last error is raised.

        `passing`: which errors another attempt may not meet; without it, `is_passing` says so.
        """
        wait = self._wait(Random(seed))

        def stop(state: RetryCallState) -> bool:
            too_late = time.monotonic() + (state.upcoming_sleep or 0.0) >= deadline
            return state.attempt_number > self.retries or too_late

        return AsyncRetrying(
            retry=retry_if_exception(passing or is_passing), wait=wait, stop=stop, reraise=True
        )

    def _wait(self, rng: Random) -> Callable[[RetryCallState], float]:
        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            stated = retry_after_s(error) if error else None
            # Full jitter: rollouts that failed together must not come back together.
            longest = min(self.first_wait_s * 2 ** (state.attempt_number - 1), LONGEST_WAIT_S)
            return stated if stated is not None else longest * rng.random()

        return wait


def is_passing(error: BaseException) -> bool:
    """Whether another attempt may fare better: a lost connection, 408, 409, 429 or 5xx."""
    if isinstance(error, APIStatusError):
        return error.status_code in RETRIED_STATUS or error.status_code >= 500
    return isinstance(error, APIConnectionError)


def retry_after_s(error: BaseException) -> float | None:
    """Return the seconds that a server asks to wait (a number or a date); None where it does not say."""
    if not isinstance(error, APIStatusError):
        return None
    stated = error.response.headers.get("retry-after", "")
    try:
        seconds = float(stated)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(stated).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if not math.isnan(seconds) else None
