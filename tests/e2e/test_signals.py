"""SIGTERM and Ctrl-C, sent from outside: a policy that loads, and one documented error.

Proves: whether the command or `aipo.train` is running, the run ends with the exit code or the exception that
the docs name and no traceback of another, and leaves a folder that transformers loads, tokenizer and chat
template included, with the weights of the checkpoint that was written; the run then goes on.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from support.checkpoints import lines
from support.policies import counting_policy, counting_recipe, succeed

LIMIT_S = 240
LONG = "train.steps=500"
SCRIPT = """
import sys, aipo
settings = aipo.load_settings(sys.argv[1], sys.argv[2:])
try:
    aipo.train(settings)
except aipo.StopRunError as stop:
    print("ended:", type(stop).__name__, stop.exit_code, stop, flush=True)
"""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counting_policy(tmp_path_factory)


@pytest.mark.parametrize("how", ["command", "script"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_leaves_a_policy_and_one_error(
    policy: Path, tmp_path: Path, how: str, number: signal.Signals
) -> None:
    run, recipe = tmp_path / "run", counting_recipe(tmp_path)
    arguments = [str(recipe), f"policy.model={policy}", f"run.output={run}", LONG]
    begin = ["-m", "aipo", "train"] if how == "command" else ["-c", SCRIPT]
    ended, output = signalled([sys.executable, *begin, *arguments], run, number, tmp_path / "log")
    assert "Traceback" not in output, output
    done = len(lines(run))
    if how == "command":
        assert ended == 128 + number, output
        assert f"stopped: signal {int(number)} after step {done}" in " ".join(output.split())
    else:
        assert ended == 0, output
        assert f"ended: SignalledError {128 + number} signal {int(number)} after step {done}" in output
    newest = max((run / "checkpoints").iterdir())
    assert newest.name == f"step-{done:06d}"
    original = AutoTokenizer.from_pretrained(policy)
    loaded = [AutoModelForCausalLM.from_pretrained(folder) for folder in (run / "policy", newest / "policy")]
    for a, b in zip(loaded[0].parameters(), loaded[1].parameters(), strict=True):
        assert torch.equal(a, b)
    for folder in (run / "policy", newest / "policy"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.chat_template == original.chat_template
        assert tokenizer.get_vocab() == original.get_vocab()
    assert f"{done} of 500" in (run / "policy" / "README.md").read_text()
    if how == "command" and number == signal.SIGTERM:
        succeed("train", *arguments[:-1], f"train.steps={done + 1}", "--allow-change", "train.steps")
        assert len(lines(run)) == done + 1


def signalled(command: list[str], run: Path, number: signal.Signals, log: Path) -> tuple[int, str]:
    """Start a process in a session of its own, send a signal after two steps; return how it ended."""
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:
            deadline_s = time.monotonic() + LIMIT_S
            while not ((run / "metrics.jsonl").exists() and len(lines(run)) >= 2):
                assert process.poll() is None and time.monotonic() < deadline_s, log.read_text()
                time.sleep(0.05)
            if number is signal.SIGINT:
                os.killpg(process.pid, number)  # a terminal sends it to everyone in the foreground
            else:
                process.send_signal(number)
            ended = process.wait(LIMIT_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return ended, log.read_text()
