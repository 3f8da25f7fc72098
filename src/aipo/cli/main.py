"""`aipo`: the verbs.

What works behind a verb is imported when it is called, so that `--help` is quick. Every verb takes a recipe
and dotted overrides, and ends with an exit code that says what happened.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Two threads that wait actively for each other are slower than one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import typer

from aipo import __version__
from aipo.assembly.evaluation_options import NO_OPTIONS, EvaluationOptions, evaluation_parameters
from aipo.cli import agents, data, models, recipes, tasks, verl
from aipo.cli.options import (
    AllowChange,
    AtOnce,
    Baseline,
    Checkpoint,
    ComparisonRecipe,
    Method,
    Minutes,
    NoCache,
    OptionalRecipe,
    Overrides,
    Problems,
    Recipe,
    RecipeOrCheckpoint,
    Records,
    ReportFile,
    RolloutsShown,
    Runs,
    Stratum,
    with_options,
)
from aipo.cli.plan_options import NO_PLAN_OPTIONS, OPTIONS, PlanOptions

app = typer.Typer(
    name="aipo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def found_here() -> None:
    """AIPO: train a policy that consults agents while it learns and reasons alone afterwards."""
    # A recipe may name a module of the user's, which stands in the folder that the command is started in;
    # `python -m aipo` finds it there by itself.
    if not sys.flags.safe_path and (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)


app.add_typer(agents.app)
app.add_typer(models.app)
app.add_typer(tasks.app)
app.add_typer(data.app)
app.add_typer(recipes.app)
app.add_typer(verl.app)


@app.command()
def warmstart(recipe: Recipe, overrides: Overrides = None) -> None:
    """Make the policy that a run begins with: it has seen solutions and consultations, and knows their form.

    A pretrained model (warmstart.model) is fine-tuned on traces: solutions of the task's training problems,
    some with a consultation that a real agent answered. Held-out loss, the share of rollouts that consult,
    and accuracy are measured before and after. A CPU task makes its own policy, from nothing in minutes.
    Written to policy.model, where `aipo train` looks for it (without it, to `policy/` in run.output), as a
    plain Hugging Face folder. Interrupted, the same command continues.
    """
    _refuse_bad_recipe(recipe, overrides or [])
    from aipo.assembly.warmstart import load_start_settings, make_warm_start
    from aipo.cli.console import plain_errors
    from aipo.cli.screen import Terminal

    with plain_errors():
        make_warm_start(load_start_settings(recipe, overrides or []), Terminal())


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    no_cache: NoCache = False,
    allow_change: AllowChange = "",
) -> None:
    """Train a policy. The same command continues an interrupted run.

    Writes to run.output: settings.toml, metrics.jsonl (one line a step), rollouts.jsonl, checkpoints/ and, at
    the end, policy/, a plain Hugging Face folder. What remote and local agents said is kept in a cache, so
    that a step that is run again after a crash asks nobody twice.

    Exit codes: 2 bad input, 3 a guard stopped the run, 130 and 143 ended by SIGINT and SIGTERM. All but 2
    leave a valid checkpoint (docs/recovery.md).
    """
    _refuse_bad_recipe(recipe, overrides or [])
    from aipo.cli.train import train as run

    names = [name.strip() for name in allow_change.split(",") if name.strip()]
    run(recipe, overrides or [], use_cache=not no_cache, may_change=names)


@app.command()
@with_options("options", evaluation_parameters(), EvaluationOptions)
def evaluate(
    recipe: RecipeOrCheckpoint,
    overrides: Overrides = None,
    checkpoint: Checkpoint = None,
    method: Method = "policy",
    options: EvaluationOptions = NO_OPTIONS,
) -> None:
    """Evaluate a policy without agents: accuracy and pass@k with intervals.

    A checkpoint is evaluated on benchmarks: Avg@n and pass@k alone, every sample kept; killed, the same
    command continues (docs/evaluation.md). A recipe is evaluated on its own task, in both solo modes.
    unanswered: a request gets no reply, the policy writes on. banned: request tags cannot be sampled. A third
    mode, agents, may be added to evaluate.modes to see what the agents are worth. Appends to evaluation.jsonl
    in run.output; modes in which this very policy and these problems are there already are not sampled again.
    """
    from aipo.cli.console import plain_errors

    if recipe.suffix == ".toml" or recipe.is_file():
        with plain_errors():
            if given := options.given():
                raise ValueError(f"{', '.join(given)}: for a checkpoint, not for a recipe ({recipe})")
        _refuse_bad_recipe(recipe, overrides or [])
        from aipo.cli.evaluate import evaluate as run

        run(recipe, overrides or [], checkpoint, method)
        return
    with plain_errors():
        if checkpoint is not None or method != "policy":
            raise ValueError(f"--checkpoint and --method are for a recipe; {recipe} is the checkpoint")
    from aipo.cli.evaluate import evaluate_checkpoint

    evaluate_checkpoint(str(recipe), overrides or [], options)


@app.command()
def compare(
    recipe: ComparisonRecipe,
    overrides: Overrides = None,
    at_once: AtOnce = 0,
    minutes: Minutes = 0.0,
    records: Records = None,
) -> None:
    """Compare methods fairly: same warm start, updates, rollouts and problems.

    Learning rates are chosen on the validation split. Runs what is not recorded yet, and writes results.md,
    results.csv and figures to the comparison's folder, with a compact record of each run to keep.
    Interrupted, the same command continues run by run. A folder of recipes is compared recipe by recipe.
    Given folders of finished runs instead, it reads their evaluations and prints one table and one plot;
    given folders of `aipo evaluate CHECKPOINT`, it compares them question by question (docs/evaluation.md).
    """
    _refuse_bad_comparison(recipe, overrides or [])
    from aipo.cli.compare import compare as run

    run(recipe, overrides or [], at_once, minutes, records)


@app.command()
def report(
    runs: Runs, output: ReportFile = None, rollouts: RolloutsShown = 400, baseline: Baseline = ""
) -> None:
    """Write runs as one HTML file: summary, curves, results, the value of consultation, a rollout viewer.

    The file opens from disk, without a server or the network, and makes no request. A folder may be a run's
    or a comparison's; several runs stand on the same axes. Rollouts are a sample of whole groups.
    """
    from aipo.cli.report import report as run

    run(runs, output, rollouts, baseline)


@app.command()
def rollout(
    recipe: Recipe, overrides: Overrides = None, problems: Problems = 2, stratum: Stratum = ""
) -> None:
    """Print a few rollouts, one consulting and one solo for each problem, coloured by who wrote what.

    dim: prompt. plain: policy. green: feedback of an agent. yellow: notice of the system.
    """
    _refuse_bad_recipe(recipe, overrides or [])
    from aipo.cli.rollout import rollout as run

    run(recipe, overrides or [], problems, stratum)


@app.command()
@with_options("options", [parameter for parameter, _ in OPTIONS])
def plan(
    recipe: OptionalRecipe = None, overrides: Overrides = None, options: PlanOptions = NO_PLAN_OPTIONS
) -> None:
    """Plan a step on GPUs: where its time goes, memory, agent servers, cost, and how it scales.

    A simulation of rollouts and agents, and closed formulas for the rest; nothing is loaded or trained. Sizes
    come from the recipe, rates from a run (--like), both replaced by options. Formulas and assumptions:
    docs/planning.md.
    """
    if recipe is not None:
        _refuse_bad_recipe(recipe, overrides or [])
    from aipo.cli.planning import plan as run

    run(recipe, overrides or [], options)


@app.command()
def doctor(recipe: OptionalRecipe = None, overrides: Overrides = None) -> None:
    """Say whether this machine can run a recipe: a table, and the fix of each failing line.

    Versions, devices, disk, memory, what could hold generated code; with a recipe also the tokenizer's tags
    and chat template, agents, engine, one graded problem and one consultation end to end. Nothing is trained.
    The exit code is 1 when something is missing that the settings need.
    """
    if recipe is not None:
        _refuse_bad_recipe(recipe, overrides or [])
    from aipo.cli.doctor import doctor as run

    run(recipe, overrides or [])


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _refuse_bad_recipe(recipe: Path, overrides: Sequence[str]) -> None:
    """Report what is wrong with a recipe before the seconds that importing torch takes."""
    from aipo.cli.console import plain_errors
    from aipo.config.loader import load_settings

    with plain_errors():
        load_settings(recipe, overrides)


def _refuse_bad_comparison(recipe: Path, overrides: Sequence[str]) -> None:
    from aipo.cli.console import plain_errors
    from aipo.config.comparison import comparison_recipes, load_comparison

    with plain_errors():
        for each in comparison_recipes(recipe):
            load_comparison(each, overrides)


if __name__ == "__main__":
    app()
