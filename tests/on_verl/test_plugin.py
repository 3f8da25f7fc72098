"""verl discovers the plugin by its entry point, in a fresh process; one that fails to load says so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("verl", reason="verl is not installed: scripts/verl.sh makes its environment")
pytest.importorskip(
    "transfer_queue", reason="verl's transfer queue is not installed: scripts/verl.sh makes its environment"
)
pytestmark = pytest.mark.verl

FOUND = """
import verl
from verl.experimental.agent_loop.agent_loop import _agent_loop_registry as loops
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY as estimators
from verl.trainer.ppo.v1 import get_trainer_cls
print(loops["aipo"]["_target_"], sorted(n for n in loops if n.startswith("aipo")))
print(get_trainer_cls("aipo_sync").__mro__[1].__name__)
print(sorted(n for n in estimators if n.startswith("aipo_")))
"""
BROKEN = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name == "aipo.integrations.verl.estimators":
            raise ImportError("broken on purpose")

sys.meta_path.insert(0, Block())
import verl  # goes on without the plugin
sys.meta_path.pop(0)
from aipo.integrations.verl.nodes import missing
found = missing()
print(len(found), found[0])
"""


def fresh(program: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    own = {k: v for k, v in os.environ.items() if k != "VERL_USE_EXTERNAL_MODULES"}
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=own | environment,
        timeout=280,
        check=False,
    )


def check(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = ["aipo", "verl", "check", *arguments]
    return fresh(f"import sys; sys.argv = {command!r}\nfrom aipo.cli.main import app\napp()", **environment)


def test_an_import_of_verl_registers_everything() -> None:
    done = fresh(FOUND)
    assert done.returncode == 0, done.stderr
    loops, trainer, estimators = done.stdout.splitlines()[-3:]
    assert loops == ("aipo.integrations.verl.agent_loop.AipoAgentLoop ['aipo', 'aipo_agents', 'aipo_solo']")
    assert trainer == "PPOTrainerSync"
    assert "aipo_group_normalised" in estimators and "aipo_batch_normalised" in estimators


def test_a_plugin_that_fails_to_load_says_so_and_is_found_missing() -> None:
    done = fresh(BROKEN)
    assert done.returncode == 0, done.stderr
    assert "aipo: verl could not load the plugin" in done.stderr and "broken on purpose" in done.stderr
    number, _, first = done.stdout.splitlines()[-1].partition(" ")
    assert int(number) >= 5 and "is not registered" in first and "its import failed" in first


def test_the_check_says_why_a_plugin_was_left_out() -> None:
    done = check(VERL_USE_EXTERNAL_PLUGINS="none")
    assert done.returncode == 1
    assert "VERL_USE_EXTERNAL_PLUGINS = 'none' leaves it out" in done.stderr.replace("\n", " ")


def test_the_check_reads_a_configuration_as_verl_composes_it(tmp_path: Path) -> None:
    from support.tokenizers import word_level
    from support.verl import verls_configuration

    word_level().save_pretrained(tmp_path / "policy")
    verls_configuration(tmp_path, tmp_path / "policy")
    path = tmp_path / "aipo_verl.yaml"
    good = check(str(path))
    assert good.returncode == 0, good.stderr
    path.write_text(path.read_text().replace("top_p: 1.0", "top_p: 0.9"))
    bad = check(str(path))
    assert bad.returncode == 1 and "actor_rollout_ref.rollout.top_p = 0.9" in bad.stderr.replace("\n", " ")
    missing = check(str(tmp_path / "none.yaml"))
    assert missing.returncode == 2


def test_another_version_of_verl_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from aipo.integrations.verl import nodes

    for found, taken in {
        "0.8.2": False,
        "0.9.0": False,
        "0.9.1": True,
        "0.9.3.dev1": True,
        "0.10.0": False,
    }.items():
        monkeypatch.setattr(nodes, "version", lambda _, found=found: found)
        if taken:
            nodes.refuse_version()
        else:
            with pytest.raises(nodes.PluginError, match="works with verl"):
                nodes.refuse_version()


def test_the_synchronous_trainer_keeps_verls_synchronous_buffer(tmp_path: Path) -> None:
    """verl compares the mode's name with "sync" in six places."""
    from verl.trainer.ppo.v1 import get_trainer_cls
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

    from aipo.integrations.verl.refusals import RefusedError
    from support.tokenizers import word_level
    from support.verl import verls_configuration

    word_level().save_pretrained(tmp_path / "policy")
    config = verls_configuration(tmp_path, tmp_path / "policy")
    trainer = get_trainer_cls("aipo_sync")(config)
    assert type(trainer.replay_buffer) is ReplayBuffer and trainer.trainer_mode == "sync"
    config.algorithm.rollout_correction.rollout_is = "token"
    with pytest.raises(RefusedError, match="rollout_is"):
        get_trainer_cls("aipo_sync")(config)
