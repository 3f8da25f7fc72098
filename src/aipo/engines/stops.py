"""Where generation ends: end-of-turn ids, and the token that completes a stop string.

A stop string is looked for in newly sampled text only, and is complete with the first token that brings its
last character.
"""

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    """Return the ids that end a turn: the tokenizer's, and those of the model's generation settings."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)
