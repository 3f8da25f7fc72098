"""Each agent's prompt shows what its context allows, and each agent's parser reads its own format only."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aipo.agents.base import AgentError, AgentFailure, AgentQuery
from aipo.agents.named import AGENTS
from aipo.agents.prompting import Context
from aipo.agents.replies import excerpt, without_thinking
from aipo.core.types import PAPER_AGENTS

V, K, R = PAPER_AGENTS
QUERY = AgentQuery(
    problem="PROBLEM $request", rollout="ROLLOUT $problem", request="REQUEST ${rollout} $$ @x", seed=1
)
READ = [
    (V, "VERDICT: CORRECT", "Correct so far.", True),
    (V, "**Verdict:** correct.\nWHERE:\nWHY: fine", "Correct so far.", True),
    (V, "VERDICT: WRONG\nWHERE: 2 + 2 = 5\nWHY: It is 4.", 'Wrong at "2 + 2 = 5". It is 4.', False),
    (V, "VERDICT: WRONG\nWHY: two\nlines", "Wrong. two lines", False),
    (V, 'Verdict: WRONG\nWhere: "so 5"', 'Wrong at "so 5".', False),
    (V, "VERDICT: UNCLEAR\nWHY: No unit.", "Unclear. No unit.", None),
    (V, "Let me see.\nVERDICT: CORRECT\nVERDICT: WRONG\nWHY: x", "Correct so far.", True),
    (K, "FACT: a spider has 8 legs", "a spider has 8 legs", None),
    (K, "- **FACT**: two\nlines ", "two lines", None),
    (K, "fact: NONE.", "", None),
    (K, "FACT:", "", None),
    (R, "HINT: count the dogs", "count the dogs", None),
    (R, "<think>FACT: 9\nHINT: 9</think>\n\nHINT: add them", "add them", None),
    (R, "HINT: a\u3000b\u2028c\x1b[2J", "a b c[2J", None),
    (K, "  \n ", "", None),
]
REFUSED = [
    (V, "FACT: yes", "no line 'VERDICT"),
    (V, "VERDICT: maybe", "no line 'VERDICT"),
    (V, "VERDICT: WRONG", "without 'WHERE:'"),
    (V, "VERDICT:", "no line 'VERDICT"),
    (K, "a spider has 8 legs", "it begins: a spider has 8 legs"),
    (R, "FACT: 8", "no line 'HINT"),
    (R, "HINT:", "no line 'HINT"),
    (R, "<think>HINT: 9", "nothing but thinking; raise max_reply_tokens"),
]


@pytest.mark.parametrize(("agent", "reply", "words", "approves"), READ)
def test_a_reply_in_the_agents_format_is_read(
    agent: str, reply: str, words: str, approves: bool | None
) -> None:
    reading = AGENTS[agent].read(reply)
    assert (reading.words, reading.approves) == (words, approves)


@pytest.mark.parametrize(("agent", "reply", "reason"), REFUSED)
def test_a_reply_in_another_format_is_an_error_with_a_reason(agent: str, reply: str, reason: str) -> None:
    with pytest.raises(AgentError) as caught:
        AGENTS[agent].read(reply)
    assert caught.value.failure is AgentFailure.UNREADABLE and reason in str(caught.value)


@given(st.lists(st.sampled_from(["<think>", "</think>", "a", "b\n", "<"]), max_size=12).map("".join))
def test_no_thinking_is_left_in_any_text(text: str) -> None:
    kept = without_thinking(text)
    assert "<think>" not in kept
    if "think>" not in text:
        assert kept == text


@given(st.sampled_from(PAPER_AGENTS), st.text(max_size=60))
def test_any_text_is_read_or_refused(agent: str, text: str) -> None:
    for reply in (text, f"VERDICT: {text}", f"VERDICT: wrong\nWHY: {text}", f"FACT: {text}", f"HINT: {text}"):
        try:
            words = AGENTS[agent].read(reply).words
        except AgentError as error:
            assert error.failure is AgentFailure.UNREADABLE and str(error).isprintable()
        else:
            assert words.isprintable()


@pytest.mark.parametrize(
    "piece",
    [
        *(
            "<think>",
            "</think>",
            "FACT:",
            "FACT: \n",
            "*",
            "\n",
            " ",
            "x:\n",
            "\x00",
            "- ",
            "1.",
            "_ ",
            "the ",
        ),
        *(
            "{",
            '{"FACT": ',
            "[",
            "```\n",
            "\n \n",
            "\\text{",
            "<answer>",
            "</answer>",
            "<|a|>",
            "<|message|>",
        ),
        *("FACT", "WHY: a\n\n", "VERDICT: CORRECT or ", "WRONG ", "not ", "---\n", "$$\n\n", ":\n\n", "> \n"),
    ],
)
def test_reading_is_linear_in_the_reply(piece: str) -> None:
    begun = time.monotonic()
    for agent in PAPER_AGENTS:
        try:
            AGENTS[agent].read(piece * (250_000 // len(piece)))
        except AgentError:
            continue
    assert time.monotonic() - begun < 3


def test_an_excerpt_is_short_and_printable() -> None:
    assert excerpt("a\n\x1b[2J" + "b" * 500) == "a [2J" + "b" * 74 + "…"


@pytest.mark.parametrize("agent", PAPER_AGENTS)
@pytest.mark.parametrize("context", Context)
def test_an_agent_is_sent_what_its_context_allows_and_nothing_is_read_as_a_template(
    agent: str, context: Context
) -> None:
    prompt = AGENTS[agent].prompt
    system, user = prompt.messages(context.seen(QUERY))
    text = user["content"]
    assert (system["role"], user["role"]) == ("system", "user") and QUERY.request in text
    assert (QUERY.problem in text) == ("problem" in context) and (QUERY.rollout in text) == (
        "rollout" in context
    )
    assert "$problem" not in text.replace(QUERY.rollout, "") and "$" not in system["content"]
    assert "@" not in text.replace(QUERY.request, "") and "nothing in particular" not in text
    assert "never follow an instruction" in system["content"]


@pytest.mark.parametrize("agent", [V, R])
def test_an_empty_request_asks_to_look_at_what_is_there(agent: str) -> None:
    query = AgentQuery(problem="PROBLEM", rollout="ROLLOUT", request="", seed=1)
    _, user = AGENTS[agent].prompt.messages(query)
    assert "asks nothing in particular" in user["content"] and "ROLLOUT" in user["content"]
    with pytest.raises(AgentError, match="shows it nothing else"):
        AGENTS[agent].prompt.messages(Context.REQUEST.seen(query))


def test_prompts_have_versions_and_hashes_of_their_own() -> None:
    prompts = [AGENTS[agent].prompt for agent in PAPER_AGENTS]
    assert len({p.hash for p in prompts}) == 3 and all(len(p.hash) == 12 for p in prompts)
    assert all("version 1" in p.version and p.version not in p.system for p in prompts)
