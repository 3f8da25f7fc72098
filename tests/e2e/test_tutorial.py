"""Every command of docs/tutorial.md, in its order, on SmolLM2; what takes minutes is made shorter."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest

from support.policies import succeed

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
SMOLLM2 = os.environ.get("AIPO_SMOLLM2", "")
SHORTER = {
    "warmstart": [
        "warmstart.examples=16",
        "warmstart.held_out=2",
        "warmstart.check_problems=1",
        "warmstart.check_samples=1",
    ],
    "train": [
        "train.steps=1",
        "train.prompts_per_step=2",
        "rollout.rollouts_per_prompt=4",
        "evaluate.curve_problems=1",
        "evaluate.curve_samples_per_problem=1",
    ],
    "evaluate recipe": ["evaluate.problems=1", "evaluate.samples_per_problem=2", "evaluate.pass_at=[1, 2]"],
    "evaluate checkpoint": ["--problems", "2", "--max-response-tokens", "16"],
}


def _commands() -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", TUTORIAL.read_text(), re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line]


def _shortened(command: str) -> list[str]:
    program, verb, *rest = shlex.split(command)
    assert program == "aipo", f"the test runs aipo alone, not {command!r}"
    kind = verb
    if verb == "evaluate":
        kind = "evaluate recipe" if rest[0].endswith(".toml") else "evaluate checkpoint"
    return [verb, *rest, *SHORTER.get(kind, [])]


@pytest.mark.skipif(not SMOLLM2, reason="AIPO_SMOLLM2 names no folder of `aipo models get smollm2`")
def test_every_command_of_the_tutorial_runs_in_its_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path("models/smollm2").symlink_to(SMOLLM2, target_is_directory=True)  # got once, for all tests
    as_many = range(1319)  # as GSM8K has; another number is refused
    rows = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in as_many]
    Path("gsm8k_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    commands = _commands()
    assert commands[0] == "aipo models get smollm2"
    outputs = {command: succeed(*_shortened(command)).output for command in commands[1:]}

    assert "consulting" in outputs["aipo train recipes/smollm2.toml"]
    assert Path("runs/smollm2/report.html").stat().st_size > 10_000
    for python in re.findall(r"^```python\n(.*?)^```", TUTORIAL.read_text(), re.DOTALL | re.MULTILINE):
        exec(python, {})
