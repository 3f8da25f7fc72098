"""An optimiser is an entry of a registry; what cannot be had is refused before anything is loaded.

The 8-bit entry on the real bitsandbytes: tests/parity/test_optimizer_8bit.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aipo.assembly.memory import recipe_memory
from aipo.config.loader import load_settings
from aipo.config.problems import SettingsError
from aipo.training.optimizers import OptimizerError, check_optimizer
from support.policies import counting_recipe, random_policy, run_cli, succeed

OWN = "train.optimizer=support.own_optimizer:MOMENTUM"
SMALL = [
    "train.prompts_per_step=2",
    "train.reward=random",
    "rollout.rollouts_per_prompt=4",
]


@pytest.fixture
def recipe(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    policy = {"model": str(random_policy(tmp_path_factory, "llama3"))}
    rollout = {"max_prompt_tokens": 128, "max_response_tokens": 40}
    return counting_recipe(tmp_path, policy=policy, run={"output": str(tmp_path / "run")}, rollout=rollout)


def weights_of(run: Path) -> bytes:
    return (run / "policy" / "model.safetensors").read_bytes()


def test_an_optimiser_of_ones_own_trains_and_resumes_bit_for_bit(recipe: Path, tmp_path: Path) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    succeed("train", recipe, OWN, "train.steps=3", f"run.output={whole}", *SMALL)
    succeed("train", recipe, OWN, "train.steps=2", f"run.output={parted}", *SMALL)
    state = torch.load(parted / "checkpoints" / "step-000002" / "optimiser.pt", weights_only=True)
    assert set(state["optimiser"]["state"][0]) == {"momentum_buffer"}
    more = ["--allow-change", "train.steps"]
    succeed("train", recipe, OWN, "train.steps=3", f"run.output={parted}", *SMALL, *more)
    assert weights_of(whole) == weights_of(parted)


def test_the_estimate_of_memory_knows_the_states(recipe: Path) -> None:
    adamw, own = (recipe_memory(load_settings(recipe, [*each])) for each in ([], [OWN]))
    eight = recipe_memory(load_settings(recipe, ["train.optimizer=adamw8bit"]))
    assert own.optimiser == adamw.optimiser / 2 == adamw.weights
    assert eight.optimiser == pytest.approx(adamw.optimiser / 4, rel=0.02) and eight.peak < adamw.peak


def test_a_name_that_stands_for_nothing_is_refused(recipe: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"train\.optimizer` = 'adam8bit' is not known; did you mean 'adamw8bit'"
    ):
        load_settings(recipe, ["train.optimizer=adam8bit"])


def test_a_library_that_is_missing_is_one_error_before_anything_is_loaded(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    found = run_cli("train", recipe, "train.optimizer=adamw8bit")
    assert found.exit_code == 2 and "loading" not in found.output
    assert "train.optimizer = 'adamw8bit' needs bitsandbytes" in found.output
    assert "pip install bitsandbytes" in found.output


def test_parameters_that_are_split_are_refused_to_the_8_bit_optimiser(recipe: Path) -> None:
    settings = load_settings(recipe, ["train.optimizer=adamw8bit", "run.ranks=fsdp"])
    with pytest.raises(OptimizerError, match="run.ranks = 'fsdp' splits; set train.optimizer = 'adamw'"):
        check_optimizer(settings, ranks=2)


def test_layers_that_no_compiler_takes_are_one_error_at_start(recipe: Path, tmp_path: Path) -> None:
    own = {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    own |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "aipo", "train", recipe, "train.compile=true"]
    found = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, check=False)
    assert found.returncode == 2 and "loading" not in found.stdout
    assert "torch.compile fails on run.device = 'cpu'" in found.stderr
    assert "set train.compile = false" in found.stderr


def test_compiled_layers_learn_what_plain_ones_do_and_resume(recipe: Path, tmp_path: Path) -> None:
    rows = {}
    for name, how in (("plain", "false"), ("compiled", "true")):
        own = [f"train.compile={how}", f"run.output={tmp_path / name}", "train.share_prefixes=false"]
        succeed("train", recipe, "train.steps=2", *own, *SMALL)
        rows[name] = [
            json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
    for plain, compiled in zip(rows["plain"], rows["compiled"], strict=True):
        for key in ("loss", "grad_norm", "entropy"):
            assert compiled[key] == pytest.approx(plain[key], rel=1e-3, abs=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert rows["plain"][0]["grad_norm"] > 0
