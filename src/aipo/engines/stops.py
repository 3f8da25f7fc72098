"""Where generation ends: end-of-turn ids, and the token that completes a stop string.

A stop string is looked for in newly sampled text only, and is complete with the first token that brings its
last character.
"""

from collections.abc import Callable, Sequence

from jinja2 import TemplateError
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


class StopFinder:
    """Finds the token that completes a stop string, decoding only where one can end."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._decode: Callable[[Sequence[int]], str] = lambda ids: str(
            tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )
        self._vocabulary_size = len(tokenizer)
        self._enders: dict[tuple[str, ...], frozenset[int]] = {}

    def completed(self, ids: list[int], start: int, stop: tuple[str, ...]) -> bool:
        """Whether the last of `ids` completes a stop string in the text sampled from `start` on."""
        if not stop or ids[-1] not in self._ending_ids(stop):
            return False
        # Each token of a stop string holds at least one of its characters.
        tail = ids[max(start, len(ids) - max(map(len, stop)) - 1) :]
        text = self._decode(tail)
        return any(s in text for s in stop)

    def _ending_ids(self, stop: tuple[str, ...]) -> frozenset[int]:
        """Ids whose text holds the last character of a stop string: all that can end one, and more."""
        if stop not in self._enders:
            last = {s[-1] for s in stop}
            texts = ((i, self._decode([i])) for i in range(self._vocabulary_size))
            self._enders[stop] = frozenset(i for i, text in texts if last & set(text))
        return self._enders[stop]


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids that end a turn: the tokenizer's, the model's generation settings', the template's."""
    return ends_of(model.generation_config, tokenizer)


def ends_of(settings: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the same of generation settings without a model; None: there are none."""
    configured = getattr(settings, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    named = frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)
    return named | template_end(tokenizer)


def template_end(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the special token that the chat template puts behind an assistant's turn, if there is one.

    Base models often name another end: who writes `<|im_end|>` then would go on and play the user.
    """
    if not tokenizer.chat_template:
        return frozenset()
    said = "Paris"
    turns = [{"role": "user", "content": "Which city?"}, {"role": "assistant", "content": said}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except (TemplateError, ValueError):  # a template for the user's turn alone
        return frozenset()
    behind = text.rpartition(said)[2].strip()
    ends = tokenizer.added_tokens_decoder
    return frozenset(i for i in tokenizer.encode(behind, add_special_tokens=False)[:1] if i in ends)
