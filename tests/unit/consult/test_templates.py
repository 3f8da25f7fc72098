"""Chat templates as users bring them: what stands in the prompt, what is refused, where a turn ends."""

from collections.abc import Sequence
from datetime import datetime

import pytest
from transformers import PreTrainedTokenizerFast

from aipo.config.policy import PolicySettings
from aipo.consult.prompts import DATE, PromptError, chat_prompt_ids, check_template, thinking_opened
from aipo.engines.stops import template_end
from support.families import CHATML, GEMMA, HARMONY, MISTRAL
from support.tokenizers import byte_level_bpe

HEAD = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
TURN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role here') }}{% endif %}" + CHATML
)
DROPS_SYSTEM = HEAD.replace("messages %}", "messages if m.role != 'system' %}") + (
    "{{ m.content }}<|im_end|>\n{% endfor %}" + TURN
)
PARTS_ONLY = HEAD + (
    "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>"
    "\n{% endfor %}" + TURN
)
NO_TURN = HEAD + "{{ m.content }}<|im_end|>\n{% endfor %}"
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}"
    " {% endif %}{% endfor %}"
)
DATED = "{{ strftime_now('%d %b %Y') }}\n" + CHATML


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """ChatML, whose turns end with the tokenizer's end token."""
    return byte_level_bpe()


def with_template(tokenizer: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    tokenizer.chat_template = template
    return tokenizer


def prompt(tokenizer: PreTrainedTokenizerFast, system: str, turns: str | Sequence[tuple[str, str]]) -> str:
    return str(tokenizer.decode(chat_prompt_ids(tokenizer, system, turns, ())))


@pytest.mark.parametrize("template", [NO_SYSTEM, DROPS_SYSTEM])
def test_without_a_system_role_its_words_begin_the_users_turn(
    tokenizer: PreTrainedTokenizerFast, template: str
) -> None:
    text = prompt(with_template(tokenizer, template), "Be brief.", "2 + 2?")
    assert text == "<|im_start|>user\nBe brief.\n\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"


def test_a_conversation_keeps_its_turns_and_its_system_message_stands_behind_ours(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    turns = [("system", "Be kind."), ("user", "1?"), ("assistant", "2"), ("user", "3?")]
    assert prompt(tokenizer, "Be brief.", turns) == (
        "<|im_start|>system\nBe brief.\n\nBe kind.<|im_end|>\n<|im_start|>user\n1?<|im_end|>\n"
        "<|im_start|>assistant\n2<|im_end|>\n<|im_start|>user\n3?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "system\nBe kind.<" in prompt(tokenizer, "", turns)


def test_tools_of_a_row_are_offered_by_the_template(tokenizer: PreTrainedTokenizerFast) -> None:
    with_template(tokenizer, "{% for t in tools or [] %}tool {{ t.function.name }}{% endfor %}" + CHATML)
    tools = '[{"type": "function", "function": {"name": "add"}}]'
    assert "tool add" in tokenizer.decode(chat_prompt_ids(tokenizer, "", "2 + 2?", (), tools=tools))
    assert "tool" not in prompt(tokenizer, "", "2 + 2?")


@pytest.mark.parametrize(
    "template", ["{% if %}", "{{ raise_exception('roles must alternate') }}", "{{ messages.x.y }}"]
)
def test_a_template_that_refuses_or_is_none_is_one_sentence(
    tokenizer: PreTrainedTokenizerFast, template: str
) -> None:
    with_template(tokenizer, template)
    with pytest.raises(PromptError, match=r"refuses messages of user: .*correct tokenizer\.chat_template"):
        chat_prompt_ids(tokenizer, "Be brief.", "2 + 2?", ())
    with pytest.raises(PromptError, match="refuses"):
        check_template(tokenizer)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (PARTS_ONLY, "leaves the problem out"),
        ("nothing", "leaves the problem out"),
        (NO_TURN, r"opens no assistant's turn.*'<\|im_start\|>assistant' is missing"),
    ],
)
def test_a_template_that_loses_the_problem_or_opens_no_turn_is_refused(
    tokenizer: PreTrainedTokenizerFast, template: str, words: str
) -> None:
    with pytest.raises(PromptError, match=words):
        check_template(with_template(tokenizer, template))


@pytest.mark.parametrize(
    "template", [CHATML, LLAMA2, NO_SYSTEM, DROPS_SYSTEM, DATED, MISTRAL, GEMMA, HARMONY]
)
def test_templates_that_do_their_work_are_taken(tokenizer: PreTrainedTokenizerFast, template: str) -> None:
    check_template(with_template(tokenizer, template))


def test_thinking_that_only_the_prompt_begins_is_no_missing_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    check_template(with_template(tokenizer, CHATML.replace("assistant\n'", "assistant\n<think>\n'")))
    assert thinking_opened(prompt(tokenizer, "", "2 + 2?")) == "<think>"
    assert thinking_opened("a <think> b") == thinking_opened("<think>\n\n</think>\n\n") == ""


def test_the_date_is_the_settings_and_never_todays(tokenizer: PreTrainedTokenizerFast) -> None:
    with_template(tokenizer, DATED)
    assert prompt(tokenizer, "", "2 + 2?").startswith("26 Jul 2024\n")
    ids = chat_prompt_ids(tokenizer, "", "2 + 2?", (), date="2031-02-03")
    assert tokenizer.decode(ids).startswith("03 Feb 2031\n")
    assert datetime.now().strftime("%d %b %Y") not in prompt(tokenizer, "", "2 + 2?")
    assert PolicySettings().date == DATE


def test_what_the_template_puts_behind_a_turn_ends_it(tokenizer: PreTrainedTokenizerFast) -> None:
    (end,) = template_end(tokenizer)
    assert tokenizer.convert_ids_to_tokens(end) == "<|im_end|>"
    for template in (LLAMA2, "{{ messages[0].content }}", NO_SYSTEM.replace("<|im_end|>", "")):
        assert template_end(with_template(tokenizer, template)) == frozenset()
