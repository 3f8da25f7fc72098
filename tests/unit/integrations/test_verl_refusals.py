"""What would make the objective wrong on verl is refused before anything is sampled, with its fix."""

import copy
from typing import Any

import pytest

from aipo.config.loader import load_settings
from aipo.config.problems import SettingsError
from aipo.integrations.verl.refusals import RefusedError, refuse

FINE: dict[str, Any] = {
    "algorithm": {
        "adv_estimator": "aipo_group_normalised",
        "use_kl_in_reward": False,
        "use_pf_ppo": False,
        "filter_groups": {"enable": False},
        "rollout_correction": {"rollout_is": None, "rollout_rs": None, "bypass_mode": False},
    },
    "actor_rollout_ref": {
        "actor": {
            "use_kl_loss": False,
            "entropy_coeff": 0,
            "shuffle": False,
            "ppo_epochs": 1,
            "policy_loss": {"loss_mode": "vanilla"},
        },
        "rollout": {
            "name": "vllm",
            "calculate_log_probs": True,
            "top_p": 1,
            "top_k": -1,
            "n": 8,
            "response_length": 16384,
            "multi_turn": {"enable": False},
            "agent": {"agent_loop_manager_class": None, "agent_loop_config_path": None},
        },
    },
    "distillation": {"enabled": False},
    "trainer": {"use_v1": True, "v1": {"trainer_mode": "aipo_sync"}},
}


def config(key: str = "", value: Any = None, *recipe: str) -> dict[str, Any]:
    found = copy.deepcopy(FINE)
    settings = load_settings(None, ["policy.model=m", *recipe])
    found["aipo"] = {"recipe": settings.model_dump(mode="json", exclude_none=True)}
    *sections, name = key.split(".")
    place = found
    for section in sections:
        place = place[section]
    if key:
        place[name] = value
    return found


def test_a_configuration_of_our_own_is_taken() -> None:
    refuse(config())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("algorithm.rollout_correction.rollout_is", "token"),
        ("algorithm.rollout_correction.rollout_rs", "token_k1"),
        ("actor_rollout_ref.rollout.calculate_log_probs", False),
        ("actor_rollout_ref.rollout.name", "sglang"),
        ("actor_rollout_ref.rollout.top_p", 0.9),
        ("actor_rollout_ref.rollout.top_k", 50),
        ("actor_rollout_ref.rollout.n", 4),
        ("actor_rollout_ref.rollout.response_length", 1024),
        ("actor_rollout_ref.rollout.agent.agent_loop_manager_class", "my.Manager"),
        ("actor_rollout_ref.rollout.agent.agent_loop_config_path", "loops.yaml"),
        ("actor_rollout_ref.rollout.multi_turn.enable", True),
        ("trainer.use_v1", False),
        ("trainer.v1.trainer_mode", "sync"),
        ("actor_rollout_ref.actor.use_kl_loss", True),
        ("actor_rollout_ref.actor.entropy_coeff", 0.01),
        ("actor_rollout_ref.actor.shuffle", True),
        ("actor_rollout_ref.actor.ppo_epochs", 2),
        ("actor_rollout_ref.actor.policy_loss.loss_mode", "gspo"),
        ("distillation.enabled", True),
        ("algorithm.use_kl_in_reward", True),
        ("algorithm.use_pf_ppo", True),
        ("algorithm.filter_groups.enable", True),
        ("algorithm.adv_estimator", "gae"),
    ],
)
def test_what_spoils_the_objective_is_refused_with_key_value_and_fix(key: str, value: Any) -> None:
    with pytest.raises(RefusedError) as refused:
        refuse(config(key, value))
    (line,) = str(refused.value).splitlines()[1:]
    assert line.strip().startswith(f"{key} = {value}:") and f"set {key}=" in line


@pytest.mark.parametrize("name", ["grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline"])
def test_verls_own_estimators_are_taken(name: str) -> None:
    refuse(config("algorithm.adv_estimator", name))


@pytest.mark.parametrize("recipe", ["algorithm.coefficient=ratio", "algorithm.mismatch_truncation=2"])
def test_bypass_mode_is_refused_only_where_recomputed_log_probabilities_are_read(recipe: str) -> None:
    key = "algorithm.rollout_correction.bypass_mode"
    off = "algorithm.mismatch_truncation=0"
    refuse(config(key, True, off))
    with pytest.raises(RefusedError, match="bypass_mode=False"):
        refuse(config(key, True, off, recipe))


def test_a_reference_policy_is_there_where_the_recipe_holds_to_one() -> None:
    key = "actor_rollout_ref.actor.use_kl_loss"
    refuse(config(key, True, "algorithm.kl_weight=0.1"))
    with pytest.raises(RefusedError, match="set actor_rollout_ref.actor.use_kl_loss=True"):
        refuse(config(key, False, "algorithm.kl_weight=0.1"))


def test_an_expert_is_a_row_of_its_group() -> None:
    key = "actor_rollout_ref.rollout.n"
    refuse(config(key, 9, "rollout.experts_per_prompt=1"))
    with pytest.raises(RefusedError, match="8 rollouts and 1 experts"):
        refuse(config(key, 8, "rollout.experts_per_prompt=1"))


def test_a_configuration_that_is_not_ours_is_refused() -> None:
    with pytest.raises(RefusedError, match="aipo verl config"):
        refuse(FINE)


def test_every_reason_is_named_at_once() -> None:
    spoilt = config("trainer.use_v1", False)
    spoilt["algorithm"]["adv_estimator"] = "gae"
    with pytest.raises(RefusedError) as refused:
        refuse(spoilt)
    assert len(str(refused.value).splitlines()) == 3


def test_a_recipe_of_another_version_is_not_read() -> None:
    found = config()
    found["aipo"]["recipe"]["algorithm"]["invented"] = 1
    with pytest.raises(SettingsError, match="invented"):
        refuse(found)
