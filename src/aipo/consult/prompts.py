"""The two system prompts, and the ids of a problem under one of them.

The packaged texts are in `prompts/`. Their version is in each file's first line, which no model reads;
`prompt_hash` identifies the exact text. A solo prompt holds no tag, and a problem's text holds no forbidden
string when it becomes ids. The words are this project's own [ours].
"""

from collections.abc import Iterable
from hashlib import sha256
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

from aipo.consult.protocol import Protocol, neutralise
from aipo.core.types import Condition

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


EXAMPLES_FOLLOW = "Examples:"


class PromptError(ValueError):
    """A prompt cannot be built; the message names the fix."""


def system_prompt(condition: Condition, protocol: Protocol, override: str | None) -> str:
    """Return a condition's system prompt; an override is taken word for word, '' means no system message.

    Worked consultations, where the protocol has some, end the consulting prompt, also an override of it.
    Without enabled agents there is nothing to offer: both conditions get the solo text. Raises `PromptError`
    for a solo override that holds a tag.
    """
    offers = condition is Condition.CONSULTING and bool(protocol.enabled)
    if offers and protocol.examples:
        offer = _consulting(protocol) if override is None else override
        shown = [f"Problem: {problem}\n{turn}" for problem, turn in protocol.examples]
        return "\n\n".join([offer, EXAMPLES_FOLLOW, *shown]).strip()
    if override is None:
        return _consulting(protocol) if offers else _packaged("solo")
    tag = next((tag for tag in protocol.control_strings if tag in override), None)
    if condition is Condition.SOLO and tag:
        raise PromptError(f"consult.solo_prompt holds {tag}; a solo prompt offers no agents, take it out")
    return override


def prompt_hash(text: str) -> str:
    """Return the first 12 hexadecimal digits of the text's SHA-256."""
    return sha256(text.encode()).hexdigest()[:12]


def chat_prompt_ids(
    tokenizer: "PreTrainedTokenizerBase", system: str, problem: str, forbidden: Iterable[str]
) -> list[int]:
    """Return the prompt's ids up to the assistant's turn; what is forbidden in `problem` is made inert.

    With system = '' there is no system message; some chat templates then add their own. Raises `PromptError`
    for a tokenizer without a chat template.
    """
    if not tokenizer.chat_template:
        raise PromptError(
            f"the tokenizer of {tokenizer.name_or_path or 'policy.model'!r} has no chat template; set "
            "policy.model to an instruct model, or set tokenizer.chat_template and save the tokenizer"
        )
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": neutralise(problem, forbidden)})
    ids: Any = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return list(ids)


def _packaged(name: str) -> str:
    """Return a packaged text without its first line, the version."""
    text = files("aipo.consult").joinpath("prompts", f"{name}.txt").read_text(encoding="utf-8")
    return text.partition("\n")[2].strip()


def _consulting(protocol: Protocol) -> str:
    feedback = {"feedback_open": protocol.feedback_open, "feedback_close": protocol.feedback_close}
    lines = []
    for line in _packaged("consulting").splitlines():
        if line != "@agents":
            lines.append(Template(line).substitute(feedback))
            continue
        for name, offer in protocol.offers.items():
            tags = {"open": protocol.request_open(name), "close": protocol.request_close(name)}
            lines.append(Template(offer).substitute(tags))
    return "\n".join(lines)
