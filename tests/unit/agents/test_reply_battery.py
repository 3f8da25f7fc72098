"""Replies as models write them, each with what it means (`data/reply_battery.jsonl`): 95 % are read as meant.

The first 112 were labelled before the readers were looked at, which read 57 of them as meant; each later look
(43 and 27 replies) when the readers had been mended for those before, and read 32 and 22 of them. Not read
now: labels in another language than the prompt's, and a verdict that is taken back, for the first one counts.

`meant` is a verdict, `words`, `none` (nothing to say) or `unreadable` (it does not answer, and must not reach
the policy); `holds` are words that must reach the policy, `lacks` words that must not.
"""

import json
from collections import Counter
from pathlib import Path

import pytest

from aipo.agents.base import AgentError
from aipo.agents.named import AGENTS

ROWS = [
    json.loads(line)
    for line in (Path(__file__).parent / "data" / "reply_battery.jsonl").read_text("utf-8").splitlines()
]
VERDICTS = {"Correct": "correct", "Wrong": "wrong", "Unclear": "unclear"}
APPROVES = {"correct": True, "wrong": False, "unclear": None}


def misread(row: dict[str, object]) -> str:
    """Return how a reply is read where that is not what it means, else ''."""
    agent, meant = str(row["agent"]), row["meant"]
    try:
        reading = AGENTS[agent].read(str(row["reply"]))
    except AgentError as error:
        return "" if meant == "unreadable" else f"unreadable: {error}"
    words = reading.words
    read = VERDICTS[words.split()[0].strip(".")] if agent == "verify" else "words" if words else "none"
    lost = [part for part in row["holds"] if part not in words]  # type: ignore[attr-defined]
    debris = [part for part in row["lacks"] if part in words]  # type: ignore[attr-defined]
    if read != meant or lost or debris or reading.approves is not APPROVES.get(read):
        return f"{read}, {words!r}, lost {lost}, debris {debris}"
    return ""


def test_the_battery_is_large_and_of_every_kind() -> None:
    assert len(ROWS) >= 180 and len({row["reply"] for row in ROWS}) == len(ROWS)
    assert min(Counter(row["agent"] for row in ROWS).values()) >= 20
    assert len({row["kind"] for row in ROWS}) >= 12


def test_at_least_95_of_100_replies_are_read_as_meant() -> None:
    wrong = [(row, how) for row in ROWS if (how := misread(row))]
    shown = "\n".join(f"{row['agent']} {row['kind']} {row['reply']!r}: {how}" for row, how in wrong)
    assert len(wrong) <= 0.05 * len(ROWS), f"{len(wrong)} of {len(ROWS)} misread:\n{shown}"


@pytest.mark.parametrize("row", [row for row in ROWS if row["meant"] == "unreadable"])
def test_what_is_no_answer_never_reaches_the_policy(row: dict[str, object]) -> None:
    assert misread(row) == ""
