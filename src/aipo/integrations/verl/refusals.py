"""What of verl's configuration would make the objective wrong, each with its reason and its fix.

`refuse` is called before anything is sampled: by the trainer, by each agent-loop process, and by `aipo verl
check`. It changes nothing, and imports nothing of verl.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from aipo.config.settings import Settings
from aipo.integrations.verl.estimators import PREFIX, verls_name
from aipo.integrations.verl.recipe import recipe_of, rows_per_prompt
from aipo.training.algorithm import base_algorithm, objective_settings, truncation_of

TRAINER = "aipo_sync"
BATCH_ESTIMATORS = ("reinforce_plus_plus",)
"""verl's estimators that need no sibling."""
GROUP_ESTIMATORS = ("grpo", "rloo", "rloo_vectorized", "reinforce_plus_plus_baseline", "opo", "gpg")
"""verl's estimators over a group's outcomes."""


class RefusedError(ValueError):
    """This configuration is not trained with; the message names each reason and its fix."""


def refuse(config: Any) -> None:
    """Raise `RefusedError` with everything that is wrong. `config` is verl's whole configuration.

    Works on an OmegaConf configuration and on nested mappings whose values are read by key.
    """
    if _get(config, "aipo.recipe") is None:
        raise RefusedError(
            "the configuration has no table `aipo`; write one with `aipo verl config RECIPE`, run that"
        )
    settings = recipe_of(_plain(_get(config, "aipo")))
    found = [reason for check in _CHECKS for reason in check(config, settings)]
    if found:
        raise RefusedError("AIPO does not run with this configuration of verl:\n  " + "\n  ".join(found))


def _wants(config: Any, key: str, wanted: Any, why: str, allowed: tuple[Any, ...] = ()) -> Iterator[str]:
    value = _get(config, key)
    if value != wanted and value not in allowed:
        yield f"{key} = {value}: {why}; set {key}={'null' if wanted is None else wanted}"


def _rollout_correction(config: Any, settings: Settings) -> Iterator[str]:
    key = "algorithm.rollout_correction"
    why = "verl would weigh or reject tokens that the source stream does not know of"
    yield from _wants(
        config, f"{key}.rollout_is", None, f"{why} (algorithm.mismatch_truncation of the recipe corrects)"
    )
    yield from _wants(config, f"{key}.rollout_rs", None, why)
    objective = objective_settings(settings.algorithm)
    recomputed = objective.needs_old_feedback_log_p or truncation_of(settings.algorithm, in_process=False) > 0
    if _get(config, f"{key}.bypass_mode") and recomputed:
        wants = objective.coefficient.kind if objective.needs_old_feedback_log_p else "mismatch_truncation"
        yield (
            f"{key}.bypass_mode = True: no log-probabilities are recomputed, but {wants} needs them; set "
            f"{key}.bypass_mode=False"
        )


def _sampler(config: Any, settings: Settings) -> Iterator[str]:
    key = "actor_rollout_ref.rollout"
    yield from _wants(
        config,
        f"{key}.calculate_log_probs",
        True,
        "without response_log_probs no token of the policy has a log-probability",
    )
    yield from _wants(config, f"{key}.name", "vllm", "stop strings end a request on verl's vLLM servers only")
    truncated = "a truncated sampler is not the policy that is trained"
    yield from _wants(config, f"{key}.top_p", 1, truncated, (1.0,))
    yield from _wants(config, f"{key}.top_k", -1, truncated, (0,))
    rollout = settings.rollout
    yield from _wants(
        config,
        f"{key}.n",
        rows_per_prompt(settings),
        f"a group holds {rollout.rollouts_per_prompt} rollouts and {rollout.experts_per_prompt} experts",
    )
    yield from _wants(
        config,
        f"{key}.response_length",
        settings.rollout.max_response_tokens,
        "the rollout ends at the recipe's limit, verl cuts at its own",
    )


def _token_in_token_out(config: Any, settings: Settings) -> Iterator[str]:
    key = "actor_rollout_ref.rollout"
    again = "another loop would tokenise the history again, and the trained ids are not the sampled ones"
    yield from _wants(config, f"{key}.agent.agent_loop_manager_class", None, again)
    yield from _wants(config, f"{key}.agent.agent_loop_config_path", None, again)
    yield from _wants(config, f"{key}.multi_turn.enable", False, again, (None,))


def _our_loss(config: Any, settings: Settings) -> Iterator[str]:
    yield from _wants(config, "trainer.use_v1", True, "the older trainer drops the sources of tokens")
    yield from _wants(
        config,
        "trainer.v1.trainer_mode",
        TRAINER,
        "only this trainer sets AIPO's loss on the workers",
    )
    actor = "actor_rollout_ref.actor"
    replaced = "AIPO's loss replaces verl's and has no such part"
    kl = settings.algorithm.kl_weight
    yield from _wants(
        config,
        f"{actor}.use_kl_loss",
        kl > 0,
        f"algorithm.kl_weight of the recipe is {kl:g}, and it is that which verl's reference policy is for",
    )
    yield from _wants(config, f"{actor}.entropy_coeff", 0, replaced, (0.0,))
    yield from _wants(
        config, f"{actor}.ppo_epochs", 1, "a step's rollouts are learnt from once, as in `aipo train`"
    )
    yield from _wants(config, f"{actor}.policy_loss.loss_mode", "vanilla", replaced, (None,))
    yield from _wants(config, "distillation.enabled", False, replaced, (None,))
    yield from _wants(
        config,
        f"{actor}.shuffle",
        False,
        "each token's weight is that of its mini-batch, which is fixed before the update",
        (None,),
    )


def _advantages(config: Any, settings: Settings) -> Iterator[str]:
    key = "algorithm"
    yield from _wants(config, f"{key}.use_kl_in_reward", False, "rewards are verdicts")
    yield from _wants(config, f"{key}.use_pf_ppo", False, "it draws rows anew", (None,))
    yield from _wants(
        config,
        f"{key}.filter_groups.enable",
        False,
        "it judges a group by its scores, which an UNGRADED rollout does not have",
        (None,),
    )
    name = str(_get(config, f"{key}.adv_estimator"))
    if name not in GROUP_ESTIMATORS + BATCH_ESTIMATORS and not name.startswith(PREFIX):
        yield (
            f"{key}.adv_estimator = {name}: it needs a critic, or more than one outcome a rollout; set "
            f"{key}.adv_estimator={verls_name(base_algorithm(settings.algorithm).estimator)} or one of "
            f"{', '.join(GROUP_ESTIMATORS + BATCH_ESTIMATORS)}"
        )


_CHECKS: tuple[Callable[[Any, Settings], Iterator[str]], ...] = (
    _rollout_correction,
    _sampler,
    _token_in_token_out,
    _our_loss,
    _advantages,
)


def _get(config: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        if config is None:
            return None
        config = config.get(name) if hasattr(config, "get") else None
    return config


def _plain(value: Any) -> Any:
    """Return nested plain dictionaries and lists of an OmegaConf configuration or a mapping."""
    if hasattr(value, "keys"):
        return {str(key): _plain(value[key]) for key in value}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(each) for each in value]
    return value
