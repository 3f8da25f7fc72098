"""Whatever a response contains, no grader raises or stalls. `AIPO_FUZZ_EXAMPLES` makes it look longer."""

import os
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from aipo.core.types import Verdict
from aipo.grading.choice import grade_choice
from aipo.grading.code import extract_code
from aipo.grading.code_values import MalformedValue, decode, parse_lines, same_output
from aipo.grading.extract import extract_answer, last_line
from aipo.grading.guards import decide
from aipo.grading.text import exact_match, without_gold

EXAMPLES = int(os.environ.get("AIPO_FUZZ_EXAMPLES", "300"))
PIECES = (
    *(r"\boxed{", r"\boxed 5", "{", "}", r"\{", r"\}", "(", ")", "$", r"\frac", r"\text{", "<think>"),
    *("</think>", "1", "0.", "e5", "^", "!", ",", " and ", " or ", "x", "=", "<", r"\le ", ":", "12:00"),
    *("½", "√", "²", "３", "\u0305", r"\overline{3}", r"\dot", "```", "```python\n", "~~~", "\n", "\t"),
    *("   ", "1. ", "answer is ", "A", "\0", "\ud800", "\u202e", "𝟑", r"\color{red}", "**", "million"),
    *(" apples", r"\infty", r"\begin{pmatrix}"),
)
LINES = ('{"v": ', '{"s": [', '{"d": [[', '{"i": "0x', '{"t": [', "1", ",", "]", "}", '"', "\n")
RESPONSES = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=60).map("".join)
GOLDS = ("5", r"\frac{1}{2}", "1,2", "(0,1)", "12:00", r"\emptyset", "x^2", r"\text{Yes}", "90°", "0.(3)")


@settings(max_examples=EXAMPLES, deadline=None)
@given(RESPONSES, st.sampled_from(GOLDS))
def test_no_response_makes_a_grader_raise_stall_or_leave_the_batch(response: str, gold: str) -> None:
    start = time.process_time()
    answer = extract_answer(response)
    for text in (response[:300], answer or ""):
        grade = decide(gold, text)
        assert grade is None or (grade.verdict is not Verdict.UNGRADED and len(grade.reason) <= 200)
    assert grade_choice(response, "B").verdict is not Verdict.UNGRADED
    program = extract_code(response)
    assert program is None or program.strip()
    last_line(response)
    exact_match(gold, response)
    without_gold(response, gold)
    same_output(response.encode("utf-8", "replace"), response)
    assert time.process_time() - start < 1.0


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ['{"v": ', '{"s": [', '{"d": [[', '{"i": "0x', '{"t": [', "1", ",", "]", "}", '"', "\n"]
        )
    )
)
def test_no_output_of_a_program_makes_the_comparison_raise(pieces: list[str]) -> None:
    try:
        for tag, tree in parse_lines("".join(pieces).encode()):
            if tag == "v":
                decode(tree)
    except MalformedValue:
        pass
