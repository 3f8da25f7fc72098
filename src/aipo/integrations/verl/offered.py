"""Which settings mean on verl what they mean in `aipo train`, which are an error, and which mean nothing.

Each setting is in exactly one of the three tables; a name that ends with a dot stands for a whole table, and
a longer name wins over it. docs/verl.md says the same in words.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from aipo.config.settings import Settings
from aipo.core.divergence import KL_ESTIMATORS
from aipo.training.algorithm import objective_settings
from aipo.training.schedule import shape_at

SCHEDULES = ("constant", "cosine")
"""Of the learning rate; verl's optimisers have no others."""
VERLS_OPTIMIZERS = {"adamw": ("torch.optim", "AdamW"), "adamw8bit": ("bitsandbytes.optim", "AdamW8bit")}
"""Module and class, in verl's words."""

OFFERED = (
    *("run.output", "run.seed"),
    *("policy.model", "policy.precision", "policy.date"),
    *("policy.lora_rank", "policy.lora_alpha", "policy.lora_targets"),
    *("task.", "sandbox.", "agents.", "consult.", "rollout.", "algorithm."),
    *("train.steps", "train.prompts_per_step", "train.minibatches_per_step", "train.gradient_checkpointing"),
    *("train.optimizer", "train.learning_rate", "train.learning_rate_schedule", "train.warmup_steps"),
    *("train.weight_decay", "train.max_grad_norm", "train.stratum_mix", "train.dynamic_sampling_rounds"),
    *("train.reward", "train.checkpoint_every_steps", "train.keep_checkpoints"),
    "train.record_rollouts_every_steps",
    *("train.max_ungraded_share", "train.max_failed_consultations_share", "train.min_consultations_to_stop"),
    *("evaluate.problems", "evaluate.modes", "evaluate.temperature", "evaluate.curve_samples_per_problem"),
)
"""What has its meaning, but for values that `not_offered` names."""

WITHOUT_MEANING: Mapping[str, str] = {
    "run.device": "verl's GPUs",
    "run.threads": "verl's processes have their own",
    "run.ranks": "the cluster's `strategy`",
    "run.rank_timeout_s": "Ray and NCCL wait for ranks",
    "run.trackers": "the cluster's `loggers`",
    "policy.attention": "the cluster's `attention`",
    "engine.": "verl's own servers sample",
    "rollout.slots": "the cluster's `sequences_per_server`",
    "rollout.cache_gb": "the cluster's `server_memory_share`",
    "train.microbatch_tokens": "the cluster's `tokens_per_gpu`",
    "train.logit_chunk_tokens": "verl's update holds a micro-batch's logits whole",
    "train.share_prefixes": "verl's update packs whole rows",
    "train.compile": "verl compiles what it compiles",
    "train.checkpoint_every_minutes": "verl saves by steps",
    "train.keep_best": "every checkpoint that is kept can be evaluated",
    "evaluate.": "`aipo evaluate --checkpoint` evaluates the policy of a checkpoint",
    "guards.": "verl leaves out a step whose gradient is not finite, and has no other guard",
}
"""What changes how a run is done and not what is learnt, with what stands in its place."""

REFUSED: Mapping[str, str] = {
    "consult.format": "tool calls were not tried on verl's servers",
    "policy.tf32": "verl's products have the precision that policy.precision says",
    "consult.elicit.": "it falls with what the latest steps show, which agent-loop processes do not see",
    "rollout.max_staleness_steps": "verl's trainer waits for all rollouts of a step",
    "algorithm.copies_without_requests": "verl's update takes probabilities in the whole vocabulary",
    "train.source_gradients_every_steps": "verl's update makes one backward pass of all sources",
    "guards.max_agent_cost": "verl's checkpoints have no place for what was spent so far",
}
"""What would be learnt otherwise than the recipe says, with the reason; its default is no error."""


class _Refusal(NamedTuple):
    is_set: bool
    what: str
    fix: str


def not_offered(settings: Settings) -> Iterator[str]:
    """Yield the settings that cannot be run on verl, each with its value and the fix."""
    for refusal in (*_of_the_policy(settings), *_of_the_method(settings)):
        if refusal.is_set:
            yield f"{refusal.what}: not offered on verl; {refusal.fix}"
    for name in settings.agents.names:
        if settings.agents.of(name).backend == "local":
            yield (
                f"agents.{name}: backend = 'local' would load a model in each agent-loop process; serve "
                "it and set backend = 'remote'"
            )


def _of_the_policy(settings: Settings) -> Iterator[_Refusal]:
    p, t = settings.policy, settings.train
    yield _Refusal(not p.model, "policy.model = ''", "name a model")
    yield _Refusal(p.tf32, "policy.tf32 = true", f"{REFUSED['policy.tf32']}; set it to false")
    yield _Refusal(
        p.lora_rank > 0 and p.precision == "bfloat16",
        "policy.precision = 'bfloat16' with policy.lora_rank",
        "verl gives adapters the precision of the weights, in which their updates are lost; set "
        "policy.precision = 'bf16-mixed'",
    )
    yield _Refusal(
        p.lora_rank > 0 and not p.lora_alpha.is_integer(),
        f"policy.lora_alpha = {p.lora_alpha:g}",
        "verl's is a whole number; choose one",
    )
    yield _Refusal(
        t.optimizer not in VERLS_OPTIMIZERS,
        f"train.optimizer = {t.optimizer!r}",
        f"choose of {', '.join(VERLS_OPTIMIZERS)}",
    )
    yield _Refusal(
        t.learning_rate_schedule not in SCHEDULES,
        f"train.learning_rate_schedule = {t.learning_rate_schedule!r}",
        f"verl has {' and '.join(SCHEDULES)}",
    )
    every = t.source_gradients_every_steps
    yield _Refusal(
        every > 0,
        f"train.source_gradients_every_steps = {every}",
        f"{REFUSED['train.source_gradients_every_steps']}; set it to 0",
    )
    cost = settings.guards.max_agent_cost
    yield _Refusal(
        cost > 0, f"guards.max_agent_cost = {cost:g}", f"{REFUSED['guards.max_agent_cost']}; set it to 0"
    )


def _of_the_method(settings: Settings) -> Iterator[_Refusal]:
    a, r = settings.algorithm, settings.rollout
    form = settings.consult.format
    yield _Refusal(
        form != "tags", f"consult.format = {form!r}", f"{REFUSED['consult.format']}; set it to 'tags'"
    )
    share = settings.consult.elicit.share
    yield _Refusal(share > 0, f"consult.elicit.share = {share}", f"{REFUSED['consult.elicit.']}; set it to 0")
    stale = r.max_staleness_steps
    yield _Refusal(
        stale > 0,
        f"rollout.max_staleness_steps = {stale}",
        f"{REFUSED['rollout.max_staleness_steps']}; set it to 0",
    )
    yield _Refusal(
        a.copies_without_requests,
        "algorithm.copies_without_requests = true",
        f"{REFUSED['algorithm.copies_without_requests']}; set it to false",
    )
    estimators = [name for name in KL_ESTIMATORS if not KL_ESTIMATORS[name].over_vocabulary]
    yield _Refusal(
        a.kl_weight > 0 and KL_ESTIMATORS[a.kl_estimator].over_vocabulary,
        f"algorithm.kl_estimator = {a.kl_estimator!r}",
        "verl's reference gives log-probabilities of the sampled tokens alone; choose of "
        f"{', '.join(estimators)}",
    )
    yield _Refusal(
        a.kl_weight > 0 and not r.rollouts_per_prompt,
        f"algorithm.kl_weight = {a.kl_weight:g} with rollout.rollouts_per_prompt = 0",
        "KL is over tokens that the policy samples, and it samples none; set algorithm.kl_weight = 0",
    )
    objective_settings(a)
    shape_at(settings, 1)


def table_of(name: str) -> str:
    """Return which of the tables a setting is in: `offered`, `without_meaning` or `refused`.

    Raises `KeyError` for one that is in none or in two.
    """
    tables: dict[str, Any] = {"offered": OFFERED, "without_meaning": WITHOUT_MEANING, "refused": REFUSED}
    found = [
        (len(key), table)
        for table, keys in tables.items()
        for key in keys
        if name == key or (key.endswith(".") and name.startswith(key))
    ]
    longest = max(found, default=(0, ""))[0]
    best = {table for length, table in found if length == longest}
    if len(best) != 1:
        raise KeyError(name)
    return best.pop()
