r"""What can be decided about two answers before algebra, and what algebra must never see.

A guard only ever refuses; CORRECT here means equal as normalised text.

Each guard answers a false positive or a hang of math-verify 0.9.0 that was seen (`decide` names them).
"""

import re
from enum import Enum

from aipo.core.types import Verdict
from aipo.grading import Grade
from aipo.grading.extract import MAX_CHARS, MAX_NESTING, nesting
from aipo.grading.text import TEXT, clean, exact_match, integer

MAX_GOLD_CHARS = 2000


class Kind(Enum):
    """The kind of an answer; only answers of one kind are compared."""

    NUMBER = "number"
    """A number or an expression, also as the right side of an equation."""
    SET = "set"
    REGION = "region"
    """An interval, an inequality, or a pair: `(1,2)` is written the same as an open interval."""
    TUPLE = "tuple"
    MATRIX = "matrix"
    WORDS = "words"


_AND = re.compile(r"\\(?:text|mbox|mathrm)\{\s*,?\s*(?:and|or)\s*\}|\b(?:and|or)\b")
_INEQUALITY = re.compile(r"[<>≤≥≠]|\\(?:le|ge|leq|geq|leqslant|geqslant|lt|gt|ne|neq)(?![A-Za-z])")
_MEMBER = re.compile(r"\\in(?![A-Za-z])|∈")
_UNION = re.compile(r"\\(?:cup|cap|setminus|mathbb)(?![A-Za-z])")
_PLUS_MINUS = re.compile(r"\\(?:pm|mp)(?![A-Za-z])|±")
_PLAIN_WORDS = re.compile(r"[A-Za-z]{4,}(?:[ '-][A-Za-z]+)*")
_DIGIT_SUBSCRIPT = re.compile(r"[0-9]\s*_")
# Five digits in an exponent, four before a factorial, a factorial of a power or of a factorial, a tower of
# digits: seconds to hours of pure arithmetic.
_COSTLY = re.compile(
    r"\^[\s{(+-]*[0-9]{5}|[0-9]{4}[\s)}\]]*!|[0-9][\s})]*[!^][\s{(]*[0-9]*[\s})]*\)\s*!"
    r"|[0-9]\s*\^[\s{(]*[0-9]+[\s})]*\^"
)


def kind(text: str) -> Kind:
    r"""Return the kind of a cleaned answer.

    >>> kind("1,-2").name, kind(r"x \in (3,4]").name, kind("(1,2,3)").name, kind("x=5").name
    ('SET', 'REGION', 'TUPLE', 'NUMBER')
    """
    text = text.strip()
    plain = TEXT.sub(r"\1", text).strip()
    if not re.search("[0-9]", plain) and _is_words(text, plain):
        return Kind.WORDS
    if "matrix}" in text or "{array}" in text:
        return Kind.MATRIX
    if _INEQUALITY.search(text):
        return Kind.REGION
    if member := _MEMBER.search(text):
        return kind(text[member.end() :])
    if len(_parts(_AND.sub(",", text))) > 1:
        return Kind.SET
    if "=" in text:
        return kind(text.rpartition("=")[2])
    return _kind_of_one(text)


def _is_words(text: str, plain: str) -> bool:
    wrapped = TEXT.fullmatch(text) is not None and re.search("[A-Za-z]", plain) is not None
    return wrapped or _PLAIN_WORDS.fullmatch(plain) is not None


def _kind_of_one(text: str) -> Kind:
    """Return the kind of an answer that has no relation, and no comma outside brackets."""
    if _UNION.search(text):
        return Kind.REGION if re.search(r"[(\[]|mathbb", text) else Kind.SET
    if _PLUS_MINUS.search(text) or r"\emptyset" in text:
        return Kind.SET
    if text.startswith(r"\{"):
        # {5} is often written for 5, and is harmless: it equals no other number.
        return Kind.SET if len(_parts(text.removeprefix(r"\{").removesuffix(r"\}"))) > 1 else Kind.NUMBER
    if text[:1] in ("(", "[") and text[-1:] in (")", "]"):
        size = len(_parts(text[1:-1]))
        return Kind.NUMBER if size == 1 else Kind.REGION if size == 2 else Kind.TUPLE
    return Kind.NUMBER


def _parts(text: str) -> list[str]:
    """Split at the commas and semicolons that stand outside all brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if char in ",;" and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def _mixes_prose(text: str) -> bool:
    """Tell whether text stands between numbers or contains one: math-verify drops it and what follows."""
    text = _AND.sub(",", text)
    outside = TEXT.sub(" ", text)
    hidden = any(re.search("[0-9]", run[1]) for run in TEXT.finditer(text)) and re.search("[0-9]", outside)
    # An exponent right after the text belongs to a unit: "15 cm^2".
    marked = re.sub(r"\0\s*\^\s*\{?[0-9]\}?", "\0", TEXT.sub("\0", text))
    return bool(hidden or re.search(r"[0-9].*\0.*[0-9]", marked))


def _units(text: str) -> set[str]:
    words = " ".join(run[1] for run in TEXT.finditer(_AND.sub(",", text)))
    return {word.lower().rstrip("s") or "s" for word in re.findall("[A-Za-z]+", words)}


def decide(gold: str, answer: str) -> Grade | None:
    r"""Return a grade where no algebra is needed or none is allowed; None sends the pair to math-verify.

    The guards, each with what math-verify 0.9.0 would have said (observed):
    kind: `\{1,2\}` = `(1,2)`, `3,4` = `3<x<4`, `5` = `5,5`; words: anagrams are equal products of letters;
    base: `4210_5` = `4210`; prose: `3` = `3\text{ apples and }4\text{ pears}`; unit: 15 cm = 15 inches;
    costly: `10^{999999999}` runs for hours. A costly gold is our failure (UNGRADED), a costly answer is not.
    """
    if len(gold) > MAX_GOLD_CHARS:
        return Grade(Verdict.UNGRADED, "gold: too long")
    if exact_match(gold, answer):
        return Grade(Verdict.CORRECT, "exact")
    if len(answer) > MAX_CHARS or nesting(answer) > MAX_NESTING:
        return Grade(Verdict.INCORRECT, "too_large")
    if integer(gold) is not None and integer(answer) is not None:
        return Grade(Verdict.INCORRECT, "integer")
    gold, answer = clean(gold), clean(answer)
    if _COSTLY.search(gold) or nesting(gold) > MAX_NESTING:
        return Grade(Verdict.UNGRADED, "gold: too costly")
    refused = _refusal(gold, answer)
    return Grade(Verdict.INCORRECT, refused) if refused else None


def _refusal(gold: str, answer: str) -> str:
    if not answer or _COSTLY.search(answer):
        return "too_costly" if answer else "empty"
    if _DIGIT_SUBSCRIPT.search(gold) or _DIGIT_SUBSCRIPT.search(answer):
        return "base"
    kinds = kind(gold), kind(answer)
    if kinds[0] is not kinds[1] or kinds[0] is Kind.WORDS:
        return f"kind: {kinds[1].value} for {kinds[0].value}"
    if _mixes_prose(answer):
        return "prose"
    units = _units(gold), _units(answer)
    if not (units[0] <= units[1] or units[1] <= units[0]):
        return "unit"
    return ""
