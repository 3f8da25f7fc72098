"""Where the tokens of a recorded segment begin and end in its text.

Lengths are in UTF-16 units, as a browser counts. Pieces that do not add up to the text are not used.
"""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

_HALF = "\ufffd"
"""What a decoder says of bytes that are not yet a character."""


def utf16_length(text: str) -> int:
    """Return the length that JavaScript sees.

    >>> utf16_length("a€🐙")
    4
    """
    return len(text) + sum(character > "\uffff" for character in text)


class Pieces:
    """The tokenizer of a run's policy; without one, every segment is one piece."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Take the first folder that holds a `tokenizer.json`."""
        found = next((f / "tokenizer.json" for f in folders if (f / "tokenizer.json").is_file()), None)
        self._tokenizer = Tokenizer.from_file(str(found)) if found else None

    def cuts(self, ids: Sequence[int], text: str) -> list[int] | None:
        """Return the length of each token's text; 0 for one that completes no character.

        None: no tokenizer, or one that says something else, as another version of it may.
        """
        if self._tokenizer is None or not ids:
            return None
        try:
            pieces = self._pieces(ids)
        except (OverflowError, TypeError):  # an id that is no id
            return None
        return [utf16_length(piece) for piece in pieces] if "".join(pieces) == text else None

    def _pieces(self, ids: Sequence[int]) -> list[str]:
        """Decode piece by piece, each beside the token before it: some decoders put spaces between tokens.

        Linear in the number of tokens; a character of several tokens falls to its last one.
        """
        pieces = []
        before, read = 0, 0  # the window begins at `before`; the text of tokens up to `read` is out
        for end in range(1, len(ids) + 1):
            known, text = self._decode(ids[before:read]), self._decode(ids[before:end])
            if not text.startswith(known) or (text.endswith(_HALF) and end < len(ids)):
                pieces.append("")
                continue
            pieces.append(text[len(known) :])
            before, read = read, end
        return pieces

    def _decode(self, ids: Sequence[int]) -> str:
        assert self._tokenizer is not None
        return self._tokenizer.decode(list(ids), skip_special_tokens=False) if ids else ""
