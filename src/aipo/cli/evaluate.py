"""`aipo evaluate`, and `aipo compare` of what it wrote: what is printed."""

from collections.abc import Sequence
from pathlib import Path

from aipo.assembly.checkpoint import default_output
from aipo.assembly.checkpoint import evaluate_checkpoint as run_checkpoint
from aipo.assembly.evaluation import evaluate as evaluate_policy
from aipo.assembly.evaluation_options import EvaluationOptions
from aipo.cli.console import console, plain_errors
from aipo.cli.screen import Terminal
from aipo.config.loader import load_settings
from aipo.evaluation.manifest import EvaluationError, is_evaluation
from aipo.evaluation.pages import RESULTS_MD, ScorePage, VersusPage
from aipo.evaluation.samples import SAMPLES
from aipo.evaluation.scores import compared, read_evaluation
from aipo.evaluation.table import results_table, reward_grid

FOLDER = "comparison"
"""Beside the first evaluation."""


def evaluate(recipe: Path, overrides: Sequence[str], checkpoint: Path | None, method: str) -> None:
    """Evaluate a policy without agents; see `aipo evaluate --help`."""
    with plain_errors():
        changes = [*overrides, *([f"policy.model={checkpoint}"] if checkpoint else [])]
        settings = load_settings(recipe, changes)
        records = evaluate_policy(settings, method=method, reporter=Terminal())
        console.print(str(results_table(records, settings.evaluate.pass_at)), markup=False)
        if (rewards := reward_grid(records)) is not None:
            console.print(f"{rewards}\n", markup=False)


def evaluate_checkpoint(checkpoint: str, overrides: Sequence[str], options: EvaluationOptions) -> None:
    """Evaluate a checkpoint on benchmarks; see `aipo evaluate --help`."""
    with plain_errors():
        page = ScorePage(run_checkpoint(checkpoint, options, overrides, Terminal()))
    for condition in page.manifest.conditions:
        title = "alone: no agent was reachable" if condition == "solo" else "with agents"
        console.print(f"{title}\n{page.table(condition)}\n", markup=False)
        for name, grid in page.strata(condition).items():
            console.print(f"{name}, {condition}, by stratum\n{grid}\n", markup=False)
    if page.worth:
        console.print(f"what the agents were worth\n{page.agents()}\n", markup=False)
    for note in page.notes():
        console.print(note, markup=False)
    folder = options.output or default_output(checkpoint)
    console.print(f"results: {folder / RESULTS_MD}\nsamples: {folder / SAMPLES}", markup=False)


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
