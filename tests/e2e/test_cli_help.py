"""`--help` tells a newcomer what a verb needs and writes, and comes at once.

Proves: every verb has a help that exits with 0 and names its arguments; nothing heavy is imported for it; a
wrong verb or option is an error that names it.
"""

import os
import subprocess
import sys

import pytest

from aipo import __version__
from support.policies import run_cli

VERBS = {
    "warmstart": [
        "recipe",
        "overrides",
        "run.output",
        "policy/",
        "recipes/tiny.toml",
        "from nothing in minutes",
    ],
    "train": [
        "recipe",
        "overrides",
        "train.steps=50",
        "docs/settings.md",
        "metrics.jsonl",
        "continues",
        "--no-cache",
    ],
    "evaluate": [
        "recipe",
        "--checkpoint",
        "--method",
        "unanswered",
        "banned",
        "evaluation.jsonl",
        "intervals",
    ],
    "compare": [
        "table `compare`",
        "recipes/main.toml",
        "--at-once",
        "--records",
        "validation",
        "continues",
        "results.md",
    ],
    "report": ["--rollouts", "--baseline", "opens from disk"],
    "plan": ["--model", "--gpus", "--agent-servers"],
    "rollout": ["recipe", "--problems", "--stratum", "green", "coloured"],
    "version": ["version"],
}
QUICK = """
import sys
from aipo.cli.main import app
try:
    app({arguments})
finally:
    heavy = {{"torch", "transformers", "matplotlib", "numpy", "reasoning_gym"}} & set(sys.modules)
    if "--help" in {arguments}:
        heavy |= {{"asyncio"}} & set(sys.modules)
    assert not heavy, heavy
"""


def folded(text: str) -> str:
    """Return the words of a help page, without its frames and line breaks."""
    return " ".join(word for word in text.replace("│", " ").split() if not set(word) <= set("╭╮╰╯─"))


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")


def test_the_help_of_aipo_lists_every_verb_with_a_sentence() -> None:
    result = run_cli("--help")
    assert result.exit_code == 0
    text = folded(result.output)
    assert "consults agents while it learns and reasons alone afterwards" in text
    for verb, sentence in {
        "warmstart": "Make the policy",
        "train": "Train a policy",
        "evaluate": "Evaluate a policy without agents",
        "compare": "Compare methods fairly",
        "rollout": "Print a few rollouts",
        "agents": "Look after the agents",
        "tasks": "List, check and compare benchmarks",
        "version": "Print the version",
    }.items():
        assert f"{verb} {sentence}" in text


def test_without_arguments_the_help_is_shown() -> None:
    assert "Usage" in run_cli().output


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_says_what_a_newcomer_needs(verb: str) -> None:
    result = run_cli(verb, "--help")
    assert result.exit_code == 0
    text = folded(result.output).lower()
    for words in VERBS[verb]:
        assert words.lower() in text, f"{words!r} is not in the help of {verb}:\n{result.output}"


def test_the_version_is_printed() -> None:
    assert run_cli("version").output.strip() == __version__


def test_the_help_of_agents_check_says_what_a_newcomer_needs() -> None:
    text = folded(run_cli("agents", "check", "--help").output).lower()
    for words in ("recipe", "overrides", "--tries", "latency", "could be parsed", "exit code is 1"):
        assert words in text, text


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        *([verb, "--help"] for verb in ("train", "compare")),
        ["agents", "check", "--help"],
        ["tasks", "validate", "--help"],
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = QUICK.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_wrong_input_is_refused_before_anything_heavy_is_imported() -> None:
    code = QUICK.format(arguments=["train", "recipes/tiny.toml", "train.stepz=3"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "did you mean `train.steps`?" in done.stderr and "Traceback" not in done.stderr


def test_python_m_aipo_is_aipo() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "aipo", "version"], capture_output=True, text=True, check=False, env=os.environ
    )
    assert (done.returncode, done.stdout.strip()) == (0, __version__)


def test_a_wrong_verb_is_refused_by_name() -> None:
    result = run_cli("trian")
    assert result.exit_code == 2
    assert "trian" in result.output


def test_a_wrong_option_is_refused_by_name() -> None:
    result = run_cli("train", "recipes/tiny.toml", "--stepz", "3")
    assert result.exit_code == 2
    assert "--stepz" in result.output
