"""A checkpoint that is evaluated on benchmarks: the loaded policy, room in its context, engine, samples.

The manifest says everything that the numbers depend on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from transformers import PreTrainedModel

from aipo.assembly.agents import AgentSet, build_protocol
from aipo.assembly.engines import PolicyEngine, build_engine
from aipo.assembly.suite_options import SuiteOptions
from aipo.config.settings import Settings
from aipo.consult.codec import TagCodec
from aipo.consult.limits import Limits
from aipo.consult.prompts import prompt_hash, system_prompt
from aipo.core.types import Condition, SoloMode
from aipo.engines.base import Sampling
from aipo.evaluation.manifest import EvaluationError, Manifest, Questions, fingerprint
from aipo.evaluation.samples import SampleFile
from aipo.evaluation.sampling import NO_LIMIT, WITH_AGENTS, Evaluator, SamplingPlan, least_room
from aipo.rollout.episode import ConsultContext
from aipo.rollout.group import Prompts, Sampler
from aipo.tasks.base import Problem, Task
from aipo.training.events import Reporter
from aipo.training.model import load_policy

SOLO = "solo"
SLOTS = 64
"""Rollouts that decode at once, unless a recipe or rollout.slots says otherwise."""
BATCH_OF_SLOTS = 4
"""Samples of a batch, in slots: its last, longest responses then hold up little."""
GRADERS = ("aipo", "math-verify", "reasoning-gym")
COMPUTES = ("torch", "transformers", "tokenizers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A benchmark that is ready to be asked."""

    questions: Questions
    task: Task
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedPolicy:
    """A policy with its prompts and consult, and how it is sampled."""

    settings: Settings
    entries: Sequence[Entry]
    agent_set: AgentSet | None
    sampling: Sampling
    solo_mode: SoloMode
    seed: int
    model: PreTrainedModel
    prompts: Prompts

    @property
    def context(self) -> int:
        """Tokens of prompt and response that the policy was made for."""
        text = self.model.config.get_text_config(decoder=True)
        return int(getattr(text, "max_position_embeddings", None) or NO_LIMIT)

    def manifest(self, checkpoint: str) -> Manifest:
        """Return what the folder is filled under."""
        consult, protocol = self.settings.consult, self.prompts.consult.protocol
        texts = {SOLO: system_prompt(Condition.SOLO, protocol, consult.solo_prompt)}
        agents: dict[str, object] = {}
        if self.agent_set:
            texts[WITH_AGENTS] = system_prompt(Condition.CONSULTING, protocol, consult.consulting_prompt)
            agents = {
                "who": {str(name): dict(record) for name, record in self.agent_set.record.items()},
                "max_consultations": consult.max_consultations,
                "max_feedback_tokens": consult.max_feedback_tokens,
                "leak_policy": consult.leak_policy,
            }
        return Manifest(
            checkpoint=checkpoint,
            policy=_named(checkpoint, self.model),
            sampling={
                "temperature": self.sampling.temperature,
                "top_p": self.sampling.top_p,
                "solo_mode": self.solo_mode.value,
                "dtype": self.settings.policy.dtype,
                "context": self.context,
                "engine": self.settings.engine.name,
            },
            prompts={name: prompt_hash(text) for name, text in texts.items()},
            seed=self.seed,
            benchmarks=tuple(entry.questions for entry in self.entries),
            graders={name: version(name) for name in GRADERS},
            agents=agents,
            made_with={name: version(name) for name in COMPUTES} | {"device": self.settings.run.device},
        )

    async def sample(
        self,
        manifest: Manifest,
        file: SampleFile,
        engine: PolicyEngine,
        options: SuiteOptions,
        reporter: Reporter,
    ) -> None:
        """Make every sample that is missing. Raises `StopRunError` where too many could not be graded."""
        recorded = {k: s for k, s in file.read().items() if s.graded or not options.retry_ungraded}
        for condition in manifest.conditions:
            for entry in self.entries:
                own = entry.questions
                plan = SamplingPlan(
                    mode=self.solo_mode.value if condition == SOLO else WITH_AGENTS,
                    samples=own.samples,
                    sampling=self.sampling,
                    seed_path=(self.seed, "benchmarks", own.name, condition),
                    max_response_tokens=own.max_response_tokens,
                    benchmark=own.name,
                    condition=condition,
                    questions=own.digest,
                    policy=manifest.policy,
                )
                evaluator = Evaluator(
                    sampler=Sampler(engine.engine, self.prompts.consult, entry.task, self.prompts),
                    batch=self.slots(manifest) * BATCH_OF_SLOTS,
                    context=self.context,
                    max_ungraded_share=options.max_ungraded_share,
                    ungraded_option="--max-ungraded-share",
                    mended="give the same command with --retry-ungraded",
                    reporter=reporter,
                )
                await evaluator.run(entry.problems, plan, file, recorded)

    def slots(self, manifest: Manifest) -> int:
        """Return the number of rollouts that decode at the same time."""
        return max(1, min(self.settings.rollout.slots, manifest.samples))

    def engine(self, manifest: Manifest, folder: Path) -> PolicyEngine:
        """Return the engine, with room for the longest prompt and response. Raises `EvaluationError`."""
        prompt_tokens, capacity = self._needed()
        room = {
            "slots": self.slots(manifest),
            "max_prompt_tokens": prompt_tokens,
            "max_response_tokens": capacity - prompt_tokens,
            "temperature": self.sampling.temperature or 1.0,
        }
        settings = self.settings.model_copy(update={"rollout": self.settings.rollout.model_copy(update=room)})
        return build_engine(settings, self.model, self.prompts.tokenizer, folder)

    def _needed(self) -> tuple[int, int]:
        """Return the tokens of the longest prompt that fits, and of the longest prompt with its response."""
        prompt_tokens = capacity = 0
        for kind in (Condition.SOLO, *((Condition.CONSULTING,) if self.agent_set else ())):
            for entry in self.entries:
                for problem in entry.problems:
                    length = len(self.prompts.ids(problem, kind))
                    if length < self.context:
                        prompt_tokens = max(prompt_tokens, length)
                        most = min(self.context, length + entry.questions.max_response_tokens)
                        capacity = max(capacity, most)
        if not capacity:
            raise EvaluationError(
                f"no prompt fits the policy's context of {self.context} tokens (max_position_embeddings); "
                "evaluate another policy, or shorter questions"
            )
        return prompt_tokens, capacity


def loaded_policy(
    settings: Settings, entries: Sequence[Entry], agent_set: AgentSet | None, options: SuiteOptions
) -> LoadedPolicy:
    """Load the policy of the settings. Raises `ValueError` subclasses, each one sentence with the fix."""
    model, tokenizer = load_policy(settings.policy, settings.run.device)
    consult = settings.consult
    protocol = build_protocol(settings)
    # The limit of a response is each question's own.
    limits = Limits(consult.max_consultations if agent_set else 0, consult.max_feedback_tokens, NO_LIMIT)
    context = ConsultContext(
        protocol,
        TagCodec(tokenizer, protocol),
        limits,
        agent_set.agents if agent_set else {},
        settings.agents.timeout_s,
        consult.leak_policy,
    )
    if agent_set is not None:
        _refuse_no_room(entries, context)
    return LoadedPolicy(
        settings=settings,
        entries=entries,
        agent_set=agent_set,
        sampling=Sampling(options.temperature, options.top_p, exact_log_probs=False),
        solo_mode=SoloMode(options.solo_mode),
        seed=options.seed,
        model=model,
        prompts=Prompts(tokenizer, context, consult.consulting_prompt, consult.solo_prompt, NO_LIMIT),
    )


def _refuse_no_room(entries: Sequence[Entry], consult: ConsultContext) -> None:
    least = least_room(consult)
    for questions in (entry.questions for entry in entries):
        if questions.max_response_tokens < least:
            raise EvaluationError(
                f"--max-response-tokens {questions.name}={questions.max_response_tokens} has no room for one "
                f"feedback; make it at least {least}, or lower consult.max_feedback_tokens = "
                f"{consult.limits.max_feedback_tokens}"
            )


def _named(checkpoint: str, model: PreTrainedModel) -> str:
    """Return which weights these are: a folder's fingerprint, or a hub id with its commit."""
    folder = Path(checkpoint)
    if folder.is_dir():
        return fingerprint(folder)
    commit = getattr(model.config, "_commit_hash", None) or "unknown"
    return f"{checkpoint}@{commit:.12}"
