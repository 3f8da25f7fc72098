"""Worked consultations in the consulting prompt: whose, with which tags, and what cannot be shown."""

from pathlib import Path
from typing import Any

import pytest

from aipo.assembly.agents import build_protocol
from aipo.assembly.parts import build_prompts
from aipo.config.settings import Settings
from aipo.consult.examples import EXAMPLES
from aipo.consult.prompts import system_prompt
from aipo.consult.protocol import Protocol
from aipo.core.types import Condition
from aipo.tasks.base import Problem
from support.tokenizers import byte_level_bpe

MINE = r"""# mine
@agent critic
@problem What is $5 + $2?
$5 and $2 are $8. ${open}Which step is weak?${close}${feedback_open}the sum${feedback_close} So $7.

@agent knowledge
@problem Legs of a crab?
${open}Legs of a crab?${close}${feedback_open}A crab has 10 legs.${feedback_close} 10.
"""


def settings(enabled: Any = ("verify", "knowledge"), **consult: Any) -> Settings:
    return Settings.model_validate({"agents": {"enabled": list(enabled)}, "consult": consult})


def prompt(settings: Settings, condition: Condition = Condition.CONSULTING) -> str:
    consult = settings.consult
    override = consult.solo_prompt if condition is Condition.SOLO else consult.consulting_prompt
    return system_prompt(condition, build_protocol(settings), override)


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_packaged_examples_show_enabled_agents_with_the_tags_of_the_run(name: str) -> None:
    text = prompt(settings(examples=[name], tags={"verify": "ask_v"}, feedback_tag="reply"))
    shown = text.partition("Examples:")[2]
    assert shown.count("<ask_v>") == shown.count("</ask_v>") == 1
    assert shown.count("<knowledge>") == 1 and shown.count("<reply>") == shown.count("</reply>") == 2
    assert not any(part in shown for part in ("reasoning", "<verify>", "<feedback>", "${", "@", "version"))


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_each_packaged_example_is_a_request_that_the_protocol_understands(name: str) -> None:
    protocol = build_protocol(settings(("verify", "knowledge", "reasoning"), examples=[name]))
    assert len(protocol.examples) == 3
    for (_, turn), agent in zip(protocol.examples, ("knowledge", "reasoning", "verify"), strict=True):
        request = protocol.parse(turn)
        assert getattr(request, "agent", None) == agent
        behind = turn.partition(protocol.request_close(agent))[2]
        assert behind.startswith(protocol.feedback_open) and protocol.feedback_close in behind


def test_the_solo_prompt_and_a_run_without_agents_show_none() -> None:
    with_examples, without = settings(examples=["facts"]), settings()
    assert prompt(with_examples, Condition.SOLO) == prompt(without, Condition.SOLO)
    assert prompt(settings((), examples=["facts"])) == prompt(settings(()))
    assert prompt(with_examples).startswith(prompt(without))


def test_a_file_of_ones_own_may_show_an_agent_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(MINE)
    text = prompt(settings(["support.critic:CRITIC"], examples_file=str(file), consulting_prompt="Ask."))
    assert text == (
        "Ask.\n\nExamples:\n\nProblem: What is $5 + $2?\n$5 and $2 are $8. "
        "<critic>Which step is weak?</critic><feedback>the sum</feedback> So $7."
    )


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (None, "cannot be read"),
        (MINE.replace("@problem What", "What"), "example 1 lacks a line '@problem ...'"),
        (MINE.replace("${close}", "", 1), r"example 1 lacks \$close in the turn"),
        ("# none\n", r"none for agents.enabled = \['verify', 'knowledge'\] \(there are for nobody\)"),
        (MINE.replace("@agent knowledge", "@agent other"), r"\(there are for critic, other\)"),
    ],
)
def test_examples_that_cannot_be_shown_are_one_clear_error(
    tmp_path: Path, written: str | None, said: str
) -> None:
    file = tmp_path / "mine.txt"
    if written is not None:
        file.write_text(written)
    with pytest.raises(ValueError, match=said) as caught:
        build_protocol(settings(examples_file=str(file)))
    assert "consult.examples_file = " in str(caught.value)


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(
        ValueError, match=r"consult.examples = 'maths' is not known; .*mathematics, code, facts"
    ):
        build_protocol(settings(examples=["maths"]))


def test_examples_count_against_the_prompts_budget() -> None:
    def prompts(consult: Settings) -> Any:
        return build_prompts(consult, byte_level_bpe(), {}, max_prompt_tokens=700)

    problem = Problem(id="p", text="How many legs?", gold="8", stratum="all")
    plain = prompts(settings(consulting_prompt="Ask.")).ids(problem, Condition.CONSULTING)
    assert len(plain) < 100
    full = settings(consulting_prompt="Ask.", examples=["mathematics", "facts", "code"])
    with pytest.raises(ValueError, match=r"raise rollout.max_prompt_tokens = 700"):
        prompts(full).ids(problem, Condition.CONSULTING)
    assert prompts(full).ids(problem, Condition.SOLO) == prompts(settings()).ids(problem, Condition.SOLO)


def test_a_protocol_without_examples_is_as_it_was() -> None:
    assert Protocol(tags={"verify": "verify"}, feedback_tag="feedback", enabled=("verify",)).examples == ()
