"""The training loop. Start reading here: `_one_step` is a step from problems to new weights.

A step samples and credits groups of rollouts (`Experience`), updates the policy (`Updater`), appends its
records (`Journal`) and sometimes saves a checkpoint (`RunState`). What a step computes depends on the
settings, the weights and the step's number, never on the clock. Nothing here knows which model, task or
agents it is given.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from math import isfinite

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aipo.config.settings import Settings
from aipo.core.seeds import seed_of
from aipo.engines.base import EngineError, MemoryHolder, Pausable, WeightSink, taken_away
from aipo.rollout.group import Group, Sampler
from aipo.rollout.records import consultation_times, rollout_records
from aipo.tasks.base import Problem
from aipo.training import generators
from aipo.training.algorithm import objective_settings, truncation_of
from aipo.training.aside import Aside
from aipo.training.batch import minibatches
from aipo.training.compiling import compile_layers
from aipo.training.credit import Credit
from aipo.training.durable import sync_tree
from aipo.training.events import LastConsultation, Progress, SignalledError, StopRunError
from aipo.training.experience import Experience
from aipo.training.guards import Guards, RollBackError, SkipStepError
from aipo.training.handover import hand_over
from aipo.training.journal import METRICS, ROLLOUTS, TIMINGS, Journal, read_lines
from aipo.training.log_probs import PolicyForward
from aipo.training.metrics import last_consultation, rollout_metrics, spending
from aipo.training.model import checkpoints_activations, pad_id, save_policy
from aipo.training.optimizers import OPTIMIZERS
from aipo.training.ranks import ALONE, Ranks, disable_buffer_broadcast
from aipo.training.reference import check_reference, frozen_reference
from aipo.training.schedule import algorithm_at, rate_at
from aipo.training.sharded import Sharded, Whole, use_fsdp
from aipo.training.snapshot import Learner
from aipo.training.state import RunState
from aipo.training.trackers import FOLDER, start_trackers
from aipo.training.under_way import refuse_crossing
from aipo.training.update import Updater, UpdateSettings
from aipo.training.waits import Waits, watched
from aipo.training.writer import NotSavedError, Writer

AfterStep = Callable[[Progress], Awaitable[None]]
BeforeFirstStep = Callable[[], Awaitable[None]]


class Trainer:
    """Trains one policy, in this process or in one of several ranks."""

    def __init__(
        self,
        settings: Settings,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sampler: Sampler,
        problems: Sequence[Problem],
        may_change: Collection[str] = (),
        ranks: Ranks = ALONE,
    ) -> None:
        """Claim the output folder and restore its newest checkpoint.

        Settings in `may_change` may differ from those that the run began with. Raises `ValueError` for
        whatever else does not fit, before anything is computed.
        """
        self._settings, self._model, self._tokenizer, self._ranks = settings, model, tokenizer, ranks
        refuse_crossing(settings, sampler.engine, ranks)
        self.waits = Waits()
        sharded = ranks.several and settings.run.ranks == "fsdp"
        self._policy = Sharded(model) if sharded else Whole(model)
        for watched_model in {model, self._policy.trained}:
            self.waits.watch_forward_passes(watched_model)
        self._engine = sampler.engine  # the watched one has neither `free` nor weights
        self.sampler = watched(sampler, self.waits)
        if ranks.several:
            ranks.waiting = partial(self.waits.track, "the other ranks", f"rank {ranks.rank}")
        self._experience = Experience(settings, self.sampler, problems, ranks)
        trackers, project = list(settings.run.trackers), settings.run.output / FOLDER
        cpu = model.device.type == "cpu"
        self._accelerator = Accelerator(cpu=cpu, log_with=trackers or None, project_dir=project)
        if self._accelerator.num_processes != ranks.size:
            found = self._accelerator.num_processes
            raise ValueError(f"accelerate found {found} processes, but the trainer was given {ranks.size}")
        if sharded:
            use_fsdp(self._accelerator, model)
        prepared, self._optimiser = self._prepared()
        update, self._guards = _update_settings(settings, pad_id(tokenizer), sampler), Guards(settings)
        self._updater = Updater(self._accelerator, prepared, self._optimiser, update, self._guards, ranks)
        self._journal = ranks.in_turn(lambda: Journal(settings, may_change, claim=ranks.is_main))
        self._writer = Writer(settings.guards.stall_s, self.waits.progress)
        self._signal = 0
        """The number of the signal that asked the run to stop; 0: there was none."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._aside = Aside()
        self._last_consultation: LastConsultation | None = None
        self._warnings: list[str] = []
        with ExitStack() as on_error:
            on_error.callback(self.close)
            ranks.first(lambda: check_reference(settings, model))  # before a checkpoint is restored into it
            self._state = RunState(
                settings, self._journal, self._learner(), self._experience, self._guards, self._writer, ranks
            )
            self._state.restore()
            recorded_steps = read_lines(settings.run.output / METRICS)
            self._guards.trends.replay(recorded_steps)
            self._updater.room.replay(recorded_steps)
            start_trackers(self._accelerator, settings)
            on_error.pop_all()

    def _prepared(self) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        """Make the optimiser and its scheduler; return policy and optimiser as accelerate wraps them."""
        train, model = self._settings.train, self._policy.trained
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        make = OPTIMIZERS[train.optimizer].make
        optimiser = make(trained, lr=train.learning_rate, weight_decay=train.weight_decay)
        reference = frozen_reference(self._settings, model)
        checkpointing = checkpoints_activations(train, model)
        forward = PolicyForward(model, train.logit_chunk_tokens, checkpointing, reference)
        if train.compile:
            compile_layers(model)
        if self._ranks.several:
            forward.check()  # now, on all ranks: later, only ranks with a long micro-batch would check
        prepared, prepared_optimiser = self._accelerator.prepare(forward, optimiser)
        disable_buffer_broadcast(prepared)
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, partial(rate_at, train))
        return prepared, prepared_optimiser

    def _learner(self) -> Learner:
        return Learner(
            model=self._model,
            tokenizer=self._tokenizer,
            optimiser=self._policy.wrapped(self._optimiser),
            scheduler=self._scheduler,
            policy=self._policy,
        )

    @property
    def step(self) -> int:
        """The last finished and recorded step."""
        return self._state.step

    @property
    def notes(self) -> Sequence[str]:
        """What the user should know about the resume."""
        return self._state.notes

    def close(self) -> None:
        """Close the trackers, and release the run's folder unless a checkpoint is still being written."""
        if self._accelerator.trackers:
            self._accelerator.end_training()
        with suppress(NotSavedError):
            self._writer.finish()
        if self._writer.busy:
            return  # the folder's lock is released when the process ends
        self._journal.close()

    async def run(self, after_step: AfterStep, before_first_step: BeforeFirstStep | None = None) -> None:
        """Train up to the last step and export the policy.

        `after_step` is awaited before the step's checkpoint is saved: after a crash, what it wrote may be
        written again but is never missing. `before_first_step` is awaited before step 1, also by a resumed
        run that has not finished step 1. Raises `StopRunError` for an early stop, after saving a checkpoint
        where that is possible; a run that a signal stops exports the policy too.
        """
        self._loop = asyncio.get_running_loop()
        self._begun_s, self._step_at_start = time.monotonic(), self.step
        try:
            with self.waits.cancelled_by_stop():
                await self._steps(after_step, before_first_step)
        except StopRunError as stop:
            with self.waits.track("checkpoint", "the stop"):
                self._state.save_after(stop, self._updater.steps_taken > 0)
                if isinstance(stop, SignalledError):
                    self.export()
            raise

    async def _steps(self, after_step: AfterStep, before_first_step: BeforeFirstStep | None) -> None:
        try:
            await self._all_steps(after_step, before_first_step)
        finally:
            if self._experience.under_way:
                await self._experience.under_way.cancel()

    async def _all_steps(self, after_step: AfterStep, before_first_step: BeforeFirstStep | None) -> None:
        await self._load_weights_into_engine()
        if before_first_step is not None and self.step == 0:
            await self._begin(before_first_step)
        if self._state.after_step_due:
            await self._finish_step(read_lines(self._settings.run.output / METRICS)[-1], after_step)
        while self.step < self._settings.train.steps:
            self._state.begin_step()
            metrics = await self._one_step(self.step + 1)
            await self._load_weights_into_engine()
            await self._finish_step(metrics, after_step)
        self.export()

    async def _begin(self, before_first_step: BeforeFirstStep) -> None:
        """Await `before_first_step`; whatever it draws, step 1 draws the same numbers as without it."""
        generators_state = generators.state()
        with self.waits.track("what comes before", "step 1"), self._ranks.together():
            if self._ranks.is_main:
                await before_first_step()
        generators.restore(generators_state)
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        """Raise `SignalledError` on all ranks if one of them has received a signal."""
        if signals := [number for number in self._ranks.all_gather(self._signal) if number]:
            raise _signalled(self.step, signals[0])

    async def _finish_step(self, metrics: dict[str, float], after_step: AfterStep) -> None:
        """Complete a recorded step: stop if a guard says so, evaluate, save a checkpoint if one is due."""
        state, total = self._state, self._settings.train.steps
        self._guards.end()
        state.settle()  # raises `NotSavedError` after too many failed checkpoints
        elapsed_s, steps_done_now = time.monotonic() - self._begun_s, self.step - self._step_at_start
        with self.waits.track("what follows a step", f"step {self.step}"), self._ranks.together():
            if self._ranks.is_main:
                await after_step(
                    Progress(
                        step=self.step,
                        steps=total,
                        metrics=metrics,
                        elapsed_s=elapsed_s,
                        steps_done_now=steps_done_now,
                        last_consultation=self._last_consultation,
                        warnings=(*self._warnings, *state.warnings),
                    )
                )
        state.warnings.clear()
        state.after_step_due = False
        with self.waits.track("checkpoint", f"step {self.step}"):
            if state.due():
                state.save()
        if self.step < total:
            self._stop_if_asked()

    def stop_soon(self, signal_number: int, finish_step: bool) -> None:
        """Ask the run to stop: with `finish_step` after the current step, else where it waits next.

        For signal handlers. The last complete step is saved as soon as the event loop gets control, since
        whoever sent the signal may not wait until the step ends. Several ranks always finish the step, so
        that all stop together.
        """
        self._signal = signal_number
        if self._loop is not None and not self._ranks.several:
            self._loop.call_soon_threadsafe(self._save_now, finish_step)

    def _save_now(self, finish_step: bool) -> None:
        if self._aside.busy:
            return  # as where an update has the event loop to itself: the step is finished
        with suppress(StopRunError):  # tried again, and reported, at the end of the step
            self._state.save_for_stop(self._updater.steps_taken > 0)
        if not finish_step and self._signal:
            self.waits.stop(_signalled(self.step, self._signal))

    async def _load_weights_into_engine(self) -> None:
        """Load the weights into an engine that holds its own copy, while nothing is being sampled."""
        engine, crossing = self._engine, self._experience.under_way
        if crossing and isinstance(engine, Pausable):
            engine.resume(self.step)
        if not isinstance(engine, WeightSink):
            return
        try:
            async with crossing.weights_held() if crossing else nullcontext():
                with self.waits.track("the policy's engine", f"the weights after step {self.step}"):
                    self._state.warnings += await hand_over(engine, self._ranks, self._model, self.step)
        except EngineError as error:
            raise StopRunError(
                f"after step {self.step} the policy's engine did not load the new weights: {error}\n"
                "The same command continues from the last checkpoint"
            ) from error

    async def _one_step(self, step: int) -> dict[str, float]:
        began_s = time.monotonic()
        if self._ranks.several:  # checkpoints hold only rank 0's generators: seed those of each rank anew
            generators.seed(seed_of(self._settings.run.seed, "rank", self._ranks.rank, step))
        algorithm, crossing = algorithm_at(self._settings, step), self._experience.under_way
        self._guards.begin(step)
        self._updater.begin_step()
        with self.waits.track("sampling", f"step {step}"):
            groups, credits = await self._experience.sample_step(step, algorithm)
        if crossing and isinstance(self._engine, Pausable):
            self._engine.pause()
        elif not crossing and isinstance(self._engine, MemoryHolder):
            self._engine.free()
        sampled_s = time.monotonic()
        metrics = rollout_metrics(groups, self.sampler.consult.agents) | self._experience.elicited
        metrics |= self._experience.staleness
        metrics["agent_cost"] = metrics.get("agent_cost", 0.0) + self._experience.approval_cost
        metrics["sampled_groups"] = len(groups)
        metrics["teaching_groups"] = sum(any(c.teaches for c in credit) for credit in credits)
        rolled_back = False
        try:
            credits = self._guards.check_rollouts(groups, credits)
            with self.waits.track("update", f"step {step}"):
                update = partial(self._update, step, credits)
                metrics |= await self._aside.run(update) if crossing else update()
            metrics |= self._updater.room.metrics()
            if crossing:
                metrics["truncated_weight_share"] = self._updater.truncated_share
            self._policy.sync_to_sampler()
            self._guards.check_step(metrics)
        except SkipStepError:
            pass  # the guards have counted it
        except RollBackError:
            self._state.roll_back()
            rolled_back = True
        metrics |= self._guards.count_step(metrics["agent_cost"] + metrics.get("judge_cost", 0.0))
        new_warnings = self._guards.watch(metrics)
        self._warnings = [*new_warnings.values(), *self._updater.room.warnings()]
        metrics |= {f"guards/{name}": 1.0 for name in new_warnings}
        metrics["learning_rate"] = float(self._scheduler.get_last_lr()[0])
        self._scheduler.step()
        times = {"rollout_s": sampled_s - began_s, "update_s": time.monotonic() - sampled_s}
        self._last_consultation = last_consultation(groups)
        self._ranks.first(lambda: self._record(step, groups, metrics, times))
        self._state.end_step(rolled_back)
        if crossing:
            crossing.learnt(self._state.oldest_checkpoint)
        return metrics

    def _update(self, step: int, credits: Sequence[Sequence[Credit]]) -> dict[str, float]:
        train, max_tokens = self._settings.train, self._settings.rollout.max_response_tokens
        algorithm = algorithm_at(self._settings, step)
        batches = minibatches(credits, algorithm, train.minibatches_per_step, max_tokens)
        every = train.source_gradients_every_steps
        by_source = every > 0 and step % every == 0
        with self._ranks.exchanging():
            return self._updater.apply(
                [rows for rows in batches if rows],
                objective_settings(algorithm),
                by_source,
                self._records_rollouts(step),
            )

    def _records_rollouts(self, step: int) -> bool:
        """Say whether a step's rollouts are recorded, and not its metrics alone."""
        return step % self._settings.train.record_rollouts_every_steps == 0 or step == 1

    def _record(
        self, step: int, groups: Sequence[Group], metrics: dict[str, float], times: dict[str, float]
    ) -> None:
        metrics["expert_tokens_raw"] = self._experience.expert_tokens.raw
        metrics["expert_tokens_distinct"] = self._experience.expert_tokens.distinct
        if self._records_rollouts(step):
            consult, log_p = self.sampler.consult, self._updater.feedback_log_p
            records = [r for g in groups for r in rollout_records(g, step, consult, log_p)]
            self._journal.append(ROLLOUTS, records)
        finite = {name: value for name, value in metrics.items() if isfinite(value)}  # JSON has no NaN
        self._journal.append(METRICS, [{"step": step, **finite}])
        self._accelerator.log(finite, step=step)
        rollouts = [m.rollout for g in groups for m in g.members if m.rollout]
        consult_s = sum([c.latency_s for rollout in rollouts for c in rollout.consultations])
        each = {"consultations_s": consultation_times(groups)} if self._records_rollouts(step) else {}
        self._journal.append(
            TIMINGS, [{"step": step, **times, "consult_s": consult_s, **spending(groups), **each}]
        )

    def export(self) -> None:
        """Write the policy as a plain Hugging Face folder, `policy/` in the run's folder."""
        folder = self._settings.run.output / "policy"
        self._ranks.first(lambda: save_policy(self._model, self._tokenizer, folder))
        self._ranks.first(lambda: sync_tree(folder))


def _update_settings(settings: Settings, pad: int, sampler: Sampler) -> UpdateSettings:
    in_process = not (isinstance(sampler.engine, WeightSink) or settings.rollout.max_staleness_steps)
    request_ids = taken_away(sampler.consult.codec.banned_sequences())
    if settings.algorithm.copies_without_requests and not request_ids:
        raise ValueError(
            "algorithm.copies_without_requests = true: what opens a request is several tokens of the "
            "policy's tokenizer, which cannot be taken away; set it to false, or make the tags special tokens"
        )
    return UpdateSettings(
        temperature=settings.rollout.temperature,
        microbatch_tokens=settings.train.microbatch_tokens,
        max_grad_norm=settings.train.max_grad_norm,
        pad_id=pad,
        mismatch_truncation=truncation_of(settings.algorithm, in_process),
        request_ids=request_ids,
        share_prefixes=settings.train.share_prefixes,
    )


def _signalled(step: int, signal_number: int) -> SignalledError:
    why = f"signal {signal_number} after step {step}; the same command continues. policy/ holds what there is"
    return SignalledError(why, signal_number)
