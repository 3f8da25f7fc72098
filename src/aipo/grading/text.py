r"""Answers as text: normalised equality of short answers, and whether a text states the gold answer.

Equality has no false positive: what merely might be equal is left to the symbolic step.
"""

import re
from functools import lru_cache

from aipo.grading.extract import MAX_CHARS
from aipo.grading.spelling import plain

_WRAPPER = r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf|mathit|operatorname)\s*\{([^{}]*)\}"
TEXT = re.compile(_WRAPPER)
"""A run of upright text inside mathematics; group 1 is its content."""

# Rewrites that keep the meaning, in this order. (?<!\\) keeps a matrix row end "\\" whole.
_CLEANING = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\?\$|(?<!\\)\\[()\[\]]", ""),
        (r"\\(?:left|right)(?![A-Za-z])", ""),
        (r"\\[dt]frac(?![A-Za-z])", r"\\frac"),
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
        (r"\\langle(?![A-Za-z])", "("),
        (r"\\rangle(?![A-Za-z])", ")"),
        (r"(?<=[0-9])(?:\{,\}|,\\!|\\,)\s*(?=[0-9]{3}(?![0-9]))", ""),
        (r"(?<!\\)\\!", ""),
        (r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![A-Za-z])", " "),
        (r"(?<!log)_\{([0-9]+)\}", r"_\1"),
        (r"\s+", " "),
    )
)
# Only a whole number may lose plain commas: (1,234) is a pair and "1, 234" a list.
_THOUSANDS = re.compile(r"[-+]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?=$| |\\)")
_INTEGER = re.compile(r"([-+]?)([0-9]+)")
_LOOSE_SPACE = re.compile(r"(?<![0-9A-Za-z]) | (?![0-9A-Za-z])")
_CHOICE = re.compile(r"\(?([A-Z])\)?")
_WORDS = re.compile(r"[A-Z]?[a-z]+(?:[ '-][A-Z]?[a-z]+)*")

HIDDEN = "…"
_NAMED = r"(?:(?<=\()|(?<=boxed\{{)|(?<=answer is )|(?<=answer: )){0}(?!\w)"
_BEFORE, _AFTER = r"(?<![\w.,\\])", r"(?![\w]|[.,]\d)"


@lru_cache(maxsize=1024)
def clean(text: str) -> str:
    r"""Return `text` in one spelling of LaTeX, with its meaning unchanged.

    >>> clean(r" \$32,\!348. "), clean(r"\left( 3, \dfrac{\pi}{2} \right)")
    ('32348', '( 3, \\frac{\\pi}{2} )')
    """
    text = plain(text)
    for pattern, replacement in _CLEANING:
        text = pattern.sub(replacement, text)
    text = text.strip()
    while text.endswith((".", ",", " ", r"\\")):
        text = text[: -2 if text.endswith(r"\\") else -1]
    if number := _THOUSANDS.match(text):
        text = number[0].replace(",", "") + text[number.end() :]
    return text


def integer(text: str) -> str | None:
    """Return the canonical digits of a decimal integer, else None. Digits, not int: any length is cheap.

    >>> integer("025"), integer("-1,000"), integer("5.0")
    ('25', '-1000', None)
    """
    match = _INTEGER.fullmatch(clean(text))
    if not match:
        return None
    digits = match[2].lstrip("0")
    return ("-" if match[1] == "-" else "") + digits if digits else "0"


def normalise(text: str) -> str:
    """Return the form in which two answers are compared as text: no wrappers, no idle spaces or zeros."""
    if (number := integer(text)) is not None:
        return number
    bare = " ".join(TEXT.sub(r" \1 ", clean(text)).split())
    bare = _LOOSE_SPACE.sub("", bare)
    if choice := _CHOICE.fullmatch(bare):
        return choice[1]  # case is kept: A and a are two symbols, and two choices
    return bare.lower() if _WORDS.fullmatch(bare) else bare


def exact_match(gold: str, answer: str) -> bool:
    r"""Tell whether the two are the same text once spelling is normalised; empty text matches nothing.

    >>> exact_match("Evelyn", r"\text{ evelyn}."), exact_match("1234", "(1,234)")
    (True, False)
    """
    if len(answer) > MAX_CHARS:
        return bool(gold.strip()) and gold.strip() == answer.strip()
    return bool(form := normalise(gold)) and form == normalise(answer)


def without_gold(text: str, gold: str) -> str | None:
    """Return `text` with each mention of the gold replaced by an ellipsis, or None where there is none.

    Simplification: the gold is searched for as it is written, spaces and thousands separators aside. The same
    value in another form (1/2 for 0.5, "twelve" for 12) is not recognised; a gold of one letter counts only
    where a choice is named: `(B)`, `\\boxed{B}`, "answer is B".

    >>> without_gold("So x = 1,234 and 12345 is no answer", "1234"), without_gold("x = 3.14", "3")
    ('So x = … and 12345 is no answer', None)
    >>> without_gold("A fact about B", "B"), without_gold("so the answer is B.", "B")
    (None, 'so the answer is ….')
    """
    hidden, found = _mention(gold.strip()).subn(HIDDEN, text)
    return hidden if found else None


def _mention(gold: str) -> re.Pattern[str]:
    if re.fullmatch(r"[A-Za-z]", gold):
        return re.compile(_NAMED.format(re.escape(gold)), re.IGNORECASE)
    characters = [c for c in gold if not c.isspace()]
    between = r"\s*" if not gold.isdigit() else ",?"
    return re.compile(_BEFORE + between.join(map(re.escape, characters)) + _AFTER, re.IGNORECASE)
