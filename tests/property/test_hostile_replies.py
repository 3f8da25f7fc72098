"""Whatever a server or an agent's model writes is read, or refused as unreadable; nothing raises or stalls.

`AIPO_FUZZ_EXAMPLES` makes it look longer; scripts/fuzz.sh for a given time.
"""

import json
import os
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from aipo.agents.base import AgentError, AgentFailure
from aipo.agents.completions import counts_of, embedded_error, words_of
from aipo.agents.named import AGENTS
from aipo.core.types import PAPER_AGENTS

EXAMPLES = int(os.environ.get("AIPO_FUZZ_EXAMPLES", "300"))
PIECES = (
    *(
        "VERDICT",
        "WHERE",
        "WHY",
        "FACT",
        "HINT",
        "verdict",
        ":",
        "：",
        " = ",
        " - ",
        "|",
        "\n",
        "\n\n",
        "\n---\n",
    ),
    *(
        "CORRECT",
        "WRONG",
        "UNCLEAR",
        "NONE",
        " or ",
        "not ",
        "partially ",
        "**",
        "__",
        "# ",
        "> ",
        "1. ",
        "- ",
    ),
    *("```", "```json\n", "{", "}", '"', ", ", "null", "[", "]", r"\textbf{", r"\boxed{", "$", "$$\n"),
    *(
        "<think>",
        "</think>",
        "[THINK]",
        "</answer>",
        "<answer>",
        "<|im_end|>",
        "<|message|>",
        "<|",
        "I'm sorry, ",
    ),
    *("\0", "\x1b[2J", "\u2028", "\ud800", "\u202e", "判定", "3 + 4 = 8", "x" * 40),
)
REPLIES = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=60).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | REPLIES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
MESSAGE = st.dictionaries(
    st.sampled_from(("content", "reasoning_content", "refusal", "tool_calls", "text", "type", "role")), VALUES
)
CHOICE = st.dictionaries(st.sampled_from(("message", "finish_reason", "error", "index")), MESSAGE | VALUES)
BODIES = st.dictionaries(
    st.sampled_from(("choices", "usage", "error", "model")), st.lists(CHOICE, max_size=2) | CHOICE | VALUES
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(REPLIES, st.sampled_from(PAPER_AGENTS))
def test_every_reply_is_read_or_refused_at_once(reply: str, agent: str) -> None:
    start = time.process_time()
    try:
        reading = AGENTS[agent].read(reply)
    except AgentError as error:
        assert error.failure is AgentFailure.UNREADABLE and len(str(error)) < 400
    else:
        assert (
            "\n" not in reading.words
            and "\0" not in reading.words
            and len(reading.words) < 2 * len(reply) + 99
        )
    assert time.process_time() - start < 1.0


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    BODIES.map(json.dumps).map(str.encode)
    | st.binary(max_size=40)
    | REPLIES.map(lambda s: s.encode("utf-8", "replace"))
)
def test_every_body_of_a_response_is_read_or_refused_at_once(body: bytes) -> None:
    start = time.process_time()
    embedded_error(body)
    counts = counts_of(body)
    assert all(isinstance(count, int) and count >= 0 for count in counts)
    try:
        assert isinstance(words_of(body), str)
    except AgentError as error:
        assert len(str(error)) < 400
    assert time.process_time() - start < 1.0
