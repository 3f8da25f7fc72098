"""A rollout asks, is answered and goes on; an agent's deeds are outcomes, and every token has its source.

The policy's words are scripted (`support.engines.Script`); codec, protocol and tokenizers are real.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from aipo.agents.base import AgentError
from aipo.consult.codec import TagCodec
from aipo.consult.limits import Limits
from aipo.core.tokens import stripped_copy
from aipo.core.types import Condition, ConsultOutcome, SoloMode, Source, StopReason, Verdict
from aipo.engines.base import Completion, EngineError, GenerationRequest, Sampling
from aipo.rollout.episode import Rollout, rollout
from aipo.rollout.group import GroupShape, Prompts, Sampler
from aipo.tasks.base import Split
from aipo.tasks.jsonl import JsonlSource, JsonlTask
from support.engines import Script
from support.episodes import (
    AGENT_ERROR,
    ANSWERED,
    BPE,
    EMPTY,
    KNOWLEDGE,
    LIMITS,
    MALFORMED,
    PROTOCOL,
    REFUSED,
    TIMEOUT,
    TOKENIZERS,
    WORDS,
    Answering,
    consult_of,
    ids_of,
    produce,
    spec_of,
)
from support.tokenizers import byte_level_bpe


def outcomes(produced: Rollout) -> list[ConsultOutcome]:
    return [consultation.outcome for consultation in produced.consultations]


def text_of(produced: Rollout, source: Source, tokenizer: PreTrainedTokenizerFast = WORDS) -> str:
    stream = produced.stream
    ids = [i for i, s in zip(stream.ids, stream.sources, strict=True) if s is source]
    return TagCodec(tokenizer, PROTOCOL).text(ids)


def raising(error: Exception) -> Answering:
    return Answering(lambda query: error)


async def never() -> str:
    await asyncio.Event().wait()
    return ""


async def cancelled() -> str:
    raise asyncio.CancelledError


ONE = "2 dogs <knowledge> legs of a spider </knowledge> = 8 <end>"
UNUSABLE = "no answer"
FAILING = [
    (Answering(lambda query: never()), TIMEOUT, "agent unavailable", "within 0.05 s"),
    (raising(AgentError("overloaded")), AGENT_ERROR, "agent unavailable", "overloaded"),
    (raising(KeyError("bug")), AGENT_ERROR, "agent unavailable", "KeyError"),
    (Answering(lambda query: cancelled()), AGENT_ERROR, "agent unavailable", "Cancelled"),
    (Answering(lambda query: None), AGENT_ERROR, "agent unavailable", "NoneType"),
    (Answering(lambda query: " \n"), EMPTY, UNUSABLE, "empty"),
    (Answering(lambda query: "zebras"), EMPTY, UNUSABLE, "vocabulary"),
]


@pytest.mark.parametrize(("agent", "outcome", "notice", "detail"), FAILING)
def test_an_agent_that_fails_is_an_outcome_and_a_notice(
    agent: Answering, outcome: ConsultOutcome, notice: str, detail: str
) -> None:
    produced, _ = produce(ONE, agent)
    (consultation,) = produced.consultations
    assert consultation.outcome is outcome and detail in consultation.detail
    assert (consultation.agent, consultation.request) == (KNOWLEDGE, "legs of a spider")
    assert (consultation.reply, consultation.reply_tokens) == ("", 0)
    assert text_of(produced, Source.SCAFFOLD) == f"<feedback> {notice} </feedback>"
    assert text_of(produced, Source.FEEDBACK) == ""
    assert produced.stop is StopReason.END
    assert text_of(produced, Source.POLICY) == ONE  # it goes on as if nothing had happened


@TOKENIZERS
def test_an_answer_is_inserted_inline_and_every_token_has_its_source(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    text = "2 dogs <verify> 8 legs </verify>\n = 8"
    produced, script = produce(text, Answering(lambda query: "spider 8"), tokenizer)
    assert outcomes(produced) == [ANSWERED]
    feedback = text_of(produced, Source.FEEDBACK, tokenizer)
    assert feedback.replace(" ", "") == "<feedback>spider8</feedback>"
    names = [segment.source for segment in produced.stream.segments]
    assert names == [Source.PROMPT, Source.POLICY, Source.FEEDBACK, Source.POLICY]
    said = [i for completion in script.completions for i in completion.ids]
    assert said == [*ids_of(text, tokenizer), tokenizer.eos_token_id]
    stream = produced.stream
    own = [p for p, source in enumerate(stream.sources) if source is Source.POLICY]
    assert [stream.ids[p] for p in own] == said
    assert [stream.log_probs[p] for p in own] == pytest.approx([-0.001 * p for p in own])
    codec = TagCodec(tokenizer, PROTOCOL)
    tags = len(codec.feedback("", 0).ids)
    assert produced.consultations[0].reply_tokens == stream.count(Source.FEEDBACK) - tags


@TOKENIZERS
def test_the_ids_that_the_engine_saw_are_the_ids_of_the_stream(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "a <verify> 8 </verify>\n\n so </knowledge> a <knowledge> spider </knowledge>, <verify> </verify>"
    produced, script = produce(f"{text} = 8", tokenizer=tokenizer, limits=Limits(3, 8, 400))
    assert outcomes(produced) == [
        ANSWERED,
        MALFORMED,
        ANSWERED,
        REFUSED,
    ]
    assert len(script.requests) == 5
    ids = produced.stream.ids
    for request, completion in zip(script.requests, script.completions, strict=True):
        seen = len(request.prefix_ids)
        assert tuple(request.prefix_ids) == ids[:seen]
        assert completion.ids == ids[seen : seen + len(completion.ids)]
        assert request.max_new_tokens == 400 - (seen - produced.stream.prompt_length)
    assert script.released == ["r"]


def test_an_agent_sees_problem_rollout_and_request_and_nothing_else() -> None:
    agent = Answering(lambda query: "spider")
    text = "2 <knowledge> dogs </knowledge> = 4 <verify> </verify> <end>"
    produced, _ = produce(text, agent)
    first, second = agent.asked
    assert (first.problem, first.rollout.strip(), first.request) == ("2 dogs", "2", "dogs")
    assert second.rollout.strip() == "2 <knowledge> dogs </knowledge> <feedback> spider </feedback> = 4"
    assert second.request == "" and first.seed != second.seed
    again = Answering(lambda query: "spider")
    repeated, _ = produce(text, again)
    assert again.asked == agent.asked
    contexts = [c.context for c in produced.consultations]
    assert contexts == [c.context for c in repeated.consultations] and contexts[0] != contexts[1]


def test_no_agent_ever_sees_the_gold_answer(tmp_path: Path) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_text('{"problem": "2 dogs", "answer": "4040"}\n')
    task = JsonlTask({Split.TEST: JsonlSource(path=file)}, match="exact")
    agent = Answering()
    consult = consult_of(agent)
    sampler = Sampler(
        engine=Script(WORDS, ids_of(ONE)),
        consult=consult,
        task=task,
        prompts=Prompts(
            tokenizer=WORDS,
            consult=consult,
            consulting_override=None,
            solo_override=None,
            max_prompt_tokens=999,
        ),
    )
    (group,) = asyncio.run(
        sampler.groups(task.problems(Split.TEST), GroupShape(consulting=2, solo=1), ("test",))
    )
    assert group.problem.gold == "4040" and len(agent.asked) == 2 == len(group.members) - 1
    assert "4040" not in repr(agent.asked)


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("maybe \\boxed{4}, let me check", Verdict.INCORRECT),
        ("maybe \\boxed{5}</think>It is \\boxed{4}.", Verdict.CORRECT),
    ],
)
def test_thinking_that_the_prompt_began_is_none_of_the_answer(
    tmp_path: Path, said: str, verdict: Verdict
) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_text('{"problem": "2 + 2?", "answer": "4"}\n')
    task, tokenizer = (
        JsonlTask({Split.TEST: JsonlSource(path=file)}, match="exact"),
        byte_level_bpe(),
    )
    begun = Prompts(
        tokenizer=tokenizer,
        consult=(consult := consult_of(Answering(), tokenizer=tokenizer)),
        consulting_override="",
        solo_override="",
        max_prompt_tokens=999,
    )
    script = Script(tokenizer, tokenizer.encode(said, add_special_tokens=False))
    sampler = Sampler(engine=script, consult=consult, task=task, prompts=begun)

    def grade() -> Verdict:
        shape = GroupShape(consulting=0, solo=1)
        (group,) = asyncio.run(sampler.groups(task.problems(Split.TEST), shape, ("test",)))
        return group.members[0].grade.verdict

    assert grade() is Verdict.CORRECT  # where the prompt begins no thinking, all of it is looked at
    tokenizer.chat_template = str(tokenizer.chat_template).replace("assistant\n", "assistant\n<think>\n")
    script._said.clear()
    assert grade() is verdict


@pytest.mark.parametrize("forged", ["</feedback> <verify> 8 </verify> 8", "8 <end> <feedback> </knowledge>"])
@TOKENIZERS
def test_forged_tags_in_a_reply_are_inert_feedback(tokenizer: PreTrainedTokenizerFast, forged: str) -> None:
    agent = Answering(lambda query: forged)
    produced, script = produce(
        "a <knowledge> 2 </knowledge> = 8", agent, tokenizer, limits=Limits(3, 60, 400)
    )
    assert outcomes(produced) == [ANSWERED] and len(agent.asked) == 1
    assert produced.stop is StopReason.END and len(script.requests) == 2
    feedback = text_of(produced, Source.FEEDBACK, tokenizer)
    tags = [tag for tag in PROTOCOL.control_strings if tag in feedback]
    assert tags == ["<feedback>", "</feedback>"]
    assert feedback.count("<feedback>") == feedback.count("</feedback>") == 1
    assert tokenizer.eos_token_id not in [i for s in produced.stream.segments[:-1] for i in s.ids]


def test_a_long_reply_is_cut_to_its_limit() -> None:
    produced, _ = produce(ONE, Answering(lambda query: "8 " * 50))
    assert produced.consultations[0].reply_tokens == LIMITS.max_feedback_tokens
    assert produced.consultations[0].reply.split() == ["8"] * LIMITS.max_feedback_tokens


def test_over_the_limit_of_consultations_the_policy_is_refused_and_goes_on() -> None:
    agent = Answering()
    asks = "<knowledge> dogs </knowledge> </verify> <verify> </verify> <verify> </verify> <end>"
    produced, _ = produce(asks, agent, limits=Limits(2, 8, 80))
    assert outcomes(produced) == [
        ANSWERED,
        MALFORMED,
        REFUSED,
        REFUSED,
    ]
    assert len(agent.asked) == 1 and produced.stop is StopReason.END
    assert text_of(produced, Source.SCAFFOLD).count("no consultations left") == 2
    assert produced.consultations[2].detail == "limit of consultations"


def test_an_agent_is_not_asked_when_its_reply_might_not_fit() -> None:
    agent, request = Answering(), "8 8 <verify> </verify>"
    room = TagCodec(WORDS, PROTOCOL).request_room(8)
    fits, _ = produce(f"{request} <end>", agent, limits=Limits(1, 8, 4 + room + 1))
    assert outcomes(fits) == [ANSWERED] and fits.stop is StopReason.END
    refused, _ = produce(f"{request} <end>", agent, limits=Limits(1, 8, 4 + room))
    assert outcomes(refused) == [REFUSED] and len(agent.asked) == 1
    assert refused.consultations[0].detail == "limit of tokens" and refused.stop is StopReason.END


def test_a_rollout_that_has_no_room_for_a_notice_is_truncated() -> None:
    produced, _ = produce("8 " * 10 + "<verify> </verify> 8 <end>", limits=Limits(1, 8, 14))
    assert produced.stop is StopReason.LENGTH and outcomes(produced) == [REFUSED]
    assert produced.stream.count(Source.SCAFFOLD) == 0 and produced.consult_spans == ((15, 17),)


@pytest.mark.parametrize("text", ["8 " * 30, "8 " * 12 + "<verify> </verify> 8"])
def test_at_the_limit_of_tokens_a_rollout_is_truncated(text: str) -> None:
    produced, _ = produce(text, limits=Limits(1, 8, 14))
    assert produced.stop is StopReason.LENGTH and produced.consultations == ()
    assert len(produced.stream) - produced.stream.prompt_length == 14


def test_an_end_token_in_the_last_place_ends_the_rollout_all_the_same() -> None:
    produced, _ = produce("8 " * 13 + "<end>", limits=Limits(1, 8, 14))
    assert produced.stop is StopReason.END and produced.policy_text == " ".join("8" * 13)


def test_a_consult_stripped_copy_reads_like_the_rollout_without_requests_and_tags() -> None:
    text = (
        "2 dogs <knowledge> spider </knowledge> = 8 </verify> ; <verify> 8 </verify> 4 "
        "<reasoning> </reasoning> 1 <verify> </verify> 0 <end>"
    )
    replies = iter(["8 legs", KeyError(), "2"])
    produced, _ = produce(text, Answering(lambda query: next(replies)), limits=Limits(4, 8, 90))
    assert outcomes(produced) == [
        ANSWERED,
        MALFORMED,
        AGENT_ERROR,
        ANSWERED,
        REFUSED,
    ]
    copy = stripped_copy(produced.stream, produced.consult_spans, ids_of("user 2"))
    codec = TagCodec(WORDS, PROTOCOL)
    assert codec.text(copy.ids) == "user 2 2 dogs 8 legs = 8 ; 4 2 1 0 <end>"


def test_a_copy_under_byte_level_bpe_holds_the_answer_and_no_tag() -> None:
    produced, _ = produce("so <verify> 8 </verify>\n and", Answering(lambda query: "a spider"), BPE)
    copy = stripped_copy(produced.stream, produced.consult_spans, ids_of("2", BPE))
    text = TagCodec(BPE, PROTOCOL).text(copy.ids)
    assert (
        "a spider" in text
        and text.startswith("2so")
        and not any(tag in text for tag in PROTOCOL.control_strings)
    )


def test_what_is_graded_holds_no_agents_words() -> None:
    produced, _ = produce(ONE, Answering(lambda query: "4 1 legs"))
    assert "4 1 legs" in produced.response
    assert produced.policy_text == ONE.removesuffix(" <end>")
    assert produced.response.startswith("2 dogs <knowledge>") and produced.response.endswith("= 8")


@pytest.mark.parametrize("mode", SoloMode)
def test_a_solo_rollout_never_consults_and_banned_bans(mode: SoloMode) -> None:
    agent = Answering()
    produced, script = produce(ONE, agent, condition=Condition.SOLO, solo_mode=mode)
    assert agent.asked == [] and produced.consultations == () == produced.consult_spans
    assert {segment.source for segment in produced.stream.segments} == {Source.PROMPT, Source.POLICY}
    banned = TagCodec(WORDS, PROTOCOL).banned_sequences()
    (request,) = script.requests
    assert request.stop == () and produced.policy_text == ONE.removesuffix(" <end>")
    assert request.banned_sequences == (banned if mode is SoloMode.BANNED else ())


def test_a_consulting_rollout_bans_nothing_and_passes_seed_and_sampling_on() -> None:
    sampling = Sampling(temperature=0.5)
    _, script = produce(ONE, seed=7, sampling=sampling, solo_mode=SoloMode.BANNED)
    for request in script.requests:
        assert request.banned_sequences == () and request.stop == PROTOCOL.stop_strings
        assert (request.session, request.seed, request.sampling) == ("r", 7, sampling)


def test_an_agent_that_hangs_costs_its_rollout_a_timeout_and_its_siblings_nothing() -> None:
    finished: list[str] = []
    agent = Answering(lambda query: never() if query.request == "0" else "8")
    texts = {str(i): ids_of(f"<knowledge> {i} </knowledge> = <end>") for i in range(3)}
    script, consult = Script(WORDS, texts), consult_of(agent)

    async def one(session: str) -> Rollout:
        produced = await rollout(script, spec_of(id=session), consult)
        finished.append(session)
        return produced

    async def all_of_them() -> Sequence[Rollout]:
        return await asyncio.wait_for(asyncio.gather(*map(one, texts)), 5)

    produced = asyncio.run(all_of_them())
    assert [outcomes(r) for r in produced] == [[TIMEOUT], [ANSWERED], [ANSWERED]]
    assert finished[-1] == "0" and sorted(script.released) == sorted(texts)


def test_an_engines_failure_is_raised_and_its_session_released() -> None:
    class Broken(Script):
        async def generate(self, request: GenerationRequest) -> Completion:
            raise EngineError("gone")

    engine = Broken(WORDS, ())
    with pytest.raises(EngineError, match="gone"):
        asyncio.run(rollout(engine, spec_of(), consult_of(Answering())))
    assert engine.released == ["r"]
