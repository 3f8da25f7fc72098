"""Does a text state the gold answer? For the leak guard, on plain text.

Owns the search. Must not know agents or tasks. Invariant: what is returned does not state the answer as it
was searched for.

Simplification: the gold is searched for as it is written, spaces and thousands separators aside. The same
value in another form (1/2 for 0.5, "twelve" for 12) is not recognised; a gold of one letter counts only where
a choice is named: `(B)`, `\\boxed{B}`, "answer is B".
"""

import re

HIDDEN = "…"
_CHOICE = r"(?:(?<=\()|(?<=boxed\{{)|(?<=answer is )|(?<=answer: )){0}(?!\w)"
_BEFORE, _AFTER = r"(?<![\w.,\\])", r"(?![\w]|[.,]\d)"


def without_gold(text: str, gold: str) -> str | None:
    """Return `text` with each mention of the gold replaced by an ellipsis, or None where there is none.

    >>> without_gold("So x = 1,234 and 12345 is no answer", "1234"), without_gold("x = 3.14", "3")
    ('So x = … and 12345 is no answer', None)
    >>> without_gold("A fact about B", "B"), without_gold("so the answer is B.", "B")
    (None, 'so the answer is ….')
    """
    hidden, found = _pattern(gold.strip()).subn(HIDDEN, text)
    return hidden if found else None


def _pattern(gold: str) -> re.Pattern[str]:
    if re.fullmatch(r"[A-Za-z]", gold):
        return re.compile(_CHOICE.format(re.escape(gold)), re.IGNORECASE)
    characters = [c for c in gold if not c.isspace()]
    between = r"\s*" if not gold.isdigit() else ",?"
    return re.compile(_BEFORE + between.join(map(re.escape, characters)) + _AFTER, re.IGNORECASE)
