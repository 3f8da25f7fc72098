"""`aipo compare A B`: folders of evaluations, compared question by question.

Folders of other things are refused by name, and nothing is sampled.
"""

from collections.abc import Sequence
from pathlib import Path

from aipo.cli.console import console
from aipo.evaluation.manifest import EvaluationError, is_evaluation
from aipo.evaluation.pages import VersusPage
from aipo.evaluation.scores import compared, read_evaluation

FOLDER = "comparison"
"""Beside the first evaluation."""


def are_evaluations(folders: Sequence[Path]) -> bool:
    """Tell whether these are folders of evaluations. Raises `EvaluationError` where only some are."""
    kinds = [is_evaluation(folder) for folder in folders]
    if any(kinds) and not all(kinds):
        others = [str(folder) for folder, kind in zip(folders, kinds, strict=True) if not kind]
        raise EvaluationError(
            f"{', '.join(others)}: no folder of `aipo evaluate CHECKPOINT`, as the others are; compare like "
            "with like"
        )
    return all(kinds)


def compare_evaluations(folders: Sequence[Path]) -> None:
    """Print the comparison of each later folder with the first, and write it down. Raises `ValueError`s."""
    if len(folders) < 2:
        raise EvaluationError(f"{folders[0]}: one evaluation; give two or more to compare")
    if len(set(folders)) < len(folders):
        raise EvaluationError("a folder is given twice; give each evaluation once")
    evaluations = [read_evaluation(folder) for folder in folders]
    pairs = compared(evaluations)
    page = VersusPage(evaluations, pairs)
    console.print(f"{page.averages()}\n", markup=False)
    for pair in pairs:
        console.print(f"A = {pair.a}\nB = {pair.b}\n", markup=False)
        for grid in (page.differences(pair), page.curves(pair), page.sets(pair)):
            console.print(f"{grid}\n", markup=False)
        console.print(page.set_words(pair), markup=False)
    written = page.write(folders[0].parent / FOLDER)
    console.print("written: " + ", ".join(map(str, written)), markup=False)
