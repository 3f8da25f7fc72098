"""A rollout that consults by tool calls: what is sampled, what is inserted, and whose token is whose.

The policy's words are scripted (`support.engines.Script`); templates, codec and tokenizers are real.
"""

import asyncio
import json
from typing import Any

import pytest

from aipo.consult.limits import Limits
from aipo.consult.tool_codec import ToolCodec
from aipo.core.tokens import stripped_copy
from aipo.core.types import PAPER_AGENTS, Condition, LeakPolicy, SoloMode, Source, StopReason
from aipo.rollout.episode import ConsultContext, Rollout, RolloutSpec, rollout
from support.engines import Script
from support.episodes import AGENT_ERROR, ANSWERED, EMPTY, MALFORMED, REFUSED, Answering
from support.tool_templates import TEMPLATES, calls_of, tool_tokenizer

FAMILIES = pytest.mark.parametrize("family", TEMPLATES)
LIMITS = Limits(max_consultations=2, max_feedback_tokens=20, max_response_tokens=900)


def ids_of(family: str, text: str) -> list[int]:
    return list(tool_tokenizer(family).encode(text, add_special_tokens=False))


def text_of(family: str, ids: Any) -> str:
    return str(tool_tokenizer(family).decode(list(ids)))


def call(family: str, request: str = "legs of a spider?", agent: str = "knowledge") -> str:
    """Return a call as the policy writes it: with its turn's end where that is what ends a call."""
    end = str(tool_tokenizer(family).eos_token) if family == "llama" else ""
    return calls_of(family).written(agent, request) + end


def produce(
    family: str, text: str, agent: Answering | None = None, limits: Limits = LIMITS, **more: Any
) -> tuple[Rollout, Script]:
    script = Script(tool_tokenizer(family), ids_of(family, text))
    calls = calls_of(family)
    context = ConsultContext(
        protocol=calls,
        codec=ToolCodec(tool_tokenizer(family), calls),
        limits=limits,
        agents=dict.fromkeys(PAPER_AGENTS, agent or Answering()),
        agent_timeout_s=1.0,
        leak_policy=more.pop("leak_policy", LeakPolicy.ALLOW),
    )
    values: dict[str, Any] = {"id": "r", "condition": Condition.CONSULTING, "seed": 1, **more}
    prompt = tuple(ids_of(family, "how many?"))
    return asyncio.run(
        rollout(script, RolloutSpec(problem="spiders", prompt_ids=prompt, **values), context)
    ), script


def by_source(family: str, produced: Rollout) -> list[tuple[str, str]]:
    return [(s.source.name, text_of(family, s.ids)) for s in produced.stream.segments[1:]]


@FAMILIES
def test_a_call_is_answered_in_a_tools_message_and_the_policy_goes_on_in_its_next_turn(family: str) -> None:
    agent = Answering(lambda query: "It has 8.")
    produced, script = produce(family, f"A spider.\n{call(family)}So 8.", agent)
    end = str(tool_tokenizer(family).eos_token)
    reply = calls_of(family).texts.replies["knowledge"]
    before = reply.ended if family == "llama" else reply.before
    assert by_source(family, produced) == [
        ("POLICY", f"A spider.\n{call(family)}"),
        ("SCAFFOLD", before),
        ("FEEDBACK", "It has 8."),
        ("SCAFFOLD", reply.after),
        ("POLICY", f"So 8.{end}"),
    ]
    (consultation,) = produced.consultations
    assert (consultation.outcome, consultation.agent) == (ANSWERED, "knowledge")
    assert (consultation.request, consultation.reply) == ("legs of a spider?", "It has 8.")
    assert agent.asked[0].request == "legs of a spider?" and agent.asked[0].rollout == "A spider.\n"
    assert produced.stop is StopReason.END and produced.policy_text == f"A spider.\n{call(family)}So 8."
    # Nothing sampled is encoded again: what the engine saw is what is trained on.
    assert tuple(script.requests[-1].prefix_ids) == produced.stream.ids[: len(script.requests[-1].prefix_ids)]
    sampled = [i for completion in script.completions for i in completion.ids]
    policy = [i for s in produced.stream.segments if s.source is Source.POLICY for i in s.ids]
    assert policy == sampled


@FAMILIES
def test_the_text_is_what_the_template_makes_of_the_conversation(family: str) -> None:
    produced, _ = produce(family, f"{call(family)}So 8.", Answering(lambda query: 'It "has" 8.'))
    tokenizer, calls = tool_tokenizer(family), calls_of(family)
    function = {"name": "knowledge", "arguments": {"query": "legs of a spider?"}}
    turns = [
        {"role": "user", "content": "spiders"},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
        {"role": "tool", "name": "knowledge", "content": 'It "has" 8.'},
        {"role": "assistant", "content": "So 8."},
    ]
    clock = "{%- macro strftime_now(form) -%}today{%- endmacro -%}"
    whole = tokenizer.apply_chat_template(
        turns, tools=json.loads(calls.tools), tokenize=False, chat_template=clock + TEMPLATES[family]
    )
    assert str(whole).rstrip().endswith(produced.response + str(tokenizer.eos_token))


BAD = {
    "no JSON": lambda text: text.replace('"query":', "query"),
    "an unknown tool": lambda text: text.replace('"knowledge"', '"internet"'),
    "nothing asked": lambda text: text.replace("legs of a spider?", ""),
}


@FAMILIES
@pytest.mark.parametrize("spoil", BAD.values(), ids=BAD)
def test_a_bad_call_is_a_notice_and_nobody_is_asked(family: str, spoil: Any) -> None:
    agent = Answering()
    produced, _ = produce(family, f"A spider.\n{spoil(call(family))}So 8.", agent)
    (consultation,) = produced.consultations
    assert consultation.outcome is MALFORMED and not agent.asked and consultation.agent is None
    sources = [source for source, _ in by_source(family, produced)]
    assert sources == ["POLICY", "SCAFFOLD", "POLICY"]
    assert "request not understood" in by_source(family, produced)[1][1]
    assert produced.response.endswith("So 8.")


def test_a_call_that_the_turns_end_cuts_off_is_a_notice_behind_that_end() -> None:
    produced, _ = produce("qwen", '<tool_call>\n{"name": "verify"}<|im_end|>So 8.')
    (consultation,) = produced.consultations
    assert consultation.outcome is MALFORMED and consultation.detail == "<tool_call> is not closed"
    notice = by_source("qwen", produced)[1][1]
    assert notice.startswith("\n<|im_start|>user\n<tool_response>\nrequest") and "So 8." in produced.response


@FAMILIES
def test_failures_and_limits_are_outcomes(family: str) -> None:
    def behave(query: Any) -> Any:
        return {"a": RuntimeError("gone"), "b": ""}[query.request]

    text = call(family, "a") + call(family, "b") + call(family, "c") + "So 8."
    produced, _ = produce(family, text, Answering(behave))
    assert [c.outcome for c in produced.consultations] == [AGENT_ERROR, EMPTY, REFUSED]
    notices = [text for source, text in by_source(family, produced) if source == "SCAFFOLD"]
    said = ["agent unavailable", "no answer", "no consultations left"]
    assert all(words in notice for words, notice in zip(said, notices, strict=True))
    assert produced.stop is StopReason.END and produced.response.endswith("So 8.")


@FAMILIES
def test_a_copy_has_the_agents_words_without_call_and_wrapping(family: str) -> None:
    produced, _ = produce(family, f"A spider.\n{call(family)}So 8.", Answering(lambda query: "It has 8. "))
    copy = stripped_copy(produced.stream, produced.consult_spans, ids_of(family, "alone"))
    end = str(tool_tokenizer(family).eos_token)
    assert text_of(family, copy.ids) == f"aloneA spider.\nIt has 8. So 8.{end}"
    assert copy.count(Source.FEEDBACK) == len(copy) - copy.prompt_length


@FAMILIES
def test_no_room_for_a_reply_ends_the_rollout(family: str) -> None:
    text = f"A spider.\n{call(family)}"
    limits = Limits(2, 20, len(ids_of(family, text)) + 3)
    produced, _ = produce(family, text + "So 8.", limits=limits)
    assert produced.stop is StopReason.LENGTH
    assert [c.outcome for c in produced.consultations] in ([], [REFUSED])
    assert {source for source, _ in by_source(family, produced)} == {"POLICY"}


@FAMILIES
def test_solo_a_call_goes_unanswered_and_is_banned_where_it_is_to_be(family: str) -> None:
    agent = Answering()
    produced, script = produce(family, f"{call(family)}So 8.", agent, condition=Condition.SOLO)
    assert not produced.consultations and not agent.asked and not script.requests[0].stop
    assert len(script.requests) == 1 and produced.stop is StopReason.END
    how = {"condition": Condition.SOLO, "solo_mode": SoloMode.BANNED}
    _, script = produce(family, "So 8.", **how)
    (banned,) = script.requests[0].banned_sequences
    assert call(family).startswith(text_of(family, banned))


@FAMILIES
def test_the_leak_guard_hides_the_answer_in_a_tools_message(family: str) -> None:
    hide = lambda text: text.replace("8", "…") if "8" in text else None  # noqa: E731
    agent = Answering(lambda query: "It has 8 legs.")
    produced, _ = produce(family, f"{call(family)}So.", agent, hide_answer=hide, leak_policy=LeakPolicy.MASK)
    (consultation,) = produced.consultations
    assert consultation.leaked and consultation.reply == "It has … legs."
