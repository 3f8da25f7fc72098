"""All parsing of text that a model wrote takes linear time, whatever that text is.

Every regular expression of `grading/`, `consult/` and `tasks/`, and every parser of them that is given a
response, gets adversarial texts of growing size: runs of what the expression itself is made of. The exponent
of time by size is measured.
"""

import importlib
import inspect
import json
import math
import pkgutil
import re
import time
from collections.abc import Callable, Iterator
from functools import cache

import pytest

import aipo.consult
import aipo.grading
import aipo.tasks
from aipo.agents.base import AgentError
from aipo.consult.protocol import Protocol, neutralise
from aipo.consult.tool_template import ToolTexts
from aipo.consult.tools import ToolCalls
from aipo.grading.choice import last_choice
from aipo.grading.code import extract_code
from aipo.grading.code_values import MalformedValue, decode, parse_lines, same_output
from aipo.grading.extract import MAX_RESPONSE_CHARS, after_thinking, extract_answer, last_line
from aipo.grading.guards import decide
from aipo.grading.text import clean, exact_match, without_gold
from aipo.rollout.rubric import fenced, score_in
from aipo.tasks.benchmarks.gym_tasks import answer_of
from aipo.tasks.benchmarks.task import grade_integer

SIZES = (2_000, 8_000, 32_000)
EXPONENT = 1.5
LOOK_S = 0.004
NOISE_S = 0.01
"""What takes less at the largest size is not measured: a quadratic expression takes seconds there."""
# Not imported: the grader's process, which replaces a part of math-verify; the sandbox's own, which is text.
NOT_IMPORTED = {"aipo.grading.worker", "aipo.grading.algebra", "aipo.grading.harness"}
PUMPS = (
    "1",
    "a",
    "A",
    " ",
    "\t",
    "\n",
    ".",
    ",",
    "-",
    "+",
    "=",
    "_",
    "^",
    "!",
    "*",
    "`",
    "~",
    "$",
    "|",
    "\0",
    ":",
)
PUMPS += (
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "\\",
    "/",
    "'",
    '"',
    "<",
    ">",
    "1 ",
    " a",
    "1,111",
    "1.1",
    "( ",
    ") ",
    "{ ",
)
PUMPS += (
    "\\text{",
    "\\text{a",
    "\\{",
    "\\boxed{",
    "\\frac",
    "answer is ",
    "answer:",
    " and ",
    "and",
    "1^",
    "1)",
    "1!",
)
HEADS = ("", "1", "\\", "\\text{", "answer", "```", "1^")


def modules() -> Iterator[str]:
    for package in (aipo.grading, aipo.consult, aipo.tasks):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name not in NOT_IMPORTED and ".sandbox" not in found.name:
                yield found.name
    yield "aipo.rollout.rubric"  # a judge is shown what a policy wrote


METHODS = ("match", "fullmatch", "search", "sub", "finditer", "findall", "split")


@cache
def patterns() -> dict[str, tuple["re.Pattern[str]", tuple[str, ...]]]:
    """Every compiled expression of a module, also inside a tuple, and how that module applies it."""
    found = {}
    for name in modules():
        module = importlib.import_module(name)
        source = inspect.getsource(module)
        for key, value in vars(module).items():
            how = tuple(method for method in METHODS if re.search(rf"\b{key}\.{method}\b", source))
            for k, item in enumerate(value if isinstance(value, tuple) else (value,)):
                item = item[0] if isinstance(item, tuple) and item else item
                if isinstance(item, re.Pattern) and isinstance(item.pattern, str):
                    found[f"{name}:{key}:{k}"] = item, how or ("sub",)
    return found


def own_texts(pattern: str) -> set[str]:
    """What an expression is made of: its words, and each of its signs."""
    words = re.findall(r"[A-Za-z]{2,}", pattern)
    return {*words, *(f"\\{word}{{" for word in words), *(f"{word} " for word in words)} | set(pattern[:200])


def seconds(call: Callable[[str], object], text: str) -> float:
    start = time.process_time()
    call(text)
    return time.process_time() - start


def exponent(call: Callable[[str], object], make: Callable[[int], str]) -> float:
    """Return by which power of the size the time grows; 0 where it is too short to be measured."""
    times = []
    for size in SIZES:
        times.append(seconds(call, make(size)))
        if times[-1] > 0.2:  # no need to wait for more of it
            break
    if times[-1] < NOISE_S or len(times) < 2:
        return 0.0 if times[-1] < NOISE_S else 9.0
    return max(
        math.log(b / max(a, 1e-5)) / math.log(4) for a, b in zip(times[-2:-1], times[-1:], strict=True)
    )


def confirmed(call: Callable[[str], object], make: Callable[[int], str]) -> bool:
    """Measured three times, since other jobs run too: super-linear each time."""
    return all(exponent(call, make) > EXPONENT for _ in range(3))


def test_the_measure_finds_a_quadratic_expression() -> None:
    quadratic = re.compile(r"[ \t]*([^\n`]*)$")
    assert confirmed(quadratic.fullmatch, lambda size: " " * size + "`")
    assert not confirmed(re.compile("a+$").match, lambda size: "a" * size + "b")


def applied(expression: "re.Pattern[str]", method: str) -> Callable[[str], object]:
    if method == "sub":
        return lambda text: expression.sub("", text)
    if method == "finditer":
        return lambda text: list(expression.finditer(text))
    return getattr(expression, method)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", sorted(patterns()))
def test_every_regular_expression_takes_linear_time(name: str) -> None:
    expression, methods = patterns()[name]
    slow = []
    for call in (applied(expression, method) for method in methods):
        for pump in sorted({*PUMPS, *own_texts(expression.pattern)}):
            for head in HEADS:

                def make(size: int, head: str = head, pump: str = pump) -> str:
                    return head + pump * (size // len(pump)) + "x"

                # A first look at a small size: what is quadratic takes milliseconds there already.
                if seconds(call, make(2_000)) > LOOK_S and confirmed(call, make):
                    slow.append((head, pump))
    assert slow == []


PROTOCOL = Protocol(
    tags={"knowledge": "knowledge", "verify": "verify"},
    feedback_tag="feedback",
    enabled=("knowledge", "verify"),
)


def calls(opening: str, closing: str, arguments: str) -> ToolCalls:
    texts = ToolTexts(
        opening=opening,
        closing=closing,
        call="",
        name_key="name",
        arguments_key=arguments,
        first_key='{"name"',
        ends=("<|im_end|>",),
        replies={},
    )
    return ToolCalls(texts=texts, enabled=("knowledge", "verify"))


def _lines(text: str) -> object:
    try:
        return [decode(tree) for tag, tree in parse_lines(text.encode()) if tag == "v"]
    except MalformedValue:
        return None


def _score(text: str) -> object:
    try:
        return score_in(text, 0, 10)
    except AgentError:
        return None


PARSERS: dict[str, Callable[[str], object]] = {
    "after_thinking": after_thinking,
    "extract_answer": extract_answer,
    "last_line": last_line,
    "extract_code": extract_code,
    "last_choice": last_choice,
    "clean": clean.__wrapped__,
    "exact_match": lambda text: exact_match("5", text),
    "decide": lambda text: decide("5", text),
    "decide, as an answer to a formula": lambda text: decide(r"\frac{1}{2}", text[:300]),
    "without_gold": lambda text: without_gold(text, "1 2 3"),
    "same_output": lambda text: same_output(text.encode(), text[1:]),
    "parse_lines": _lines,
    "gym answer": answer_of,
    "judge's fence": lambda text: fenced("", text),
    "judge's score": _score,
    "grade_integer": lambda text: grade_integer(text, "5"),
    "Protocol.parse": PROTOCOL.parse,
    "ToolCalls.parse, between tags": calls("<tool_call>", "</tool_call>", "arguments").parse,
    "ToolCalls.parse, at the end": calls("", "", "parameters").parse,
    "neutralise": lambda text: neutralise(text, PROTOCOL.control_strings),
}
UNITS = (
    *PUMPS,
    "<think>",
    "</think>",
    "`<think>",
    "<knowledge>",
    "</knowledge>",
    "</verify> <verify>",
    "<tool_call>",
    "</tool_call>",
    '\n{"name": "parameters"',
    '{"name":',
    "\n<|python_tag|> ",
    "```\n",
    "~~~\n",
)
UNITS += (
    "\\boxed{1},",
    "\\boxed 5 and ",
    "\\boxed{\\boxed{",
    "$\\boxed{1}$ ",
    "1. ```\n",
    "answer is A\n",
    "   ```\n",
)
UNITS += (
    '{"v": 1}\n',
    '{"v": [',
    "1 2 3",
    "<answer>",
    "</answer>",
    "1e5 ",
    "\r\n",
    "\u2028",
    "²",
    "½",
    "√",
    "√(",
    "\u0305",
)


@pytest.mark.parametrize("name", PARSERS)
def test_every_parser_takes_linear_time(name: str) -> None:
    slow = []
    for unit in UNITS:
        for end in ("", "x"):

            def make(size: int, unit: str = unit, end: str = end) -> str:
                return unit * (size // len(unit)) + end

            if seconds(PARSERS[name], make(8_000)) > NOISE_S and confirmed(PARSERS[name], make):
                slow.append((unit, end))
    assert slow == []


@pytest.mark.parametrize("unit", ["{", "\\boxed{1},", "\\boxed{", "answer is A\n", "a", "<think>`", "\\"])
def test_the_event_loop_spends_a_bounded_time_on_a_response(unit: str) -> None:
    """A response of ten megabytes: what stands far from its end is not looked at."""
    text = unit * (10_000_000 // len(unit))
    assert len(after_thinking(text)) <= MAX_RESPONSE_CHARS
    spent = min(seconds(lambda text: (extract_answer(text), last_choice(text)), text) for _ in range(3))
    assert spent < 1.0  # about 0.1 s on an idle machine


def test_a_megabyte_of_digits_is_compared_at_once() -> None:
    """It took 16 s at 20,000 digits, with the event loop frozen."""
    digits = "1" * 1_000_000
    assert seconds(lambda text: same_output(text.encode(), text + "1"), digits) < 2.0
    assert seconds(lambda text: same_output(text.encode() + b"x", text + "1"), digits) < 2.0
    assert not same_output(digits.encode(), json.dumps(digits))
