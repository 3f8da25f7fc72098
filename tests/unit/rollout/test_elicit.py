"""Elicited consultations: where a tag is opened, who wrote which token, and what it can cost a rollout.

The policy's words are scripted; codec, protocol and tokenizers are real.
"""

from dataclasses import replace
from typing import Any

import pytest

from aipo.config.settings import Settings
from aipo.consult.codec import TagCodec
from aipo.consult.limits import Limits
from aipo.core.tokens import stripped_copy
from aipo.core.types import KNOWLEDGE, REASONING, VERIFY, Condition, ConsultOutcome, Source, StopReason
from aipo.rollout.elicit import PLACES, Boundary, Elicit, Opening, Place, Watch, ends_sentence, surprise
from aipo.rollout.episode import Consultation, Rollout
from aipo.training.eliciting import elicit_of, own_share
from support.episodes import ANSWERED, BPE, LIMITS, MALFORMED, PROTOCOL, Answering, produce

ROOMY = Limits(max_consultations=3, max_feedback_tokens=8, max_response_tokens=400)
FIRST, SECOND = [Place(opens=lambda at, n=n: at.number == n) for n in (0, 1)]
STORY = "We need legs. Legs of a spider? They have 8. So 8 <|im_end|>"


def how(place: Place = SECOND, **more: Any) -> Elicit:
    values: dict[str, Any] = {
        "share": 1.0,
        "place": place,
        "options": place.options,
        "agents": (KNOWLEDGE,),
        "system_closes": True,
        "max_request_tokens": 48,
        "credited": False,
        **more,
    }
    return Elicit(**values)


def elicited(text: str = STORY, limits: Limits = ROOMY, agent: Any = None, **more: Any) -> Rollout:
    opening = Opening(how(**more), KNOWLEDGE)
    return produce(text, agent, BPE, limits, opening=opening)[0]


def parts(produced: Rollout) -> list[tuple[Source, str]]:
    codec = TagCodec(BPE, PROTOCOL)
    return [(s.source, codec.text(s.ids)) for s in produced.stream.segments[1:]]


P, S, F = Source.POLICY, Source.SCAFFOLD, Source.FEEDBACK


def test_the_system_opens_behind_a_sentence_and_closes_behind_the_policys_own_request() -> None:
    produced = elicited()
    said = parts(produced)
    assert said[:5] == [
        (P, "We need legs."),
        (S, "<knowledge>"),
        (P, " Legs of a spider?"),
        (S, "</knowledge>"),
        (F, "<feedback>spider 8</feedback>"),
    ]
    assert "".join(text for source, text in said[5:]) == " They have 8. So 8 <|im_end|>"
    assert {source for source, _ in said[5:]} == {P}
    (consultation,) = produced.consultations
    assert (consultation.agent, consultation.request) == (KNOWLEDGE, "Legs of a spider?")
    assert (consultation.outcome, consultation.elicited) == (ANSWERED, True)
    assert produced.opened == (2, 4)


def test_the_agent_sees_what_stood_before_the_tag_and_the_request() -> None:
    agent = Answering()
    elicited(agent=agent)
    assert [(q.rollout, q.request) for q in agent.asked] == [("We need legs.", "Legs of a spider?")]


def test_every_token_that_the_policy_is_credited_with_was_sampled_at_its_place() -> None:
    opening = Opening(how(), KNOWLEDGE)
    produced, script = produce(STORY, None, BPE, ROOMY, opening=opening)
    ids, sources, log_probs = produced.stream.ids, produced.stream.sources, produced.stream.log_probs
    sampled: dict[int, tuple[int, float]] = {}
    for request, completion in zip(script.requests, script.completions, strict=True):
        start = len(request.prefix_ids)
        assert tuple(request.prefix_ids) == ids[:start]
        for i, (token, log_p) in enumerate(zip(completion.ids, completion.log_probs, strict=True)):
            sampled[start + i] = token, log_p
    credited = {i: (ids[i], log_probs[i]) for i, source in enumerate(sources) if source is P}
    assert credited == sampled


def test_credited_tags_are_feedback_and_no_others_become_so() -> None:
    plain, credited = elicited(), elicited(credited=True)
    assert credited.stream.ids == plain.stream.ids
    changed = [
        (a.ids, b.source)
        for a, b in zip(plain.stream.segments, credited.stream.segments, strict=True)
        if a.source is not b.source
    ]
    assert changed == [(tags, F) for tags in TagCodec(BPE, PROTOCOL).request_tags(KNOWLEDGE)]


def test_a_request_that_the_policy_closes_gets_no_second_end_tag() -> None:
    produced = elicited("Legs. spider </knowledge> They have 8 <|im_end|>")
    assert [s for s, _ in parts(produced)][:4] == [P, S, P, F]
    assert produced.consultations[0].request == "spider"
    assert produced.opened == (2,)


def test_a_request_without_an_end_is_closed_at_its_limit_or_is_malformed() -> None:
    endless = "Legs. " + "spider " * 40 + "<|im_end|>"
    closed = elicited(endless, max_request_tokens=5)
    assert closed.consultations[0].outcome is ANSWERED
    assert len(closed.stream.segments[3].ids) == 5
    left_open = elicited(endless, max_request_tokens=5, system_closes=False)
    (consultation,) = left_open.consultations
    assert (consultation.outcome, consultation.elicited) == (MALFORMED, True)
    assert consultation.detail == "not closed within 5 tokens"
    assert left_open.stop is StopReason.END


def test_where_only_the_policy_closes_a_sentence_does_not_end_its_request() -> None:
    produced = elicited("Legs. Which? Of a spider. </knowledge> 8 <|im_end|>", system_closes=False)
    assert produced.consultations[0].request == "Which? Of a spider."


def test_a_policy_that_asks_by_itself_is_left_alone() -> None:
    asking = "<knowledge> legs </knowledge> Good. They have 8. <|im_end|>"
    produced = elicited(asking)
    assert [c.elicited for c in produced.consultations] == [False]
    assert produced.opened == ()


def test_no_tag_is_opened_inside_a_request_of_the_policys_own() -> None:
    produced = elicited("<knowledge> Legs of a spider? I wonder. </knowledge> 8. <|im_end|>")
    assert [(c.elicited, c.request) for c in produced.consultations] == [
        (False, "Legs of a spider? I wonder.")
    ]


def test_another_tag_inside_the_request_leaves_nothing_of_the_opened_one_in_a_copy() -> None:
    produced = elicited("Legs. I wonder <verify> is it 8 </verify> They have 8. <|im_end|>")
    (consultation,) = produced.consultations
    assert (consultation.agent, consultation.elicited) == (VERIFY, True)
    copy = stripped_copy(produced.stream, produced.consult_spans, [1])
    text = TagCodec(BPE, PROTOCOL).text(copy.ids[1:])
    assert text == "Legs.spider 8 They have 8. <|im_end|>"


def test_a_copy_holds_neither_the_tags_that_the_system_wrote_nor_the_request() -> None:
    produced = elicited()
    copy = stripped_copy(produced.stream, produced.consult_spans, [1])
    assert TagCodec(BPE, PROTOCOL).text(copy.ids[1:]) == "We need legs.spider 8 They have 8. So 8 <|im_end|>"


@pytest.mark.parametrize("room", range(30, 120, 3))
def test_limits_hold_and_an_opened_request_always_has_room_for_its_reply(room: int) -> None:
    limits = replace(LIMITS, max_response_tokens=room)
    for closes in (True, False):
        produced = elicited("Legs. spider spider. " + "so " * 200, limits, system_closes=closes)
        length = len(produced.stream) - produced.stream.prompt_length
        assert length <= room
        if produced.opened and closes:
            assert [c.outcome for c in produced.consultations] == [ANSWERED]
            assert produced.stream.count(F) > 0


def test_without_consultations_left_nothing_is_opened() -> None:
    produced = elicited(limits=replace(ROOMY, max_consultations=0))
    assert produced.opened == () and produced.consultations == ()


def test_the_place_before_the_first_word_is_a_boundary() -> None:
    produced = elicited("Legs of a spider? They have 8. <|im_end|>", place=FIRST)
    assert parts(produced)[:3] == [(S, "<knowledge>"), (P, "Legs of a spider?"), (S, "</knowledge>")]


def test_a_place_is_asked_once_a_boundary_and_sees_only_what_is_kept() -> None:
    seen: list[Boundary] = []

    def never(at: Boundary) -> bool:
        seen.append(at)
        return False

    produced = elicited("One. Two is 3.5 legs!\n\nThree 4. <|im_end|>", place=Place(opens=never))
    assert [at.response for at in seen] == ["", "One.", "One. Two is 3.5 legs!"]
    assert [at.number for at in seen] == [0, 1, 2]
    policy = [
        p for p, source in zip(produced.stream.log_probs, produced.stream.sources, strict=True) if source is P
    ]
    assert [p for at in seen for p in at.log_probs] == policy[: sum(len(at.log_probs) for at in seen)]
    assert len({at.uniform for at in seen}) == 3


def test_entropy_opens_behind_the_first_sentence_that_was_unsure() -> None:
    opening = Opening(how(PLACES["entropy"]), KNOWLEDGE)
    watch = Watch(opening, "2 dogs", 1)
    assert not watch.opens("", [])
    assert not watch.opens("Sure.", [-0.5, -0.5])
    assert watch.opens("Sure. Is it?", [-0.5, -0.5, -1.5, -0.9])
    assert surprise([-1.0, -2.0]) == 1.5


def test_random_opens_each_boundary_with_its_chance() -> None:
    opened = [
        Watch(Opening(how(PLACES["random"], options={"chance": 0.3}), KNOWLEDGE), "p", seed).opens("", [])
        for seed in range(2000)
    ]
    assert 0.26 < sum(opened) / 2000 < 0.34


def test_a_share_of_the_rollouts_is_chosen_by_their_own_seeds_and_agents_take_turns() -> None:
    some = how(share=0.25, agents=(VERIFY, REASONING))
    chosen = [some.chosen(seed, turn=seed) for seed in range(4000)]
    assert 0.22 < sum(one is not None for one in chosen) / 4000 < 0.28
    assert {one.agent for one in chosen[::2] if one} == {VERIFY}
    assert {one.agent for one in chosen[1::2] if one} == {REASONING}
    assert all(how(share=0.0).chosen(seed, 0) is None for seed in range(100))


def test_a_number_that_may_go_on_ends_no_sentence() -> None:
    assert [
        ends_sentence(text) for text in ("It is 3.", "Is it 3?", "x\n", " \n", "...", "\u662f\u3002")
    ] == [
        False,
        False,
        True,
        False,
        False,
        True,
    ]


def test_agents_and_options_that_there_are_not_are_refused() -> None:
    def settings(**values: Any) -> Settings:
        return Settings.model_validate({"consult": {"elicit": values}})

    with pytest.raises(ValueError, match=r"consult.elicit.agents = 'critic' is not in agents.enabled"):
        elicit_of(settings(share=0.5, agents=["critic"]))
    with pytest.raises(ValueError, match=r"consult.elicit.options: 'random' has no 'nats'; it has chance"):
        elicit_of(settings(share=0.5, options={"nats": 1.0}))
    assert elicit_of(settings()) is None


def test_the_share_falls_as_the_policy_asks_by_itself_and_ends_where_it_does() -> None:
    def now(own: float) -> float:
        elicit = {"share": 0.8, "until": 0.5, "options": {"chance": 0.3}}
        made = elicit_of(Settings.model_validate({"consult": {"elicit": elicit}}), own)
        assert made is None or made.options == {"chance": 0.3}
        return made.share if made else 0.0

    assert [now(own) for own in (0.0, 0.25, 0.5, 0.9)] == [0.8, 0.4, 0.0, 0.0]


def test_only_well_formed_requests_of_rollouts_that_were_left_alone_are_the_policys_own() -> None:
    base, _ = produce(STORY, None, BPE, ROOMY, opening=None, condition=Condition.SOLO)

    def asking(outcome: ConsultOutcome, opened: tuple[int, ...] | None, elicited: bool = False) -> Rollout:
        asked = Consultation(
            agent="verify",
            request="4?",
            outcome=outcome,
            reply="",
            reply_tokens=0,
            detail="",
            context="",
            latency_s=0.0,
            elicited=elicited,
        )
        return replace(base, consultations=(asked,), opened=opened)

    own = asking(ConsultOutcome.ANSWERED, None)
    alone = [own, base, asking(ConsultOutcome.MALFORMED, None), asking(ConsultOutcome.REFUSED_LIMIT, None)]
    opened = [asking(ConsultOutcome.ANSWERED, (1,), elicited=True)] * 4
    assert own_share(alone) == own_share([*alone, *opened]) == 0.5
    assert own_share(opened) == 0.0 and own_share([]) == 0.0
    assert own_share([*opened, asking(ConsultOutcome.ANSWERED, ())]) == 0.2


def test_a_solo_rollout_is_never_elicited() -> None:
    produced, script = produce(STORY, None, BPE, ROOMY, opening=None, condition=Condition.SOLO)
    assert produced.opened is None and all(not request.stop for request in script.requests)
