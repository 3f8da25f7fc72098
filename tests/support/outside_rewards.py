"""Rewards from outside the package: of a response, the problem's row and the rollout."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from aipo.rollout.reward import RewardedRollout

SEEN: list[tuple[str, dict[str, Any], RewardedRollout]] = []
"""What `spread` was called with."""


def spread(response: str, row: Mapping[str, Any], rollout: RewardedRollout) -> float:
    """Give a number between 0 and 1 that hangs on the response alone."""
    SEEN.append((response, dict(row), rollout))
    return (sum(response.encode()) % 97) / 96


async def brevity(response: str, row: Mapping[str, Any], rollout: RewardedRollout) -> float:
    """Give less to a rollout that asks or writes more."""
    await asyncio.sleep(0)
    return 1.0 - rollout.policy_tokens / 100 - len(rollout.consultations)


def none(response: str, row: Mapping[str, Any], rollout: RewardedRollout) -> None:
    """Never tell."""
    return None


def raises(response: str, row: Mapping[str, Any], rollout: RewardedRollout) -> float:
    """Fail as a user's bug does."""
    return float(row["no such column"])


def leaves(response: str, row: Mapping[str, Any], rollout: RewardedRollout) -> float:
    """Try to end the process."""
    raise SystemExit(3)


def nan(response: str, row: Mapping[str, Any], rollout: RewardedRollout) -> float:
    """Give no number."""
    return float("nan")


def words(response: str, row: Mapping[str, Any], rollout: RewardedRollout) -> str:
    """Give a text."""
    return "0.5"


def sleeps(response: str, row: Mapping[str, Any], rollout: RewardedRollout) -> float:
    """Hang where Python cannot be interrupted, for a while."""
    time.sleep(3)
    return 1.0


def spins(response: str, row: Mapping[str, Any], rollout: RewardedRollout) -> float:
    """Hang in Python."""
    while True:
        pass


async def waits(response: str, row: Mapping[str, Any], rollout: RewardedRollout) -> float:
    """Hang at an await."""
    await asyncio.Event().wait()
    return 1.0


async def cancelled(response: str, row: Mapping[str, Any], rollout: RewardedRollout) -> float:
    """Cancel itself, as a library may."""
    raise asyncio.CancelledError


def half(response: str, row: Mapping[str, Any], rollout: RewardedRollout) -> float:
    """Give the same to all."""
    return 0.5
