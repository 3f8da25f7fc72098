"""What a chat endpoint answered, read: the words, what they cost, and what stands in the place of words.

Endpoints agree on little: content may be a list of parts, thinking may stand in a field of its own, an error
may come with status 200. Whatever is not the agent's words is an `AgentError` with the reason; a count that
is no count is one that was not reported.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aipo.agents.base import AgentError, AgentFailure
from aipo.agents.replies import excerpt

_MOST_TOKENS = 2**40
_THINKING = ("reason", "think")
"""How the fields begin in which servers with a reasoning parser put a model's thinking."""
_STATUS_OF_TYPE = {"rate_limit": 429, "overloaded": 503, "server_error": 500, "timeout": 504}


@dataclass(frozen=True, slots=True)
class EmbeddedError:
    """An error in the body of a response with status 200."""

    status: int
    said: str


def counts_of(body: bytes) -> tuple[int, int]:
    """Return the prompt's and the completion's tokens; 0 where the response does not say, or not a number."""
    usage = _mapping(_mapping(_value(body)).get("usage"))
    return _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))


def embedded_error(body: bytes) -> EmbeddedError | None:
    """Return the error that a body holds in the place of an answer, or in its first choice; None without.

    A body may be the error itself: `{"object": "error", "message": …}`, `{"detail": …}`.
    """
    answer = _mapping(_value(body))
    choice = _first_choice(answer)
    error = answer.get("error") if not choice else choice.get("error")
    if not error and not choice and (answer.get("message") or answer.get("detail")):
        error = {"message": answer.get("message") or answer.get("detail"), **answer}
    if not error:
        return None
    details = error if isinstance(error, Mapping) else {}
    said = str(details.get("message") or error)
    stated = next((s for s in map(_status, (details.get("code"), details.get("status"))) if s), None)
    words = " ".join(str(details.get(name, "")) for name in ("type", "code")).lower()
    guessed = (status for name, status in _STATUS_OF_TYPE.items() if name in words)
    return EmbeddedError(stated or next(guessed, 500), said)


def words_of(body: bytes) -> str:
    """Return what the model said. Raises `AgentError` where that is nothing, with the reason.

    An empty text is returned where the model ended by itself and said nothing.
    """
    choice = _first_choice(_mapping(_value(body, refuse=True)))
    message = choice.get("message")
    if not isinstance(message, Mapping):
        raise AgentError("choices.0.message: there is none", AgentFailure.UNREADABLE)
    text = _text(message.get("content"))
    if text.strip():
        return text
    if refusal := message.get("refusal"):
        raise AgentError(f"the model refuses: {excerpt(str(refusal))}", AgentFailure.UNREADABLE)
    why = _why_empty(choice, message)
    if why:
        raise AgentError(why, AgentFailure.UNREADABLE)
    return text


def _why_empty(choice: Mapping[str, Any], message: Mapping[str, Any]) -> str:
    """Return why a message has no words, '' where the model had nothing to say."""
    end = choice.get("finish_reason")
    thought = any(value for name, value in message.items() if name.startswith(_THINKING))
    if end == "length":
        where = "all tokens went into thinking" if thought else "its tokens ran out before a word"
        return f"{where}; raise agents.max_reply_tokens, or turn the model's thinking off"
    if end in ("content_filter", "safety", "SAFETY"):
        return f"the server's content filter held the reply back (finish_reason {end!r})"
    if message.get("tool_calls") or message.get("function_call") or end in ("tool_calls", "function_call"):
        return "the model calls a tool in the place of words; no tool was offered: turn the server's off"
    if end not in (None, "stop", "end_turn", "eos", "STOP"):
        return f"no words, finish_reason {excerpt(str(end))!r}"
    return "nothing but thinking; turn the model's thinking off" if thought else ""


def _text(content: Any) -> str:
    """Return the text of a message's content; of parts, those that are text, without thinking."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise AgentError(
            f"choices.0.message.content: {excerpt(str(content))!r} is no text", AgentFailure.UNREADABLE
        )
    words = [part if isinstance(part, str) else _part(part) for part in content]
    return "".join(words)


def _part(part: Any) -> str:
    if not isinstance(part, Mapping) or part.get("type", "text") not in ("text", "output_text"):
        return ""
    text = part.get("text")
    text = text.get("value") if isinstance(text, Mapping) else text
    return text if isinstance(text, str) else ""


def _first_choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = answer.get("choices")
    return _mapping(choices[0]) if isinstance(choices, list) and choices else {}


def _value(body: bytes, refuse: bool = False) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        if refuse:
            raise AgentError(f"body: not JSON ({excerpt(str(error))})", AgentFailure.UNREADABLE) from None
        return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _count(value: Any) -> int:
    counted = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_TOKENS
    return value if counted else 0


def _status(value: Any) -> int:
    """Return an HTTP status of an error, 0 for anything else."""
    text = str(value)
    return int(text) if len(text) == 3 and text.isdigit() and 400 <= int(text) < 600 else 0
