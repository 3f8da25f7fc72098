"""The verdict on a response whose gold is mathematics: extract, compare as text, compare as algebra.

Owns the order of these steps. Must not know tasks or datasets.
Invariant: a response without an answer is INCORRECT and counted apart as `no_answer`.
"""

from aipo.core.types import Verdict
from aipo.grading.extract import extract_answer
from aipo.grading.grade import Grade
from aipo.grading.pool import MathPool


async def grade_math(response: str, gold: str, pool: MathPool) -> Grade:
    """Grade the assistant's whole turn against a gold answer in LaTeX.

    Raises:
        RuntimeError: the pool is closed. Never for what the response contains.
    """
    answer = extract_answer(response)
    if answer is None:
        return Grade(Verdict.INCORRECT, "no_answer")
    return await pool.equal(gold, answer)
