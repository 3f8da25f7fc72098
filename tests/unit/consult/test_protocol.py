"""Requests, malformed requests, tag names, inert text, limits: the protocol as text."""

import pytest

from aipo.consult.limits import Limits
from aipo.consult.protocol import NOTICES, Malformed, Protocol, Request, neutralise
from aipo.core.types import PAPER_AGENTS, ConsultOutcome

V, K, R = PAPER_AGENTS
TAGS = {V: "verify", K: "knowledge", R: "reasoning"}
PROTOCOL = Protocol(tags=TAGS, feedback_tag="feedback", enabled=PAPER_AGENTS, must_be_asked=frozenset({K}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no tags at all", None),
        ("opened <verify> and never ended", None),
        ("a <verify> 2+2? </verify>", Request(V, "2+2?", 2)),
        ("<knowledge>legs</knowledge>>\n more", Request(K, "legs", 0)),
        ("<verify></verify>", Request(V, "", 0)),
        ("<reasoning> \n </reasoning>", Request(R, "", 0)),
        ("<verify> a <verify> b </verify>", Request(V, "b", 11)),
        ("<knowledge> a <verify> b </verify>", Request(V, "b", 14)),
        ("<verify>a</verify> <knowledge>b</knowledge>", Request(V, "a", 0)),
        ("<verify> 1 < 2 > 0 </verify>", Request(V, "1 < 2 > 0", 0)),
        ("<knowledge> </knowledge>", Malformed("<knowledge> asks nothing", 0)),
        ("so </verify>", Malformed("</verify> closes nothing", 3)),
        ("</verify> <verify> a </verify>", Malformed("</verify> closes nothing", 0)),
        ("<knowledge> a </verify>", Malformed("</verify> closes nothing", 14)),
        ("x <verify> a <knowledge> b </verify>", Malformed("<knowledge> inside <verify>", 2)),
        ("<verify> <feedback> yes </verify>", Malformed("<feedback> inside <verify>", 0)),
        ("<verify> </feedback> yes </verify>", Malformed("</feedback> inside <verify>", 0)),
    ],
)
def test_parse(text: str, expected: Request | Malformed | None) -> None:
    assert PROTOCOL.parse(text) == expected


def test_an_agent_that_is_not_enabled_is_text_but_its_tags_stay_control_strings() -> None:
    protocol = Protocol(tags=TAGS, feedback_tag="feedback", enabled=(V,))
    assert protocol.stop_strings == ("</verify>",)
    assert protocol.parse("<knowledge> legs </knowledge>") is None
    assert protocol.parse("<knowledge> legs </knowledge> <verify> x </verify>") == Request(V, "x", 30)
    assert protocol.parse("<verify> <knowledge> x </verify>") == Malformed("<knowledge> inside <verify>", 0)
    assert {"<knowledge>", "</knowledge>", "<feedback>", "</feedback>"} < set(protocol.control_strings)


def test_no_enabled_agent_means_no_request() -> None:
    assert Protocol(tags=TAGS, feedback_tag="feedback", enabled=()).parse("<verify> x </verify>") is None


@pytest.mark.parametrize(
    ("tags", "feedback_tag", "enabled", "message"),
    [
        (TAGS | {V: ""}, "feedback", (), "consult.tags.verify = ''.*use a name"),
        (TAGS | {K: "<k>"}, "feedback", (), "consult.tags.knowledge = '<k>'.*without angle brackets"),
        (TAGS | {K: "a b"}, "feedback", (), "consult.tags.knowledge = 'a b'.*white space"),
        (TAGS | {K: "/verify"}, "feedback", (), "consult.tags.knowledge = '/verify'.*leading '/'"),
        (TAGS, "feed\u00a0back", (), "consult.feedback_tag"),
        (
            TAGS | {K: "verify"},
            "feedback",
            (),
            "consult.tags.knowledge = 'verify' is also consult.tags.verify",
        ),
        (TAGS, "verify", (), "consult.feedback_tag = 'verify' is also consult.tags.verify"),
        ({V: "verify"}, "feedback", (V, K), "agents.enabled = knowledge has no tag; name one under"),
        (TAGS, "feedback", (V, V), "agents.enabled = verify twice; name each agent once"),
    ],
)
def test_names_that_cannot_work_are_refused(
    tags: dict[str, str], feedback_tag: str, enabled: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Protocol(tags=tags, feedback_tag=feedback_tag, enabled=enabled)


def test_a_protocol_does_not_change_with_the_mapping_it_was_built_from() -> None:
    tags = dict(TAGS)
    protocol = Protocol(tags=tags, feedback_tag="feedback", enabled=(V,))
    tags[V] = "other"
    assert protocol.request_open(V) == "<verify>"


def test_every_outcome_without_an_agents_words_has_a_notice_without_a_tag() -> None:
    assert set(NOTICES) == set(ConsultOutcome) - {ConsultOutcome.ANSWERED}
    assert not any("<" in words for words in NOTICES.values())


class CountingText(str):
    """Text that counts the characters that searches and replacements walk over."""

    walked = 0

    def replace(self, *args: object) -> "CountingText":  # type: ignore[override]
        CountingText.walked += len(self)
        return CountingText(super().replace(*args))  # type: ignore[arg-type]

    def __contains__(self, part: object) -> bool:
        CountingText.walked += len(self)
        return super().__contains__(part)  # type: ignore[operator]


def _walked_by_neutralise(chars: int, unit: str) -> int:
    CountingText.walked = 0
    neutralise(CountingText((unit * chars)[:chars]), PROTOCOL.control_strings)
    return CountingText.walked


@pytest.mark.parametrize("unit", ["<", "<verify>", "</verify><feedback>", "<ver<verify>ify>"])
def test_neutralising_is_linear(unit: str) -> None:
    assert 0 < _walked_by_neutralise(40_000, unit) <= 2.1 * _walked_by_neutralise(20_000, unit)


@pytest.mark.parametrize(
    ("text", "forbidden", "expected"),
    [
        ("<verify> 1 < 2", ["<verify>"], "‹verify› 1 < 2"),
        ("<ver<verify>ify>", ["<verify>"], "<ver‹verify›ify>"),
        ("[UNK][UNK]", ["[UNK]"], "·UNK]·UNK]"),
        ("ababa", ["aba"], "·b·ba"),
        ("aaaa", ["aa"], "·a·a"),
        ("‹v› <v>", ["<v>", "‹v›"], "·v› \u203bv\u203b"),
        ("a;b", [";"], "a·b"),
        ("nothing here", ["<verify>"], "nothing here"),
    ],
)
def test_neutralise(text: str, forbidden: list[str], expected: str) -> None:
    result = neutralise(text, forbidden)
    assert len(result) == len(text) and not any(string in result for string in forbidden)
    assert result == expected


def test_neutralise_refuses_an_empty_string() -> None:
    with pytest.raises(ValueError, match="empty"):
        neutralise("x", [""])


def test_limits_leave_room_for_a_consultation_and_an_answer() -> None:
    Limits(3, 256, 261)
    Limits(0, 256, 1)  # without consultations the rule does not apply
    with pytest.raises(
        ValueError, match=r"max_response_tokens = 260 .*at least 261 or lower consult.max_feedback"
    ):
        Limits(3, 256, 260)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((-1, 1, 9), "consult.max_consultations = -1 .* at least 0"),
        ((1, 0, 9), "consult.max_feedback_tokens = 0 .* at least 1"),
        ((0, 1, 0), "rollout.max_response_tokens = 0 .* at least 1"),
    ],
)
def test_limits_out_of_range_are_refused(values: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Limits(*values)
