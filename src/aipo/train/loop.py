"""The training loop: sample, roll out, grade, advantage, update, record, checkpoint. Start reading here.

Owns the order of a step. Must not know which model, task or agents it is given.
Invariant: what a step does depends on the settings, the weights and the step's number, never on the clock.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aipo.config.settings import Settings
from aipo.engines.base import EngineError, WeightSink
from aipo.rollout.group import Group, Sampler
from aipo.rollout.records import rollout_records
from aipo.tasks.base import Problem
from aipo.train.algorithm import objective_settings
from aipo.train.batch import minibatches
from aipo.train.checkpoint import Checkpoints
from aipo.train.events import Progress, StopRunError
from aipo.train.experience import Experience
from aipo.train.guards import refuse_failing_agents
from aipo.train.journal import METRICS, ROLLOUTS, TIMINGS, Journal
from aipo.train.metrics import rollout_metrics, spending
from aipo.train.model import pad_id, save_policy
from aipo.train.schedule import algorithm_at
from aipo.train.update import Updater, UpdateSettings


class Trainer:
    """One run."""

    def __init__(
        self,
        settings: Settings,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sampler: Sampler,
        problems: Sequence[Problem],
    ) -> None:
        """Claim the output folder and restore its newest checkpoint. Raises `ValueError`s before any
        compute."""
        self._settings, self._model, self._tokenizer = settings, model, tokenizer
        self._sampler = sampler
        self._experience = Experience(settings, sampler, problems)
        self._accelerator = Accelerator(cpu=settings.run.device == "cpu")
        if self._accelerator.num_processes > 1:
            raise ValueError("several ranks are not supported yet; start one process")
        t = settings.train
        optimiser = torch.optim.AdamW(model.parameters(), lr=t.learning_rate, weight_decay=t.weight_decay)
        prepared, self._optimiser = self._accelerator.prepare(model, optimiser)
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: min(1.0, (step + 1) / (t.warmup_steps + 1))
        )
        update = UpdateSettings(
            settings.rollout.temperature,
            t.microbatch_tokens,
            t.max_grad_norm,
            pad_id(tokenizer),
            settings.algorithm.mismatch_truncation,
        )
        self._updater = Updater(self._accelerator, prepared, self._optimiser, update)
        self._journal = Journal(settings)
        self._checkpoints = Checkpoints(settings.run.output / "checkpoints", t.keep_checkpoints)
        with ExitStack() as on_error:
            on_error.callback(self.close)
            self.step = self._restore()
            on_error.pop_all()

    def close(self) -> None:
        """Let go of the run's folder."""
        self._journal.close()

    async def run(self, after_step: Callable[[Progress], Awaitable[None]]) -> None:
        """Train up to the last step and export the policy. Raises `StopRunError`.

        `after_step` is awaited before the step's checkpoint, so what it writes is repeated, not lost, after a
        crash.
        """
        begun, first, total = time.monotonic(), self.step, self._settings.train.steps
        await self._hand_over_weights()
        while self.step < total:
            metrics = await self._one_step(self.step + 1)
            self.step += 1
            await self._hand_over_weights()
            await after_step(Progress(self.step, total, metrics, time.monotonic() - begun, self.step - first))
            if self.step % self._settings.train.checkpoint_every_steps == 0 or self.step == total:
                self._checkpoint()
        self.export()

    async def _hand_over_weights(self) -> None:
        """Give the weights to an engine that has its own; between steps nothing is in flight."""
        engine = self._sampler.engine
        if not isinstance(engine, WeightSink):
            return
        try:
            await engine.load_weights(self._model.save_pretrained, self.step)
        except EngineError as error:
            raise StopRunError(
                f"after step {self.step} the policy's engine did not take the new weights: {error}\n"
                "The same command goes on from the last checkpoint"
            ) from error

    async def _one_step(self, step: int) -> dict[str, float]:
        clock = [time.monotonic()]
        settings, algorithm = self._settings, algorithm_at(self._settings, step)
        groups, credits = await self._experience.of_step(step, algorithm)
        clock.append(time.monotonic())
        metrics = rollout_metrics(groups)
        metrics["agent_cost"] = metrics.get("agent_cost", 0.0) + self._experience.approval_cost
        metrics["sampled_groups"] = len(groups)
        metrics["teaching_groups"] = sum(any(c.teaches for c in credit) for credit in credits)
        self._refuse_ungraded(metrics, groups)
        refuse_failing_agents(groups, settings.train, step)
        t, longest = settings.train, settings.rollout.max_response_tokens
        batches = minibatches(credits, algorithm, t.minibatches_per_step, longest)
        every = t.source_gradients_every_steps
        by_source = every > 0 and step % every == 0
        metrics |= self._updater.apply(
            [rows for rows in batches if rows], objective_settings(algorithm), by_source
        )
        metrics["learning_rate"] = float(self._scheduler.get_last_lr()[0])
        self._scheduler.step()
        clock.append(time.monotonic())
        self._record(step, groups, metrics, clock)
        return metrics

    def _refuse_ungraded(self, metrics: dict[str, float], groups: Sequence[Group]) -> None:
        share, limit = metrics.get("ungraded_share", 0.0), self._settings.train.max_ungraded_share
        if share > limit:
            reasons = sorted(
                {m.grade.reason for g in groups for m in g.members if m.grade.verdict == "ungraded"}
            )
            raise StopRunError(
                f"step {self.step + 1}: {share:.0%} of the rollouts could not be graded, more than "
                f"train.max_ungraded_share = {limit}; nothing was learnt from this step. "
                f"Reasons: {'; '.join(reasons[:3])}"
            )

    def _record(
        self, step: int, groups: Sequence[Group], metrics: dict[str, float], clock: Sequence[float]
    ) -> None:
        metrics["expert_tokens_raw"] = self._experience.expert_tokens.raw
        metrics["expert_tokens_distinct"] = self._experience.expert_tokens.distinct
        if step % self._settings.train.record_rollouts_every_steps == 0 or step == 1:
            desk = self._sampler.desk
            self._journal.append(ROLLOUTS, [r for g in groups for r in rollout_records(g, step, desk)])
        self._journal.append(METRICS, [{"step": step, **metrics}])
        waits = [c.latency_s for g in groups for m in g.members if m.rollout for c in m.rollout.consultations]
        times = {"rollout_s": clock[1] - clock[0], "update_s": clock[2] - clock[1], "consult_s": sum(waits)}
        self._journal.append(TIMINGS, [{"step": step, **times, **spending(groups)}])

    def _checkpoint(self) -> None:
        state = {"step": self.step, "experience": self._experience.state()}
        self._checkpoints.save(self.step, self._model, self._optimiser, self._scheduler, state)

    def _restore(self) -> int:
        steps = self._checkpoints.steps()
        if not steps:
            self._journal.rewind(0)
            return 0
        state: dict[str, Any] = self._checkpoints.restore(
            steps[-1], self._model, self._optimiser, self._scheduler
        )
        self._experience.restore(state["experience"])
        self._journal.rewind(state["step"])
        return int(state["step"])

    def export(self) -> None:
        """Write the policy as a plain Hugging Face folder, `policy/` in the run's folder."""
        save_policy(self._model, self._tokenizer, self._settings.run.output / "policy")
