r"""What can be decided about two answers before algebra, and what algebra must never see.

A guard only ever refuses; CORRECT here means equal as normalised text.

Each guard answers a false positive or a hang of math-verify 0.9.0 that was seen (`decide` names them).
"""

import re
from collections import Counter
from enum import Enum
from functools import lru_cache

from aipo.core.types import Verdict
from aipo.grading import Grade
from aipo.grading.extract import MAX_CHARS, MAX_NESTING, extract_answer, nesting
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


_AND = re.compile(r"\\(?:text|mbox|mathrm)\{\s*+(?:,\s*+)?(?:and|or)\s*\}|\b(?:and|or)\b")
_INEQUALITY = re.compile(r"[<>≤≥≠]|\\(?:le|ge|leq|geq|leqslant|geqslant|lt|gt|ne|neq)(?![A-Za-z])")
_MEMBER = re.compile(r"\\in(?![A-Za-z])|∈")
_UNION = re.compile(r"\\(?:cup|cap|setminus|mathbb)(?![A-Za-z])")
_PLUS_MINUS = re.compile(r"\\(?:pm|mp)(?![A-Za-z])|±")
_PLAIN_WORDS = re.compile(r"[A-Za-z]{4,}(?:[ '-][A-Za-z]+)*")
_DIGIT_SUBSCRIPT = re.compile(r"[0-9]\s*_")
# Five digits in an exponent, four before a factorial, a factorial of a power or of a factorial, a tower of
# digits: seconds to hours of pure arithmetic.
_COSTLY = re.compile(
    r"\^[\s{(+-]*+[0-9]{5}|[0-9]{4}[\s)}\]]*+!|[0-9][\s})]*+[!^][\s{(]*+[0-9]*+[\s}]*+\)[\s})]*+!"
    r"|[0-9]\s*+\^[\s{(]*+[0-9]++[\s})]*+\^"
)
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[A-Za-z]{2,}")
SENTENCE_WORDS = 5
"""A gold with so many words of prose beside a number holds a sentence, not an answer."""
_CLOCK = re.compile(
    r"\s*([0-9]{1,2}):([0-5][0-9])(?::([0-5][0-9]))?\s*+(?:([ap])\.?\s*+m\.?\s*+)?", re.IGNORECASE
)
# "The answer is 5" and "5 apples" say 5; words that could change a number are no such words.
_INTRODUCTION = re.compile(
    r"(?:\\(?:text|textbf|mathrm)\s*+\{)?(?:(?:the|final|correct|answer|value|result|sum|total|number|is|are|equals|equal"
    r"|to|so|thus|hence|therefore|it|there|we|get|have|obtain|of|x|y|n)\b[\s:,=]*+)++\}?\s*+",
    re.IGNORECASE,
)
_COUNTED = re.compile(
    r"([-+]?[0-9]++(?:\.[0-9]++)?|-?\\frac\{[0-9]++\}\{[0-9]++\})\s++([A-Za-z]{4,}(?: [A-Za-z]{4,}){0,2})"
)
_SCALES = frozenset(
    "hundred thousand million billion trillion dozen gross half third quarter fourth fifth tenth hundredth "
    "thousandth pair score".split()
)
_NO_UNITS = frozenset(
    "squared cubed plus minus time over percent factorial negative point theta alpha beta gamma delta lambda "
    "sigma omega infinity root more less than least most about approximately when unless except excluding "
    "remainder base other than also maybe possibly either both neither with without where true false".split()
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


def _repeats_otherwise(gold: str, answer: str) -> bool:
    r"""Tell whether a list repeats what the gold, a list with repetitions, does not, or repeats it less.

    Braces make a set, which has none; what is repeated in another spelling (`0.5, 1/2`) is not seen.

    >>> [_repeats_otherwise("1,2,2", answer) for answer in ("2,1,2", "1,2", "1,1,2", r"1, 2, \frac{4}{2}")]
    [False, True, True, False]
    """
    wanted, given = (_elements(text) for text in (gold, answer))
    if max(wanted.values(), default=1) == 1:
        return False
    return wanted.total() != given.total() or (wanted.keys() == given.keys() and wanted != given)


def _elements(text: str) -> Counter[str]:
    """Return how often a list holds what; nothing for a set in braces or one element."""
    text = re.sub(r"\s|\\[,;! ]", "", _AND.sub(",", text))
    return Counter() if text.startswith(r"\{") else Counter(filter(None, _parts(text)))


def _mixes_prose(text: str) -> bool:
    """Tell whether text stands between numbers or contains one: math-verify drops it and what follows."""
    text = _AND.sub(",", text)
    outside = TEXT.sub(" ", text)
    hidden = any(re.search("[0-9]", run[1]) for run in TEXT.finditer(text)) and re.search("[0-9]", outside)
    # An exponent right after the text belongs to a unit: "15 cm^2".
    marked = re.sub(r"\0\s*+\^\s*+\{?[0-9]\}?", "\0", TEXT.sub("\0", text))
    digits = [match.start() for match in re.finditer("[0-9]", marked)]
    return bool(hidden or (digits and "\0" in marked[digits[0] : digits[-1]]))


def _units(text: str) -> set[str]:
    words = " ".join(run[1] for run in TEXT.finditer(_AND.sub(",", text)))
    return {word.lower().rstrip("s") or "s" for word in re.findall("[A-Za-z]+", words)}


@lru_cache(maxsize=1024)
def reading(text: str) -> str:
    r"""Return an answer in one spelling, without the words around a single number.

    >>> reading(r"\text{The answer is } 8 apples"), reading("5 or any number"), reading("5 million")
    ('8 \\text{ apples}', '5 or any number', '5 \\text{ million}')
    """
    text = clean(text)
    introduction = _INTRODUCTION.match(text)
    if introduction and re.search("[A-Za-z]{2,}", introduction[0]) and introduction.end() < len(text):
        text = text[introduction.end() :]
    counted = _COUNTED.fullmatch(text)
    if counted and not any(map(_is_no_unit, counted[2].split())):
        return rf"{counted[1]} \text{{ {counted[2]}}}"
    return text


def _is_no_unit(word: str) -> bool:
    """Tell whether a word after a number may be a variable, a product of some, or an operation."""
    word = word.lower()
    return word in _NO_UNITS or word.rstrip("s") in _NO_UNITS or not re.search("[aeiou]", word)


@lru_cache(maxsize=1024)
def answer_in(gold: str) -> str:
    r"""Return the last box of a gold that has one, since the column may hold a solution; else the gold.

    >>> answer_in(r"Hence the total is \boxed{4}."), answer_in("4")
    ('4', '4')
    """
    return (extract_answer(gold, ends=()) or gold) if "boxed" in gold or "fbox" in gold else gold


def gold_problem(gold: str) -> str:
    """Return why a gold is not even shown to math-verify, '' where it is; words are, as text, all right."""
    gold = answer_in(gold)
    if len(gold) > MAX_GOLD_CHARS:
        return "gold: too long"
    text = reading(gold)
    if _COSTLY.search(text) or nesting(text) > MAX_NESTING:
        return "gold: too costly"
    prose = _COMMAND.sub(" ", TEXT.sub(" ", gold))
    if re.search("[0-9]", gold) and len(_WORD.findall(prose)) >= SENTENCE_WORDS:
        return "gold: a sentence; give the final answer alone"
    return ""


def needs_algebra(gold: str) -> bool:
    """Tell whether comparing with this gold needs more than its text."""
    text = reading(answer_in(gold))
    return integer(text) is None and kind(text) is not Kind.WORDS and _clock(text) is None


def _clock(text: str) -> tuple[tuple[int, ...], str] | None:
    """Return the numbers of a time of day or a duration and `a`, `p` or ''; None for anything else."""
    match = _CLOCK.fullmatch(TEXT.sub(r" \1 ", text).strip())
    return (tuple(int(match[k] or 0) for k in (1, 2, 3)), (match[4] or "").lower()) if match else None


def _same_clock(one: tuple[tuple[int, ...], str], other: tuple[tuple[int, ...], str]) -> bool:
    def hours_of_24(time: tuple[tuple[int, ...], str]) -> tuple[int, ...]:
        (hour, *rest), half = time
        return (hour % 12 + 12 * (half == "p") if half else hour, *rest)

    same = one[0] == other[0] and (one[1] == other[1] or not (one[1] and other[1]))
    return same or hours_of_24(one) == hours_of_24(other)


def decide(gold: str, answer: str) -> Grade | None:
    r"""Return a grade where no algebra is needed or none is allowed; None sends the pair to math-verify.

    The guards, each with what math-verify 0.9.0 would have said (observed):
    kind: `\{1,2\}` = `(1,2)`, `3,4` = `3<x<4`, `5` = `5,5`; words: anagrams are equal products of letters;
    base: `4210_5` = `4210`; prose: `3` = `3\text{ apples and }4\text{ pears}`; unit: 15 cm = 15 inches;
    costly: `10^{999999999}` runs for hours. A costly gold is our failure (UNGRADED), a costly answer is not.
    scale: `5` = `5\text{ million}`; letter: `k` = `K`; repeats: `1,2,2` = `1,2`.
    """
    gold = answer_in(gold)
    if len(gold) <= MAX_GOLD_CHARS and exact_match(gold, answer):
        return Grade(Verdict.CORRECT, "exact")
    if len(gold) <= MAX_GOLD_CHARS and (len(answer) > MAX_CHARS or nesting(answer) > MAX_NESTING):
        return Grade(Verdict.INCORRECT, "too_large")
    if integer(gold) is not None and integer(answer) is not None:
        return Grade(Verdict.INCORRECT, "integer")
    if problem := gold_problem(gold):
        return Grade(Verdict.UNGRADED, problem)
    gold, answer = reading(gold), reading(answer)
    if exact_match(gold, answer):
        return Grade(Verdict.CORRECT, "exact")
    times = _clock(gold), _clock(answer)
    if times[0] and times[1]:
        same = _same_clock(times[0], times[1])
        return Grade(Verdict.CORRECT if same else Verdict.INCORRECT, "time")
    if times[0] and (times[0][1] or not times[0][0][1]):  # no ratio has a noon, nor ends in :00
        return Grade(Verdict.INCORRECT, f"kind: {kind(answer).value} for time")
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
    if re.fullmatch("[A-Za-z]", gold) and re.fullmatch("[A-Za-z]", answer):
        return "letter"  # K is not k
    if _mixes_prose(answer):
        return "prose"
    if _repeats_otherwise(gold, answer):
        return "repeats"
    units = _units(gold), _units(answer)
    if not (units[0] <= units[1] or units[1] <= units[0]) or (units[0] ^ units[1]) & _SCALES:
        return "unit"
    return ""
