"""The training loop: sample, roll out, grade, advantage, update, record, checkpoint. Start reading here.

Owns the order of a step. Must not know which model, task or agents it is given.
Invariant: what a step does depends on the settings, the weights and the step's number, never on the clock.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aipo.config.settings import Settings
from aipo.core.seeds import seed_of
from aipo.engines.base import Sampling
from aipo.rollout.group import Group, GroupShape, Sampler
from aipo.rollout.records import rollout_records
from aipo.tasks.base import Problem
from aipo.train.batch import minibatches, objective_settings
from aipo.train.checkpoint import Checkpoints
from aipo.train.events import Progress, StopRunError
from aipo.train.journal import METRICS, ROLLOUTS, TIMINGS, Journal
from aipo.train.metrics import ExpertTokens, rollout_metrics
from aipo.train.model import pad_id, save_policy
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
        self._batches = ProblemBatches(problems, settings)
        self._shape = group_shape(settings)
        if self._shape.experts and sampler.expert is None:
            raise ValueError(
                f"rollout.experts_per_prompt = {self._shape.experts}: task {settings.task.name!r} has no "
                "oracle to write expert trajectories; make it 0"
            )
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
            objective_settings(settings.algorithm),
            settings.rollout.temperature,
            t.microbatch_tokens,
            t.max_grad_norm,
            pad_id(tokenizer),
        )
        self._updater = Updater(self._accelerator, prepared, self._optimiser, update)
        self._journal = Journal(settings)
        self._checkpoints = Checkpoints(settings.run.output / "checkpoints", t.keep_checkpoints)
        self._expert_tokens = ExpertTokens()
        self.step = self._restore()

    async def run(self, after_step: Callable[[Progress], Awaitable[None]]) -> None:
        """Train up to the last step and export the policy. Raises `StopRunError`.

        `after_step` is awaited before the step's checkpoint, so what it writes is repeated, not lost, after a
        crash.
        """
        begun, first, total = time.monotonic(), self.step, self._settings.train.steps
        while self.step < total:
            metrics = await self._one_step(self.step + 1)
            self.step += 1
            await after_step(Progress(self.step, total, metrics, time.monotonic() - begun, self.step - first))
            if self.step % self._settings.train.checkpoint_every_steps == 0 or self.step == total:
                self._checkpoint()
        self.export()

    async def _one_step(self, step: int) -> dict[str, float]:
        clock = [time.monotonic()]
        problems = self._batches.of_step(step)
        groups = await self._sampler.groups(problems, self._shape, (self._settings.run.seed, "rollout", step))
        clock.append(time.monotonic())
        metrics = rollout_metrics(groups)
        self._refuse_ungraded(metrics, groups)
        batches = minibatches(
            groups,
            self._settings.algorithm,
            self._settings.train.minibatches_per_step,
            self._settings.rollout.max_response_tokens,
        )
        metrics |= self._updater.apply([rows for rows in batches if rows])
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
        for group in groups:
            self._expert_tokens.add(group)
        metrics["expert_tokens_raw"] = self._expert_tokens.raw
        metrics["expert_tokens_distinct"] = self._expert_tokens.distinct
        if step % self._settings.train.record_rollouts_every_steps == 0 or step == 1:
            desk = self._sampler.desk
            self._journal.append(ROLLOUTS, [r for g in groups for r in rollout_records(g, step, desk)])
        self._journal.append(METRICS, [{"step": step, **metrics}])
        waits = [c.latency_s for g in groups for m in g.members if m.rollout for c in m.rollout.consultations]
        times = {"rollout_s": clock[1] - clock[0], "update_s": clock[2] - clock[1], "consult_s": sum(waits)}
        self._journal.append(TIMINGS, [{"step": step, **times}])

    def _checkpoint(self) -> None:
        state = {"step": self.step, "expert_tokens": self._expert_tokens.state()}
        self._checkpoints.save(self.step, self._model, self._optimiser, self._scheduler, state)

    def _restore(self) -> int:
        steps = self._checkpoints.steps()
        if not steps:
            self._journal.rewind(0)
            return 0
        state: dict[str, Any] = self._checkpoints.restore(
            steps[-1], self._model, self._optimiser, self._scheduler
        )
        self._expert_tokens = ExpertTokens(**state["expert_tokens"])
        self._journal.rewind(state["step"])
        return int(state["step"])

    def export(self) -> None:
        """Write the policy as a plain Hugging Face folder, `policy/` in the run's folder."""
        save_policy(self._model, self._tokenizer, self._settings.run.output / "policy")


class ProblemBatches:
    """Which problems a step sees: each once an epoch, in an order that depends on seed and epoch only."""

    def __init__(self, problems: Sequence[Problem], settings: Settings) -> None:
        """Raises `ValueError` for a stratum that does not exist or a mix that does not add up."""
        self._seed, self._size = settings.run.seed, settings.train.prompts_per_step
        mix = settings.train.stratum_mix
        strata = {p.stratum for p in problems}
        if unknown := set(mix) - strata:
            raise ValueError(
                f"train.stratum_mix: no stratum {sorted(unknown)} in the data; it has {sorted(strata)}"
            )
        if mix and abs(sum(mix.values()) - 1) > 1e-6:
            raise ValueError(f"train.stratum_mix = {mix} adds up to {sum(mix.values())}; make it 1")
        self._pools: list[tuple[list[Problem], int]] = []
        left = self._size
        names = list(mix) or [""]
        for i, name in enumerate(names):
            share = left if i == len(names) - 1 else round(self._size * mix[name])
            self._pools.append(([p for p in problems if not name or p.stratum == name], share))
            left -= share

    def of_step(self, step: int) -> list[Problem]:
        """Return the problems of a step, counted from 1, strata mixed."""
        batch = [
            self._nth(pool, share * (step - 1) + i, index)
            for index, (pool, share) in enumerate(self._pools)
            for i in range(share)
        ]
        Random(seed_of(self._seed, "mix", step)).shuffle(batch)
        return batch

    def _nth(self, pool: list[Problem], n: int, index: int) -> Problem:
        epoch, place = divmod(n, len(pool))
        order = _permutation(len(pool), seed_of(self._seed, "epoch", index, epoch))
        return pool[order[place]]


_PERMUTATIONS: dict[tuple[int, int], list[int]] = {}


def _permutation(size: int, seed: int) -> list[int]:
    if (size, seed) not in _PERMUTATIONS:
        if len(_PERMUTATIONS) > 16:
            _PERMUTATIONS.clear()
        order = list(range(size))
        Random(seed).shuffle(order)
        _PERMUTATIONS[size, seed] = order
    return _PERMUTATIONS[size, seed]


def group_shape(settings: Settings) -> GroupShape:
    """Return a training group's shape: without agents every rollout is solo, hence plain RLVR.

    Raises `ValueError` for groups of nothing.
    """
    r = settings.rollout
    if not r.rollouts_per_prompt + r.experts_per_prompt:
        raise ValueError(
            "rollout.rollouts_per_prompt = 0 and rollout.experts_per_prompt = 0 leave nothing to learn from; "
            "make one of them at least 1"
        )
    solo = (
        round(r.rollouts_per_prompt * r.solo_fraction) if settings.agents.enabled else r.rollouts_per_prompt
    )
    return GroupShape(
        consulting=r.rollouts_per_prompt - solo,
        solo=solo,
        experts=r.experts_per_prompt,
        sampling=Sampling(temperature=r.temperature),
    )
