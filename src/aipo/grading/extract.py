r"""Which part of a response is its answer: the last balanced box after the thinking.

Time is linear in the response, whatever it contains, and at most the last `MAX_RESPONSE_CHARS` characters are
looked at: that bounds what the event loop spends on a response, to about 0.1 s.

The field's graders join several boxes into one set and prefer a later sentence to a box; here boxes are one
answer only where nothing but commas, `and` and signs of mathematics stands between them
(https://github.com/huggingface/Math-Verify, README, "boxed_match_priority").
"""

import re
from itertools import accumulate

MAX_CHARS = 300
MAX_NESTING = 20
MAX_RESPONSE_CHARS = 200_000
THINKING_ENDS = ("</think>", "</thinking>", "[/THINK]")

# An escape is one token, so that \{ and \} are text; "\\}" is an escaped backslash and then a closing brace.
_TOKEN = re.compile(
    r"\\(?:boxed|fbox)(?:\s*\{|\s*(?P<bare>[-+]?[0-9]+(?:[.,/][0-9]+)*)|\s+(?P<letter>[A-Za-z])(?![A-Za-z]))"
    r"|\\.|[{}]",
    re.DOTALL,
)
_DEPTH = {**dict.fromkeys("([{", 1), **dict.fromkeys(")]}", -1)}
_BETWEEN = re.compile(
    r"(?:[\s$,;&]|\\[()\[\],;:! ]|\\q?quad(?![A-Za-z])|\\text\s*\{[\s,]*+(?:(?:and|or)[\s,]*)?\}"
    r"|\b(?:and|or)\b)*"
)
_LISTED = re.compile(r"[,;&]|\b(?:and|or)\b")
_MAX_BETWEEN = 60
_QUOTES = "`'\"“‘"


def after_thinking(response: str, ends: tuple[str, ...] = THINKING_ENDS) -> str:
    """Return the text after the last end-of-thinking tag, or all of it when there is none.

    Where thinking was begun and not ended nothing stands after it: ''. A tag in quotation marks begins none.

    >>> after_thinking("maybe 4</think>It is 5."), after_thinking("<think> It is 5, I guess")
    ('It is 5.', '')
    """
    cut = end_of_thinking(response, ends)
    return response[max(cut, len(response) - MAX_RESPONSE_CHARS) :]


def end_of_thinking(response: str, ends: tuple[str, ...] = THINKING_ENDS) -> int:
    """Return where the text after the thinking starts; the end of the response where it never does."""
    cut = max((at + len(end) for end in ends if (at := response.rfind(end)) >= 0), default=0)
    for end in ends:
        begin = end.replace("/", "", 1)
        at = response.rfind(begin, cut) if begin != end else -1
        while at > cut and response[at - 1] in _QUOTES:
            at = response.rfind(begin, cut, at)
        if at >= 0:
            return len(response)
    return cut


def extract_answer(response: str, ends: tuple[str, ...] = THINKING_ENDS) -> str | None:
    r"""Return the content of the last balanced `\boxed{...}` or `\fbox{...}` after the thinking.

    "Last" is by where a box opens, so of nested boxes the innermost counts. Boxes before it belong to it
    where commas, `and`, `or` and signs of mathematics are all that stands between them. `\boxed 5` is a
    box too. A box that is empty, longer than `MAX_CHARS` or nested deeper than `MAX_NESTING` brackets is no
    answer; an earlier box never replaces it.

    >>> extract_answer(r"\boxed{3}, no: \boxed{\frac{1}{2}}"), extract_answer(r"$\boxed{3}$ and $\boxed 5$")
    ('\\frac{1}{2}', '3, 5')
    """
    text = after_thinking(response, ends)
    boxes = _boxes(text)
    if not boxes:
        return None
    last = max(range(len(boxes)), key=lambda index: boxes[index][0])
    parts = [_content(text, boxes[last])]
    while last and len(parts) < MAX_CHARS and _joined(text, boxes[last - 1][3], boxes[last][0]):
        last -= 1
        parts.append(_content(text, boxes[last]))
    answer = ", ".join(dict.fromkeys(reversed(parts))) if all(parts) else ""
    if not answer or len(answer) > MAX_CHARS or nesting(answer) > MAX_NESTING:
        return None
    return answer


def _boxes(text: str) -> list[tuple[int, int, int, int]]:
    """Return all balanced boxes in the order in which they end: their start, their content's start and end,
    their end."""
    boxes: list[tuple[int, int, int, int]] = []
    opened: list[tuple[int, int]] = []  # where a box opens (-1: a plain brace), where its content starts
    for token in _TOKEN.finditer(text):
        if token[0] == "}":
            start, inside = opened.pop() if opened else (-1, 0)
            if start >= 0:
                boxes.append((start, inside, token.start(), token.end()))
        elif token[0] == "{":
            opened.append((-1, token.end()))
        elif group := token.lastgroup:
            boxes.append((token.start(), token.start(group), token.end(group), token.end()))
        elif token[0].endswith("{") and token[0] != r"\{":
            opened.append((token.start(), token.end()))
    return boxes


def _content(text: str, box: tuple[int, int, int, int]) -> str:
    """Return what stands in a box; too much of it is cut, and still too long."""
    return text[box[1] : min(box[2], box[1] + 2 * MAX_CHARS)].strip()


def _joined(text: str, end: int, start: int) -> bool:
    """Tell whether a box that ends at `end` and one that starts at `start` are parts of one answer."""
    if not 0 < start - end <= _MAX_BETWEEN:
        return False
    between = text[end:start]
    return bool(
        _BETWEEN.fullmatch(between) and (_LISTED.search(between) or ("$" in between and "\n" not in between))
    )


def nesting(text: str) -> int:
    """Return how deep round, square and curly brackets nest; `[2,5)` closes what it opens."""
    return max(accumulate((_DEPTH.get(char, 0) for char in text), initial=0))


def last_line(response: str, ends: tuple[str, ...] = THINKING_ENDS) -> str:
    """Return the last line after the thinking that is not blank, stripped; '' when there is none."""
    return after_thinking(response, ends).rstrip().rpartition("\n")[2].strip()
