"""From a recipe and a cluster to verl's configuration.

What verl would not do as the recipe says is an error that names the field and the fix, so that the same
recipe means the same on verl as in `aipo train`. verl is not imported.
"""

from collections.abc import Iterator
from typing import Any

from aipo.config.cluster import ClusterSettings
from aipo.config.policy import Precision
from aipo.config.settings import Settings
from aipo.integrations.verl.estimators import verls_name
from aipo.integrations.verl.offered import VERLS_OPTIMIZERS, not_offered
from aipo.integrations.verl.recipe import GENERATE_TIMEOUT_S, rows_per_prompt
from aipo.integrations.verl.refusals import TRAINER
from aipo.training.algorithm import base_algorithm
from aipo.training.device import PRODUCTS, WEIGHTS

TRAIN_FILE, VALIDATION_FILE = "train.parquet", "validation.parquet"
LOSS_AGG_MODES = {
    "token_mean": "token-mean",
    "sequence_mean": "seq-mean-token-mean",
    "sequence_sum": "seq-mean-token-sum",
    "horizon": "seq-mean-token-sum-norm",
}
"""verl's own words, which its losses read; ours brings the weight of each token."""
SAVE_EVERY_STEPS = 20
"""Where a recipe leaves its checkpoints to a clock, which verl does not do."""


class VerlConfigError(ValueError):
    """The recipe and the cluster cannot be run on verl; the message lists fields, reasons and fixes."""


def verl_config(settings: Settings, cluster: ClusterSettings) -> dict[str, Any]:
    """Return what stands above verl's defaults, with the table `aipo`. Raises `VerlConfigError`."""
    if problems := [*not_offered(settings), *_does_not_fit(settings, cluster)]:
        raise VerlConfigError("this recipe cannot be run on verl:\n  " + "\n  ".join(problems))
    return {
        "hydra": {"searchpath": ["pkg://verl.trainer.config"], "run": {"dir": "."}, "output_subdir": None},
        "defaults": ["ppo_trainer", "_self_"],
        "data": _data(settings, cluster),
        "algorithm": {
            "adv_estimator": verls_name(base_algorithm(settings.algorithm).estimator),
            "use_kl_in_reward": False,
            "rollout_correction": _correction(settings),
        },
        "actor_rollout_ref": {
            "model": _model(settings, cluster),
            "actor": _actor(settings, cluster),
            "rollout": _rollout(settings, cluster),
        },
        "trainer": _trainer(settings, cluster),
        "aipo": {
            "parts": "recipe",
            "generate_timeout_s": GENERATE_TIMEOUT_S,
            "recipe": settings.model_dump(mode="json", exclude_none=True),
        },
    }


def _correction(settings: Settings) -> dict[str, Any] | None:
    """Return verl's correction, switched off; None where nothing is sampled, which it would not bear."""
    if not settings.rollout.rollouts_per_prompt:
        return None
    return {"rollout_is": None, "rollout_rs": None, "bypass_mode": False}


def _model(settings: Settings, cluster: ClusterSettings) -> dict[str, Any]:
    policy, checkpointing = settings.policy, settings.train.gradient_checkpointing
    model: dict[str, Any] = {
        "path": policy.model,
        "use_remove_padding": True,
        "override_config": {"attn_implementation": cluster.attention},
        "enable_gradient_checkpointing": True if checkpointing == "auto" else checkpointing,
    }
    if policy.lora_rank:
        model |= {
            "lora_rank": policy.lora_rank,
            "lora_alpha": int(policy.lora_alpha),
            "target_modules": list(policy.lora_targets) or "all-linear",
            # Servers get whole weights, as in `aipo train`, and need not know of adapters.
            "lora": {"merge": True},
        }
    return model


def _data(settings: Settings, cluster: ClusterSettings) -> dict[str, Any]:
    return {
        "train_files": str(cluster.data_folder / TRAIN_FILE),
        "val_files": str(cluster.data_folder / VALIDATION_FILE),
        "train_batch_size": settings.train.prompts_per_step,
        "max_prompt_length": settings.rollout.max_prompt_tokens,
        "max_response_length": settings.rollout.max_response_tokens,
        "truncation": "error",
        # The rows stand in the order of the steps of `aipo train`.
        "shuffle": False,
        "seed": settings.run.seed,
    }


def _actor(settings: Settings, cluster: ClusterSettings) -> dict[str, Any]:
    train, base = settings.train, base_algorithm(settings.algorithm)
    weights, products = _dtypes(settings)
    implementation, optimizer = VERLS_OPTIMIZERS[train.optimizer]
    return {
        "strategy": cluster.strategy,
        "optim": {
            "optimizer": optimizer,
            "optimizer_impl": implementation,
            "lr": train.learning_rate,
            "lr_warmup_steps": train.warmup_steps,
            "lr_scheduler_type": train.learning_rate_schedule,
            "weight_decay": train.weight_decay,
        },
        "grad_clip": train.max_grad_norm,
        # The trainer lays mini-batches out by itself: they hold copies too. verl wants a number.
        "ppo_mini_batch_size": max(1, train.prompts_per_step // train.minibatches_per_step),
        "ppo_epochs": 1,
        "shuffle": False,
        "checkpoint": _checkpoint(settings),
        "use_dynamic_bsz": True,
        "ppo_max_token_len_per_gpu": cluster.tokens_per_gpu,
        "ulysses_sequence_parallel_size": cluster.sequence_parallel,
        "fsdp_config": {
            "param_offload": cluster.offload,
            "optimizer_offload": cluster.offload,
            "model_dtype": weights,
            "dtype": products,
        },
        # Whether there is a reference policy; the term itself is in AIPO's loss, and so is the entropy's.
        "use_kl_loss": settings.algorithm.kl_weight > 0,
        "entropy_coeff": 0,
        # Read by nothing here: AIPO's loss has the recipe's. They are what a reader of this file expects.
        "clip_ratio_low": base.clip.low,
        "clip_ratio_high": base.clip.high,
        "loss_agg_mode": LOSS_AGG_MODES.get(base.aggregation, "token-mean"),
    }


def _checkpoint(settings: Settings) -> dict[str, Any]:
    """Return what a checkpoint holds: what verl goes on from, and the policy as a plain Hugging Face folder.

    verl writes no such folder of adapters: `aipo verl export` merges them.
    """
    resumed = ["model", "optimizer", "extra"]
    plain = [] if settings.policy.lora_rank else ["hf_model"]
    return {"save_contents": [*resumed, *plain], "load_contents": resumed}


def _rollout(settings: Settings, cluster: ClusterSettings) -> dict[str, Any]:
    r, e = settings.rollout, settings.evaluate
    return {
        "name": "vllm",
        "dtype": _dtypes(settings)[1],
        "n": rows_per_prompt(settings),
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


def _does_not_fit(settings: Settings, cluster: ClusterSettings) -> Iterator[str]:
    """Yield what does not divide, or is too long."""
    rollout = settings.rollout
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
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens
    if cluster.tokens_per_gpu * cluster.sequence_parallel < longest:
        yield (
            f"tokens_per_gpu = {cluster.tokens_per_gpu} x sequence_parallel = {cluster.sequence_parallel} is "
            f"less than the longest sequence, rollout.max_prompt_tokens + max_response_tokens = {longest}; "
            "raise one of them"
        )
