r"""Which part of a response is its answer: the last balanced box after the thinking.

Time is linear in the response, whatever it contains.

The field's graders join several boxes into one set and prefer a later sentence to a box; this module looks at
one box only (https://github.com/huggingface/Math-Verify, README, "boxed_match_priority").
"""

import re
from itertools import accumulate

MAX_CHARS = 300
MAX_NESTING = 20
THINKING_ENDS = ("</think>", "</thinking>")

# An escape is one token, so that \{ and \} are text; "\\}" is an escaped backslash and then a closing brace.
_TOKEN = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_DEPTH = {**dict.fromkeys("([{", 1), **dict.fromkeys(")]}", -1)}


def after_thinking(response: str, ends: tuple[str, ...] = THINKING_ENDS) -> str:
    """Return the text after the last end-of-thinking tag, or all of it when there is none.

    >>> after_thinking("maybe 4</think>It is 5.")
    'It is 5.'
    """
    cut = max((at + len(end) for end in ends if (at := response.rfind(end)) >= 0), default=0)
    return response[cut:]


def extract_answer(response: str, ends: tuple[str, ...] = THINKING_ENDS) -> str | None:
    r"""Return the content of the last balanced `\boxed{...}` or `\fbox{...}` after the thinking.

    "Last" is by where a box opens, so of nested boxes the innermost counts. A box that is empty, longer than
    `MAX_CHARS` or nested deeper than `MAX_NESTING` brackets is no answer; an earlier box never replaces it.

    >>> extract_answer(r"\boxed{3}, no: \boxed{\frac{1}{2}} or so")
    '\\frac{1}{2}'
    """
    text = after_thinking(response, ends)
    opened: list[tuple[int, int]] = []  # where a box opens (-1: a plain brace), where its content starts
    last, content = -1, ""
    for token in _TOKEN.finditer(text):
        if token[0] == "}":
            start, inside = opened.pop() if opened else (-1, 0)
            if start > last:
                # Linear: a box around this one opens earlier, so no character is ever copied twice.
                last, content = start, text[inside : token.start()]
        elif token[0] == "{":
            opened.append((-1, token.end()))
        elif token[0].endswith("{") and token[0] != r"\{":
            opened.append((token.start(), token.end()))
    answer = content if len(content) <= MAX_CHARS else ""
    return answer.strip() if answer.strip() and nesting(answer) <= MAX_NESTING else None


def nesting(text: str) -> int:
    """Return how deep round, square and curly brackets nest; `[2,5)` closes what it opens."""
    return max(accumulate((_DEPTH.get(char, 0) for char in text), initial=0))


def last_line(response: str, ends: tuple[str, ...] = THINKING_ENDS) -> str:
    """Return the last line after the thinking that is not blank, stripped; '' when there is none."""
    return after_thinking(response, ends).rstrip().rpartition("\n")[2].strip()
