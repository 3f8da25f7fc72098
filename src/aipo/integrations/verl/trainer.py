"""verl's synchronous trainer with AIPO's credit and loss: `trainer.v1.trainer_mode=aipo_sync`.

The loss that the actor's workers run is `AipoLoss` of this run's plan, set after verl set its own.
"""

from typing import Any

from omegaconf import OmegaConf
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from aipo.integrations.verl.credit import credits_of, minibatches_of
from aipo.integrations.verl.loss import SUMS, AipoLoss
from aipo.integrations.verl.nodes import refuse_nodes_without_plugin
from aipo.integrations.verl.plan import Plan
from aipo.integrations.verl.refusals import GROUP_ESTIMATORS, TRAINER, refuse
from aipo.integrations.verl.rows import forget_advantages, read_rows, write_credits
from aipo.integrations.verl.watch import refuse_failing, rollout_metrics, token_metrics


@register_trainer(TRAINER)
class AipoTrainerSync(PPOTrainerSync):
    """verl's synchronous trainer with sources: credit on the driver, AIPO's loss on the workers."""

    def __init__(self, config: Any) -> None:
        """Raises `RefusedError` for a configuration that would make the objective wrong."""
        refuse(config)
        table = OmegaConf.to_container(config.aipo.plan, resolve=True)
        assert isinstance(table, dict)
        self._plan = Plan.from_table({str(key): value for key, value in table.items()})
        super().__init__(config)

    def _build_replay_buffer(self) -> ReplayBuffer:
        # The base compares the mode with "sync" in six places: under another name a synchronous trainer would
        # get an asynchronous one's buffer, with its staleness rules.
        self.trainer_mode = "sync"
        return super()._build_replay_buffer()

    def _setup(self) -> None:
        refuse_nodes_without_plugin()
        super()._setup()
        self.actor_rollout_wg.set_loss_fn(AipoLoss(self._plan))

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        """Give credit, let verl's registered estimator work within the groups, and keep lone rows at 0."""
        rows = read_rows(batch)
        rollouts = [row.about for row in rows if not row.facts.padding]
        metrics.update(rollout_metrics(rollouts))
        refuse_failing(rollouts, self._plan, self.global_steps)
        rollout = self.config.actor_rollout_ref
        size = rollout.actor.ppo_mini_batch_size * rollout.rollout.n
        parts = minibatches_of(len(rows), size, self._ranks())
        credits = credits_of([row.facts for row in rows], parts, self._plan)
        write_credits(batch, rows, credits)
        batch = super()._compute_advantage(batch, metrics)
        if self.config.algorithm.adv_estimator in GROUP_ESTIMATORS:
            # A row without siblings has nothing to be compared with; verl takes its reward as it is.
            forget_advantages(batch, [i for i, c in enumerate(credits) if c.siblings == 1], rows)
        return batch

    def _update_actor(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        batch = super()._update_actor(batch, metrics)
        sums = {name.removeprefix(SUMS): metrics.pop(name) for name in list(metrics) if name.startswith(SUMS)}
        metrics.update(token_metrics(sums))
        return batch

    def _ranks(self) -> int:
        """Return the number of data-parallel ranks, as verl's own `_balance_batch` reads it."""
        return int(max(self.actor_rollout_wg._dispatch_info["actor"])) + 1
