"""`aipo evaluate RECIPE`: how good a policy is alone."""

from collections.abc import Sequence
from pathlib import Path

from aipo.assembly.evaluation import evaluate as evaluate_policy
from aipo.cli.console import console, plain_errors
from aipo.cli.screen import Terminal
from aipo.config.loader import load_settings
from aipo.evaluation.table import results_table


def evaluate(recipe: Path, overrides: Sequence[str], checkpoint: Path | None, method: str) -> None:
    """Evaluate a policy without agents; see `aipo evaluate --help`."""
    with plain_errors():
        changes = [*overrides, *([f"policy.model={checkpoint}"] if checkpoint else [])]
        settings = load_settings(recipe, changes)
        records = evaluate_policy(settings, method=method, reporter=Terminal())
        console.print(str(results_table(records, settings.evaluate.pass_at)), markup=False)
