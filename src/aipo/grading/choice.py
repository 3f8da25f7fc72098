r"""The verdict on a multiple-choice response: the last stated letter, or nothing.

One letter is read or none: a response that names several in one statement states none.

A statement is a box (`\boxed{B}`) or "answer is B" / "Answer: B". The last one counts, also when it cannot be
read: an earlier letter never replaces it. Letters are capitals: in algebra `a` is not `A`, and "a" is an
English word.
"""

import re

from aipo.core.types import Verdict
from aipo.grading import Grade
from aipo.grading.extract import after_thinking

MAX_STATEMENT_CHARS = 300

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
# "answer", a verb or colon, and any marks of emphasis; the letter may stand in the next line.
_SAID = re.compile(
    r"\b(?:answer|choice|option)\b[\s*_]*(?:(?:is|:|=|should\s+be|must\s+be|would\s+be)[\s*_]*)+",
    re.IGNORECASE,
)
_WRAPPERS = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textit|mbox|operatorname)\s*\{([^{}]*)\}")
_LOOSE = re.compile(r"\\(?:left|right|quad|,|;|!|\s)|[\s$*_`~]|\\\(|\\\)")
_LETTER = re.compile(r"[(\[{]?([A-Z])[)\]}]?[.:]?")
# After "answer is": the letter, and then an end, punctuation or a reason; "A very large one" is English.
_SPOKEN = re.compile(
    r"(?:(?:option|choice|letter)\s+)?[*_$`]*+(?:\\(?:text|textbf|mathrm|mathbf)\s*\{[*_$`]*+)?"
    r"(?:\(([A-Z])\)|\[([A-Z])\]|([A-Z])(?![A-Za-z0-9'’^_=+/]))\}?[*_$`]*(?P<rest>.*)",
    re.DOTALL,
)
_AFTER_BARE = re.compile(r"\s*(?:$|[.,;:)\]!—–-]|\b(?:because|since|as)\b)")
_ANOTHER = re.compile(
    r"[\s*_]*+(?:,|/|&|\bor\b|\band\b|\bnor\b)++[\s*_]*+(?:(?:\bor\b|\band\b)[\s*_]*+)?\(?\b([A-Z])\b(?!['’])"
)


def grade_choice(response: str, gold: str, letters: str = "ABCD") -> Grade:
    r"""Grade the assistant's whole turn against the gold letter.

    A response that states no choice is INCORRECT (`no_answer`); a last statement that is not one of `letters`
    is INCORRECT (`unreadable`). A gold that is not one of `letters` is our failure: UNGRADED.

    >>> grade_choice(r"A is tempting. \boxed{\text{(B)}}", "B").reason, grade_choice("A or B", "B").reason
    ('choice', 'no_answer')
    """
    if len(gold) != 1 or gold not in letters:
        return Grade(Verdict.UNGRADED, f"gold: {gold[:20]!r} is none of {letters}")
    stated = last_choice(response, letters)
    if stated is None:
        return Grade(Verdict.INCORRECT, "no_answer")
    if not stated:
        return Grade(Verdict.INCORRECT, "unreadable")
    return (
        Grade(Verdict.CORRECT, "choice") if stated == gold else Grade(Verdict.INCORRECT, f"choice: {stated}")
    )


def last_choice(response: str, letters: str = "ABCD") -> str | None:
    """Return the letter of the last statement, '' when that one is unreadable, None without a statement.

    >>> last_choice("The answer is (C)."), last_choice("the answer is A very large one"), last_choice("B")
    ('C', '', None)
    """
    text = after_thinking(response)
    box = _last(_BOX, text)
    said = _last(_SAID, text)
    if box is None and said is None:
        return None
    # "The answer is \boxed{B}" is one statement, the box.
    boxed = box is not None and (said is None or box.end() > said.end())
    end = box.end() if boxed and box is not None else said.end() if said is not None else 0
    after = text[end : end + MAX_STATEMENT_CHARS]
    letter = _boxed_letter(after) if boxed else _spoken_letter(after.split("\n", 1)[0])
    return letter if letter and letter in letters else ""


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    last = None
    for match in pattern.finditer(text):
        last = match
    return last


def _boxed_letter(after: str) -> str:
    """Return the letter in a box of which `after` is what follows its opening brace."""
    depth = 1
    for at, char in enumerate(after):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            inside = _LOOSE.sub("", _WRAPPERS.sub(r"\1", after[:at]))
            match = _LETTER.fullmatch(inside)
            return match[1] if match else ""
    return ""


def _spoken_letter(after: str) -> str:
    match = _SPOKEN.match(after)
    if match is None:
        return ""
    rest = match["rest"]
    if _ANOTHER.match(rest) or (match[3] and not _AFTER_BARE.match(rest)):
        return ""
    return match[1] or match[2] or match[3]
