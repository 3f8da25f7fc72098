"""verl's synchronous trainer with AIPO's credit and loss: `trainer.v1.trainer_mode=aipo_sync`.

The loss that the actor's workers run is `AipoLoss` of the step's objective, set after verl set its own.
"""

import asyncio
from functools import partial
from typing import Any

from omegaconf import OmegaConf
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.metric import reduce_metrics
from verl.utils.py_functional import rename_dict

from aipo.integrations.verl.estimators import PREFIX
from aipo.integrations.verl.groups import read_groups
from aipo.integrations.verl.loss import SUMS, AipoLoss
from aipo.integrations.verl.nodes import refuse_nodes_without_plugin
from aipo.integrations.verl.parts import parts_of
from aipo.integrations.verl.recipe import recipe_of
from aipo.integrations.verl.records import Records
from aipo.integrations.verl.refusals import GROUP_ESTIMATORS, TRAINER, refuse
from aipo.integrations.verl.rows import (
    Layout,
    forget_lone_advantages,
    laid_out,
    write_advantages,
    write_credits,
)
from aipo.integrations.verl.step import Step
from aipo.integrations.verl.watch import token_metrics
from aipo.training.algorithm import objective_settings, truncation_of
from aipo.training.schedule import algorithm_at


@register_trainer(TRAINER)
class AipoTrainerSync(PPOTrainerSync):
    """verl's synchronous trainer with sources: credit on the driver, AIPO's loss on the workers."""

    def __init__(self, config: Any) -> None:
        """Raises `RefusedError` for a configuration that would make the objective wrong."""
        refuse(config)
        table = OmegaConf.to_container(config.aipo, resolve=True)
        assert isinstance(table, dict)
        self._table = {str(key): value for key, value in table.items()}
        self._settings = recipe_of(self._table)
        self._step: Step | None = None
        self._layout: Layout | None = None
        self._loss: AipoLoss | None = None
        self._records: Records | None = None
        self._runner = asyncio.Runner()
        super().__init__(config)

    def _build_replay_buffer(self) -> ReplayBuffer:
        # The base compares the mode with "sync" in six places: under another name a synchronous trainer would
        # get an asynchronous one's buffer, with its staleness rules.
        self.trainer_mode = "sync"
        buffer = super()._build_replay_buffer()
        buffer.sample = partial(self._draw, buffer.sample)
        return buffer

    def _setup(self) -> None:
        refuse_nodes_without_plugin()
        super()._setup()
        self._set_loss(1)

    def _draw(self, sample: Any, **asked: Any) -> tuple[KVBatchMeta, dict[str, Any]]:
        """Return what verl samples, and for a step with too few groups that teach as many prompts again.

        That is dynamic sampling: in up to `train.dynamic_sampling_rounds` further rounds of a step, under the
        same weights.
        """
        batch, metrics = sample(**asked)
        if asked["partition_id"] != "train":
            return batch, metrics
        step = self._step = Step(self._settings, self._table, self.tokenizer, self.global_steps)
        step.add(read_groups(batch))
        while step.wants_more:
            self._add_batch_to_generate()
            more, counted = sample(**asked)
            metrics = metrics | {name: metrics.get(name, 0) + value for name, value in counted.items()}
            step.add(read_groups(more))
            batch = KVBatchMeta(
                keys=batch.keys + more.keys, tags=batch.tags + more.tags, partition_id=batch.partition_id
            )
        return batch, metrics

    def _balance_batch(
        self, batch: KVBatchMeta, metrics: dict[str, Any], logging_prefix: str = "global_seqlen", **_: Any
    ) -> KVBatchMeta:
        """Give credit, and lay out the rows that are learnt from by mini-batch and rank, copies among them.

        It stands in the place of verl's own, which would cut mini-batches across groups and make the copies
        a mini-batch of their own.
        """
        assert self._step is not None
        parts = self._step.learn(self._runner.run)
        metrics.update(self._step.metrics)
        end_id = self.tokenizer.eos_token_id
        layout = self._layout = laid_out(batch, parts, self._ranks(), end_id, logging_prefix)
        write_credits(layout)
        metrics.update(layout.balance)
        return layout.batch

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        """Let verl's registered estimator work; `core`'s have given their advantages already."""
        assert self._layout is not None
        batch = super()._compute_advantage(batch, metrics)
        name = str(self.config.algorithm.adv_estimator)
        if name.startswith(PREFIX):
            write_advantages(self._layout)
        elif name in GROUP_ESTIMATORS:
            forget_lone_advantages(self._layout)
        return batch

    def _update_actor(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        """Update as verl does, with the step's loss and mini-batches of so many rows as were laid out."""
        assert self._layout is not None
        self._set_loss(self.global_steps)
        actor, rollout = self.config.actor_rollout_ref.actor, self.config.actor_rollout_ref.rollout
        batch.extra_info.update(
            {
                "calculate_entropy": actor.calculate_entropy or self._settings.algorithm.entropy_weight > 0,
                "global_batch_size": self._layout.rows_of_minibatch,
                "mini_batch_size": self._layout.rows_of_minibatch,
                "epochs": actor.ppo_epochs,
                "seed": actor.data_loader_seed,
                "dataloader_kwargs": {"shuffle": False},
                "temperature": rollout.temperature,
            }
        )
        output: TensorDict = self.actor_rollout_wg.update_actor(batch)
        found = rename_dict(output["metrics"], "actor/")
        found["perf/mfu/actor"] = found.pop("actor/mfu")
        metrics.update(reduce_metrics(found))
        number = len(batch) // self._layout.rows_of_minibatch  # verl has taken means over mini-batches
        names = [name for name in metrics if name.startswith(SUMS)]
        metrics.update(token_metrics({n.removeprefix(SUMS): metrics.pop(n) * number for n in names}))
        return batch

    def on_train_begin(self) -> None:
        """Go on with the run's records where its checkpoint was taken."""
        super().on_train_begin()
        self._records = Records(self._settings, self.global_steps - 1)

    def _compute_metrics(
        self, batch: KVBatchMeta, metrics: dict[str, Any], *timing: Any, **more: Any
    ) -> None:
        """Let verl count, and record the step as `aipo train` does."""
        if self._settings.rollout.rollouts_per_prompt:
            super()._compute_metrics(batch, metrics, *timing, **more)
        else:  # supervised fine-tuning: verl's averages are over what the policy sampled
            metrics["training/global_step"] = self.global_steps
        assert self._step is not None and self._records is not None
        consult = parts_of(self._table, self.tokenizer, 1).consult
        self._records.add(self.global_steps, metrics, self.timing_raw, self._step.groups, consult)

    def _set_loss(self, step: int) -> None:
        """Set the loss of a step, if it is another one than that of the step before."""
        algorithm = algorithm_at(self._settings, step)
        loss = AipoLoss(objective_settings(algorithm), truncation_of(algorithm, in_process=False))
        if loss != self._loss:
            self.actor_rollout_wg.set_loss_fn(loss)
            self._loss = loss

    def _ranks(self) -> int:
        """Return the number of data-parallel ranks, as verl's own `_balance_batch` reads it."""
        info = self.actor_rollout_wg._dispatch_info
        if "actor" not in info:
            info["actor"] = self.actor_rollout_wg._query_dispatch_info("actor")
        return int(max(info["actor"])) + 1
