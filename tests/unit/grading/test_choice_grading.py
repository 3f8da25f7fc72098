r"""Multiple choice: which letter a response states last, labelled by hand."""

import pytest

from aipo.core.types import Verdict
from aipo.grading.choice import grade_choice, last_choice

# response, the letter that it states: '' where its last statement cannot be read, None where there is none
BATTERY = [
    # boxes
    (r"\boxed{B}", "B"),
    (r"So the answer is $\boxed{C}$.", "C"),
    (r"\boxed{(D)}", "D"),
    (r"\boxed{A.}", "A"),
    (r"\boxed{\text{B}}", "B"),
    (r"\boxed{\text{(B)}}", "B"),
    (r"\boxed{\mathrm{C}}", "C"),
    (r"\boxed{ \textbf{ D } }", "D"),
    (r"\fbox{A}", "A"),
    (r"\boxed{\text{B}.}", "B"),
    (r"\boxed{$A$}", "A"),
    (r"\boxed {C}", "C"),
    (r"\boxed{A} no, \boxed{B}", "B"),
    (r"\boxed{[B]}", "B"),
    (r"\boxed{b}", ""),
    (r"\boxed{E}", ""),
    (r"\boxed{42}", ""),
    (r"\boxed{A, B}", ""),
    (r"\boxed{AB}", ""),
    (r"\boxed{A \text{ or } B}", ""),
    (r"\boxed{B) 42\ \mathrm{m/s}}", ""),
    (r"\boxed{}", ""),
    (r"\boxed{B", ""),
    (r"\boxed{A}\boxed{}", ""),
    (r"\boxed{\frac{B}{A}}", ""),
    # words
    ("Answer: A", "A"),
    ("Answer: (B)", "B"),
    ("ANSWER: C.", "C"),
    ("**Answer: D**", "D"),
    ("**Answer:** D", "D"),
    ("The answer is B.", "B"),
    ("The correct answer is (C).", "C"),
    ("The correct answer is **A**.", "A"),
    ("The answer is option D.", "D"),
    ("The answer is: B", "B"),
    ("Answer = B", "B"),
    ("the correct choice is [C]", "C"),
    ("The correct option should be D", "D"),
    ("The answer is $C$.", "C"),
    (r"The answer is $\text{C}$.", "C"),
    ("The answer is B) 42 m/s", "B"),
    ("The answer is B, because the field vanishes.", "B"),
    ("The answer is B because the field vanishes.", "B"),
    ("The answer is D: 12 eV", "D"),
    ("Answer: A\nAnswer: C\n", "C"),
    ("The answer is A. Wait. The answer is D.", "D"),
    ("Answer: B\nThat follows from A and C.", "B"),
    (r"Answer: A. Finally, \boxed{C}", "C"),
    (r"\boxed{C}, so Answer: A", "A"),
    (r"The answer is \boxed{B}", "B"),
    (r"Answer: \boxed{\text{B}}", "B"),
    ("<think>Answer: A</think>Answer: B", "B"),
    # not stated, or not one
    ("", None),
    ("B", None),
    ("(B)", None),
    ("I choose B", None),
    ("A is wrong and B is tempting.", None),
    ("Of options A and B, neither.", None),
    ("<think>\\boxed{A}</think>", None),
    ("The answer is A very large one", ""),
    ("The answer is A or B", ""),
    ("The answer is A, B", ""),
    ("Answer: (A) and (B)", ""),
    ("Answer: A/B", ""),
    ("Answer: (A), (B), (C), (D)", ""),
    ("Answer: A & B", ""),
    ("Answer: b", ""),
    ("Answer: E", ""),
    ("Answer: 42", ""),
    ("**Answer:**\nB", "B"),
    ("The answer is AB.", ""),
    ("The answer is A's opposite", ""),
    ("The answer is B = 3 T", ""),
    ("The answer is not B.", ""),
    ("The answer is unknown.", ""),
    ("Answer: A\nAnswer: none of them", ""),
    ("answer is answer is answer is", ""),
    ("Answer: АВ", ""),  # Cyrillic
    ("Answer: В", ""),  # Cyrillic
    ("Answer: Ｂ", ""),  # full width
    ("Answer: B\u200b", ""),
    ("Answer: ABCD", ""),
    (r"\boxed{A B C D}", ""),
    ("{" * 100_000 + r"\boxed{A", ""),
    ("answer " * 50_000, None),
    (r"\boxed{" * 30_000, ""),
]


@pytest.mark.parametrize(("response", "letter"), BATTERY, ids=[repr(case[0][:40]) for case in BATTERY])
def test_the_last_stated_letter_is_read_and_no_other(response: str, letter: str | None) -> None:
    assert last_choice(response) == letter


@pytest.mark.parametrize(("response", "letter"), BATTERY, ids=[repr(case[0][:40]) for case in BATTERY])
def test_at_most_one_gold_is_correct_for_a_response(response: str, letter: str | None) -> None:
    correct = [gold for gold in "ABCD" if grade_choice(response, gold).verdict is Verdict.CORRECT]
    assert correct == ([letter] if letter else [])


def test_a_response_without_a_choice_and_an_unreadable_one_are_told_apart() -> None:
    assert grade_choice("no idea", "A").reason == "no_answer"
    assert grade_choice(r"\boxed{A, B}", "A").reason == "unreadable"
    assert grade_choice("Answer: B", "A").reason == "choice: B"


def test_a_gold_that_is_no_choice_is_ungraded() -> None:
    for gold in ("", "E", "a", "AB"):
        assert grade_choice("Answer: A", gold).verdict is Verdict.UNGRADED


def test_more_letters_than_four_can_be_asked_for() -> None:
    assert grade_choice("Answer: J", "J", letters="ABCDEFGHIJ").verdict is Verdict.CORRECT
