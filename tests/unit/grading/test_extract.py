"""Extraction finds the last balanced box after the thinking, in linear time, whatever a response contains."""

import time

import pytest

from aipo.grading.extract import MAX_CHARS, extract_answer, last_line


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{5}.", "5"),
        (r"\fbox{5}", "5"),
        (r"\boxed {5}", "5"),
        (r"\boxed{3} then \boxed{5}", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{x = \boxed{5}}", "5"),
        (r"\boxed{5} and then \boxed{6", "5"),  # the last *balanced* box
        (r"\boxed{5", None),
        (r"{ stray \boxed{5}", "5"),
        (r"stray } \boxed{5}", "5"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\{1}", r"\{1"),  # an escaped brace opens nothing
        (r"\boxed{5\\}", r"5\\"),
        ("\\boxed{ 5\n}", "5"),
        (r"\boxed{}", None),
        (r"\boxed{5} \boxed{ }", None),  # an empty last box is not replaced by an earlier one
        (r"\boxed{4} </think> The answer is \boxed{5}", "5"),
        (r"\boxed{4} </think> I do not know", None),
        (r"</think>\boxed{4}</think>\boxed{5}", "5"),
        (r"\boxedness{5}", None),
        (r"\boxed 5", "5"),
        (r"so \boxed 5.", "5"),
        (r"\boxed -3.5$", "-3.5"),
        (r"\boxed B", "B"),
        (r"\boxeds 5", None),
        (r"The roots are $\boxed{3}$ and $\boxed{5}$.", "3, 5"),
        (r"\boxed{3}, \boxed{5}, and \boxed{7}", "3, 5, 7"),
        (r"\(\boxed{3}\) or \(\boxed{5}\)", "3, 5"),
        (r"\boxed{\boxed{3}, \boxed{5}}", "3, 5"),
        (r"$\boxed{5}$, $\boxed{5}$", "5"),
        (r"\boxed{3} is wrong, it is \boxed{5}", "5"),
        (r"First part: \boxed{3}. Second part: \boxed{5}.", "5"),
        ("$\\boxed{3}$\n\n$\\boxed{5}$", "5"),
        (r"<think> maybe \boxed{4}, let me check again and", None),
        (r"Well. <think> maybe \boxed{4}", None),
        (r"\boxed{4} <thinking> or rather", None),
        (r"<think>4?</think>\boxed{4}", "4"),
        (r"<think>4?</think><think>5? \boxed{5}", None),
        (r"[THINK]4? \boxed{4}", None),
        (r"The tag `<think>` opens it. \boxed{4}", "4"),
        ("", None),
        ("5", None),
        ("\\", None),
    ],
)
def test_the_last_balanced_box_is_the_answer(response: str, answer: str | None) -> None:
    assert extract_answer(response) == answer


def test_tags_that_end_the_thinking_can_be_chosen() -> None:
    assert extract_answer(r"\boxed{4}<|done|>\boxed{}", ends=("<|done|>",)) is None
    assert extract_answer(r"\boxed{4}</think>", ends=()) == "4"


@pytest.mark.parametrize(
    ("inside", "accepted"),
    [
        ("1" * MAX_CHARS, True),
        ("1" * (MAX_CHARS + 1), False),
        ("(" * 20 + "1" + ")" * 20, True),
        ("(" * 21 + "1" + ")" * 21, False),
        ("{" * 21 + "1" + "}" * 21, False),
        ("[1,2)" * 40, True),
    ],
)
def test_long_and_deep_boxes_are_no_answer(inside: str, accepted: bool) -> None:
    assert extract_answer(rf"\boxed{{5}} \boxed{{{inside}}}") == (inside if accepted else None)


@pytest.mark.parametrize(
    "unit",
    [
        "{",
        "}",
        r"\boxed{",
        r"\boxed",
        r"\boxed{}",
        "\\",
        "{}",
        r"\boxed ",
        "a",
        "</think>",
        r"\boxed{a}",
        "\\\n",
        r"\boxed{1},",
        r"\boxed 1",
        "`<think>",
    ],
)
def test_time_is_linear(unit: str) -> None:
    def seconds(chars: int) -> float:
        text = unit * (chars // len(unit))
        start = time.process_time()
        extract_answer(text)
        extract_answer(text + "}" * (chars // len(unit)))  # closes every box, the outermost last
        return time.process_time() - start

    seconds(10_000)
    assert seconds(1_000_000) < 40 * max(seconds(100_000), 0.01)  # quadratic would be 100 times


def test_last_line_skips_blank_lines_and_thinking() -> None:
    assert last_line("one\n two \n\n  \n") == "two"
    assert last_line("one</think>\n") == ""
