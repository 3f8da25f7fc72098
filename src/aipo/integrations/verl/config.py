"""From a recipe and a cluster to verl's configuration.

What verl would not do as the recipe says is an error that names the field and the fix, so that the same
recipe means the same on verl as in `aipo train`. verl is not imported.
"""

from collections.abc import Iterator
from typing import Any

from aipo.config.cluster import ClusterSettings
from aipo.config.policy import Precision
from aipo.config.settings import Settings
from aipo.core.advantages import ESTIMATORS
from aipo.integrations.verl.estimators import PREFIX
from aipo.integrations.verl.plan import Plan
from aipo.integrations.verl.refusals import TRAINER
from aipo.training.algorithm import base_algorithm, objective_settings, truncation_of
from aipo.training.device import PRODUCTS, WEIGHTS
from aipo.training.schedule import shape_at

TRAIN_FILE, VALIDATION_FILE = "train.parquet", "validation.parquet"
LOSS_AGG_MODES = {
    "token_mean": "token-mean",
    "sequence_mean": "seq-mean-token-mean",
    "sequence_sum": "seq-mean-token-sum",
    "horizon": "seq-mean-token-sum-norm",
}
"""verl's own words, which its losses read; ours brings the weight of each token."""
VERL_SCHEDULES = ("constant", "cosine")
"""Of the learning rate; verl's optimisers have no others."""
SAVE_EVERY_STEPS = 20
"""Where a recipe leaves its checkpoints to a clock, which verl does not do."""


class VerlConfigError(ValueError):
    """The recipe and the cluster cannot be run on verl; the message lists fields, reasons and fixes."""


def verl_config(settings: Settings, cluster: ClusterSettings) -> dict[str, Any]:
    """Return what stands above verl's defaults, with the table `aipo`. Raises `VerlConfigError`."""
    if problems := [*_not_on_verl(settings), *_does_not_fit(settings, cluster)]:
        raise VerlConfigError("this recipe cannot be run on verl:\n  " + "\n  ".join(problems))
    plan = plan_of(settings)
    return {
        "hydra": {"searchpath": ["pkg://verl.trainer.config"], "run": {"dir": "."}, "output_subdir": None},
        "defaults": ["ppo_trainer", "_self_"],
        "data": _data(settings, cluster),
        "algorithm": {
            "adv_estimator": PREFIX + plan.estimator,
            "use_kl_in_reward": False,
            "rollout_correction": {"rollout_is": None, "rollout_rs": None, "bypass_mode": False},
        },
        "actor_rollout_ref": {
            "model": {
                "path": settings.policy.model,
                "use_remove_padding": True,
                "override_config": {"attn_implementation": cluster.attention},
            },
            "actor": _actor(settings, cluster, plan),
            "rollout": _rollout(settings, cluster, plan),
        },
        "trainer": _trainer(settings, cluster),
        "aipo": {
            "parts": "recipe",
            "plan": plan.table(),
            "recipe": settings.model_dump(mode="json", exclude_none=True),
        },
    }


def plan_of(settings: Settings) -> Plan:
    """Return the recipe's algorithm, resolved, and its limits."""
    algorithm, base = settings.algorithm, base_algorithm(settings.algorithm)
    shape = shape_at(settings, 1)
    return Plan(
        objective=objective_settings(algorithm),
        estimator=base.estimator,
        aggregation=base.aggregation,
        feedback_advantage=algorithm.feedback_advantage,
        split_baselines=algorithm.split_baselines,
        mismatch_truncation=truncation_of(algorithm, in_process=False),
        max_response_tokens=settings.rollout.max_response_tokens,
        overlong_buffer_tokens=algorithm.overlong_buffer_tokens,
        consulting=shape.consulting,
        solo=shape.solo,
        banned=shape.banned,
        max_ungraded_share=settings.train.max_ungraded_share,
        max_failed_consultations_share=settings.train.max_failed_consultations_share,
        min_consultations_to_stop=settings.train.min_consultations_to_stop,
    )


def _data(settings: Settings, cluster: ClusterSettings) -> dict[str, Any]:
    return {
        "train_files": str(cluster.data_folder / TRAIN_FILE),
        "val_files": str(cluster.data_folder / VALIDATION_FILE),
        "train_batch_size": settings.train.prompts_per_step,
        "max_prompt_length": settings.rollout.max_prompt_tokens,
        "max_response_length": settings.rollout.max_response_tokens,
        "truncation": "error",
        "seed": settings.run.seed,
    }


def _actor(settings: Settings, cluster: ClusterSettings, plan: Plan) -> dict[str, Any]:
    train, clip = settings.train, plan.objective.surrogate.clip
    weights, products = _dtypes(settings)
    return {
        "strategy": cluster.strategy,
        "optim": {
            "lr": train.learning_rate,
            "lr_warmup_steps": train.warmup_steps,
            "lr_scheduler_type": train.learning_rate_schedule,
            "weight_decay": train.weight_decay,
        },
        "grad_clip": train.max_grad_norm,
        "ppo_mini_batch_size": train.prompts_per_step // train.minibatches_per_step,
        "ppo_epochs": 1,
        "shuffle": False,
        "use_dynamic_bsz": True,
        "ppo_max_token_len_per_gpu": cluster.tokens_per_gpu,
        "ulysses_sequence_parallel_size": cluster.sequence_parallel,
        "fsdp_config": {
            "param_offload": cluster.offload,
            "optimizer_offload": cluster.offload,
            "model_dtype": weights,
            "dtype": products,
        },
        "use_kl_loss": False,
        "entropy_coeff": 0,
        # Read by nothing here: AIPO's loss has the plan's. They stand for what a reader of this file expects.
        "clip_ratio_low": clip.low,
        "clip_ratio_high": clip.high,
        "loss_agg_mode": LOSS_AGG_MODES.get(plan.aggregation, "token-mean"),
    }


def _rollout(settings: Settings, cluster: ClusterSettings, plan: Plan) -> dict[str, Any]:
    r, e = settings.rollout, settings.evaluate
    return {
        "name": "vllm",
        "dtype": _dtypes(settings)[1],
        "n": plan.consulting + plan.solo,
        "temperature": r.temperature,
        "top_p": 1.0,
        "top_k": -1,
        "max_model_len": r.max_prompt_tokens + r.max_response_tokens,
        "tensor_model_parallel_size": cluster.tensor_parallel,
        "gpu_memory_utilization": cluster.server_memory_share,
        "max_num_seqs": cluster.sequences_per_server,
        "calculate_log_probs": True,
        "agent": {"default_agent_loop": "aipo", "num_workers": cluster.agent_processes},
        "val_kwargs": {
            "n": e.curve_samples_per_problem,
            "temperature": e.temperature,
            "top_p": 1.0,
            "top_k": -1,
            "do_sample": True,
        },
    }


def _dtypes(settings: Settings) -> tuple[str, str]:
    """Return what weights are kept in and products computed in, in verl's words; `auto` is that of a GPU."""
    precision = settings.policy.precision
    if precision is Precision.AUTO:
        precision = Precision.BF16_MIXED
    weights, products = (str(dtypes[precision]).removeprefix("torch.") for dtypes in (WEIGHTS, PRODUCTS))
    return weights, products


def _trainer(settings: Settings, cluster: ClusterSettings) -> dict[str, Any]:
    return {
        "use_v1": True,
        "v1": {"trainer_mode": TRAINER},
        "nnodes": cluster.nodes,
        "n_gpus_per_node": cluster.gpus_per_node,
        "total_training_steps": settings.train.steps,
        "total_epochs": settings.train.steps,
        "save_freq": settings.train.checkpoint_every_steps or SAVE_EVERY_STEPS,
        "max_actor_ckpt_to_keep": settings.train.keep_checkpoints,
        "test_freq": cluster.validate_every_steps or -1,
        "val_before_train": cluster.validate_every_steps > 0,
        "project_name": "aipo",
        "experiment_name": settings.run.output.name,
        "default_local_dir": str(settings.run.output / "checkpoints"),
        "logger": list(cluster.loggers),
    }


def _not_on_verl(settings: Settings) -> Iterator[str]:
    """Yield what the plugin does not offer."""
    a, r, t = settings.algorithm, settings.rollout, settings.train
    estimator = base_algorithm(a).estimator
    wanted: tuple[tuple[bool, str, str], ...] = (
        (not settings.policy.model, "policy.model = ''", "name a model"),
        (settings.policy.lora_rank > 0, f"policy.lora_rank = {settings.policy.lora_rank}", "set it to 0"),
        (a.stripped_copies, "algorithm.stripped_copies = true", "set it to false"),
        (settings.consult.format != "tags", "consult.format = 'tools'", "its rows hold no tools; use 'tags'"),
        (
            settings.consult.elicit.share > 0,
            f"consult.elicit.share = {settings.consult.elicit.share}",
            "set it to 0: it falls with what the latest steps show, which agent-loop processes do not see",
        ),
        (a.verified_copies, "algorithm.verified_copies = true", "set it to false"),
        (
            a.kl_weight > 0,
            f"algorithm.kl_weight = {a.kl_weight:g}",
            "AIPO's loss takes the place of verl's, use_kl_loss with it; set it to 0",
        ),
        (
            a.entropy_weight > 0,
            f"algorithm.entropy_weight = {a.entropy_weight:g}",
            "AIPO's loss takes the place of verl's, entropy_coeff with it; set it to 0",
        ),
        (a.agent_token_price > 0, f"algorithm.agent_token_price = {a.agent_token_price}", "set it to 0"),
        (
            estimator not in ESTIMATORS,
            f"algorithm.estimator = {estimator!r}",
            f"choose of {', '.join(ESTIMATORS)}",
        ),
        (a.floor_end is not None, "algorithm.floor_end", "leave it out"),
        (
            settings.train.learning_rate_schedule not in VERL_SCHEDULES,
            f"train.learning_rate_schedule = {settings.train.learning_rate_schedule!r}",
            f"verl has {' and '.join(VERL_SCHEDULES)}",
        ),
        (a.feedback_weight_end is not None, "algorithm.feedback_weight_end", "leave it out"),
        (r.solo_fraction_end is not None, "rollout.solo_fraction_end", "leave it out"),
        (r.experts_per_prompt > 0, f"rollout.experts_per_prompt = {r.experts_per_prompt}", "set it to 0"),
        (r.rollouts_per_prompt < 1, "rollout.rollouts_per_prompt = 0", "make it at least 1"),
        (t.dynamic_sampling_rounds > 0, "train.dynamic_sampling_rounds", "set it to 0"),
        (r.max_staleness_steps > 0, f"rollout.max_staleness_steps = {r.max_staleness_steps}", "set it to 0"),
        (
            bool(settings.task.reward),
            f"task.reward = {settings.task.reward}",
            "verl's rows carry verdicts, of which its advantages are made; leave it out",
        ),
        (t.reward != "verdict", f"train.reward = {t.reward!r}", "set it to 'verdict'"),
        (bool(t.stratum_mix), f"train.stratum_mix = {t.stratum_mix}", "set it to {}; export a mixed file"),
        (t.source_gradients_every_steps > 0, "train.source_gradients_every_steps", "set it to 0"),
    )
    yield from (f"{what}: not offered on verl; {fix}" for found, what, fix in wanted if found)
    for name in settings.agents.names:
        if settings.agents.of(name).backend == "local":
            yield (
                f"agents.{name}: backend = 'local' would load a model in each agent-loop process; serve "
                "it and set backend = 'remote'"
            )


def _does_not_fit(settings: Settings, cluster: ClusterSettings) -> Iterator[str]:
    """Yield what does not divide."""
    train, rollout = settings.train, settings.rollout
    if train.prompts_per_step % train.minibatches_per_step:
        yield (
            f"train.prompts_per_step = {train.prompts_per_step} cannot be cut into "
            f"train.minibatches_per_step = {train.minibatches_per_step} equal parts; change one of them"
        )
    if cluster.gpus % (cluster.sequence_parallel or 1):
        yield f"sequence_parallel = {cluster.sequence_parallel} does not divide {cluster.gpus} GPUs"
        return
    if cluster.sequence_parallel > 1 and cluster.attention != "flash_attention_2":
        yield (
            f"sequence_parallel = {cluster.sequence_parallel} shares attention among GPUs, for which verl "
            f"needs flash-attn, and attention = {cluster.attention!r}; set it to 'flash_attention_2', or set "
            "sequence_parallel = 1"
        )
    if cluster.gpus % cluster.tensor_parallel:
        yield f"tensor_parallel = {cluster.tensor_parallel} does not divide {cluster.gpus} GPUs"
    ranks = cluster.gpus // cluster.sequence_parallel
    size = train.prompts_per_step // train.minibatches_per_step * rollout.rollouts_per_prompt
    if size % ranks:
        yield (
            f"a mini-batch of {size} rollouts (train.prompts_per_step / train.minibatches_per_step * "
            f"rollout.rollouts_per_prompt) cannot be cut for {ranks} ranks; make it a multiple"
        )
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens
    if cluster.tokens_per_gpu * cluster.sequence_parallel < longest:
        yield (
            f"tokens_per_gpu = {cluster.tokens_per_gpu} x sequence_parallel = {cluster.sequence_parallel} is "
            f"less than the longest sequence, rollout.max_prompt_tokens + max_response_tokens = {longest}; "
            "raise one of them"
        )
