"""A checkpoint that is evaluated on benchmarks: the loaded policy, room in its context, engine, results.

The manifest says everything that the numbers depend on.
"""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from transformers import PreTrainedModel

from aipo.assembly.agents import AgentSet, build_agents, oracle_of
from aipo.assembly.benchmarks import Entry, load_entries
from aipo.assembly.engines import PolicyEngine, build_engine
from aipo.assembly.evaluation_options import NO_OPTIONS, EvaluationOptions
from aipo.assembly.parts import build_prompts, prepare_process
from aipo.config.loader import load_settings
from aipo.config.settings import Settings
from aipo.consult.prompts import dated, prompt_hash, system_prompt
from aipo.core.types import Condition, SoloMode
from aipo.engines.base import Engine, Sampling
from aipo.evaluation.manifest import EvaluationError, Manifest, claim, fingerprint
from aipo.evaluation.pages import ScorePage
from aipo.evaluation.samples import SampleFile
from aipo.evaluation.sampling import NO_LIMIT, WITH_AGENTS, Evaluator, SamplingPlan, least_room
from aipo.evaluation.scores import Evaluation, read_evaluation
from aipo.rollout.group import Prompts, Sampler
from aipo.rollout.replies import ConsultContext
from aipo.training.device import settled
from aipo.training.events import Reporter
from aipo.training.model import load_policy

SOLO = "solo"
SLOTS = 64
"""Rollouts that decode at once, unless a recipe or rollout.slots says otherwise."""
BATCH_OF_SLOTS = 4
"""Samples of a batch, in slots: its last, longest responses then hold up little."""
GRADERS = ("aipo", "math-verify", "reasoning-gym")
COMPUTES = ("torch", "transformers", "tokenizers")
MEANINGFUL = (
    *("run.device", "run.threads", "policy.precision", "policy.tf32", "policy.attention", "rollout.slots"),
    *("engine.", "sandbox.", "agents.", "consult.", "task.grade_timeout_s", "task.grade_workers"),
)


def evaluate_checkpoint(
    checkpoint: str,
    options: EvaluationOptions = NO_OPTIONS,
    overrides: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> Evaluation:
    """Evaluate a model folder or hub id on benchmarks, alone; with agents too, where the options ask for it.

    Names, files and settings are checked before any compute. The folder of the evaluation (`options.output`,
    or one named after the checkpoint) keeps the manifest, every sample and the results; killed, the same call
    goes on in it. `overrides` are changes of settings such as `rollout.slots=8`.

    Raises:
        ValueError: Names, files, rows or settings cannot be used.
        StopRunError: Too many samples could not be graded.
    """
    _refuse_no_policy(checkpoint)
    settings = _settings(checkpoint, overrides, options)
    folder = options.output or default_output(checkpoint)
    _refuse_bad_sampling(options)
    with ExitStack() as opened:
        entries = load_entries(settings, options, opened)
        agent_set = build_agents(settings, oracle_of(settings)) if options.with_agents else None
        settings = settled(settings)
        prepare_process(settings)
        policy = _loaded(settings, entries, agent_set, options)
        manifest = policy.manifest(checkpoint)
        opened.enter_context(claim(folder, manifest))
        samples = SampleFile(folder)
        samples.append([])  # cuts off what a crash tore
        with closing(policy.engine(manifest, folder)) as engine:
            asyncio.run(policy.sample(manifest, samples, engine.engine, reporter or Reporter()))
        evaluation = read_evaluation(folder)
        ScorePage(evaluation).write(folder)
    return evaluation


def _settings(checkpoint: str, overrides: Sequence[str], options: EvaluationOptions) -> Settings:
    """Return the settings: those of `--with-agents`, if any, changed by the overrides that mean something."""
    for override in overrides:
        if not override.startswith(MEANINGFUL):
            raise ValueError(
                f"{override}: has no meaning for a checkpoint on benchmarks; what may be changed: "
                f"{', '.join(key.rstrip('.') for key in MEANINGFUL)}; the rest are options, see `aipo "
                "evaluate --help`"
            )
    recipe = options.with_agents
    if recipe is not None and not recipe.is_file():
        raise ValueError(f"--with-agents {recipe}: no such recipe; give a TOML file with a table `agents`")
    settings = load_settings(recipe, [*([] if recipe else [f"rollout.slots={SLOTS}"]), *overrides])
    if recipe and not settings.agents.enabled:
        raise ValueError(f"--with-agents {recipe}: agents.enabled is empty; name agents there")
    return settings.model_copy(update={"policy": settings.policy.model_copy(update={"model": checkpoint})})


def _refuse_no_policy(checkpoint: str) -> None:
    """Refuse a folder that holds no model, before anything is loaded."""
    folder = Path(checkpoint)
    if (folder / "config.json").is_file() or not (folder.exists() or _looks_like_a_path(checkpoint)):
        return
    inside = folder / "policy"
    hint = f"; did you mean {inside}?" if (inside / "config.json").is_file() else ""
    raise EvaluationError(
        f"{checkpoint}: no config.json in it; give a Hugging Face model folder, a hub id, or a recipe "
        f"(a .toml file){hint}"
    )


def default_output(checkpoint: str) -> Path:
    """Return where an evaluation goes without `--output`."""
    return Path("runs") / "evaluations" / "-".join(Path(checkpoint).parts[-2:]).lstrip("/-.")


@dataclass(frozen=True, slots=True, kw_only=True)
class _LoadedPolicy:
    """A policy with its prompts and consult, and how it is sampled."""

    settings: Settings
    entries: Sequence[Entry]
    agent_set: AgentSet | None
    options: EvaluationOptions
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
                "temperature": self.options.temperature,
                "top_p": self.options.top_p,
                "solo_mode": self.options.solo_mode,
                "dtype": self.settings.policy.precision,
                "context": self.context,
                # Which calls or tags `banned` bans, and what the agents are asked in.
                **({"consult_format": consult.format} if consult.format != "tags" else {}),
                "engine": self.settings.engine.name,
            }
            | ({"date": self.settings.policy.date} if dated(self.prompts.tokenizer) else {}),
            prompts={name: prompt_hash(text) for name, text in texts.items()},
            seed=self.options.seed,
            benchmarks=tuple(entry.questions for entry in self.entries),
            graders={name: version(name) for name in GRADERS},
            agents=agents,
            made_with={name: version(name) for name in COMPUTES} | {"device": self.settings.run.device},
        )

    async def sample(self, manifest: Manifest, file: SampleFile, engine: Engine, reporter: Reporter) -> None:
        """Make every sample that is missing. Raises `StopRunError` where too many could not be graded."""
        options = self.options
        recorded = {k: s for k, s in file.read().items() if s.graded or not options.retry_ungraded}
        for condition in manifest.conditions:
            for entry in self.entries:
                own = entry.questions
                plan = SamplingPlan(
                    mode=options.solo_mode if condition == SOLO else WITH_AGENTS,
                    samples=own.samples,
                    sampling=Sampling(
                        temperature=options.temperature, top_p=options.top_p, exact_log_probs=False
                    ),
                    seed_path=(options.seed, "benchmarks", own.name, condition),
                    max_response_tokens=own.max_response_tokens,
                    benchmark=own.name,
                    condition=condition,
                    questions=own.digest,
                    policy=manifest.policy,
                )
                evaluator = Evaluator(
                    sampler=Sampler(
                        engine=engine, consult=self.prompts.consult, task=entry.task, prompts=self.prompts
                    ),
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
            "temperature": self.options.temperature or 1.0,
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


def _loaded(
    settings: Settings, entries: Sequence[Entry], agent_set: AgentSet | None, options: EvaluationOptions
) -> _LoadedPolicy:
    """Load the policy of the settings. Raises `ValueError` subclasses, each one sentence with the fix."""
    model, tokenizer = load_policy(settings.policy, settings.run.device)
    agents = agent_set.agents if agent_set else {}
    prompts = build_prompts(settings, tokenizer, agents, NO_LIMIT, NO_LIMIT)  # limits are each question's own
    if agent_set is not None:
        _refuse_no_room(entries, prompts.consult)
    return _LoadedPolicy(
        settings=settings,
        entries=entries,
        agent_set=agent_set,
        options=options,
        model=model,
        prompts=prompts,
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


def _refuse_bad_sampling(options: EvaluationOptions) -> None:
    if options.solo_mode not in list(SoloMode):
        raise ValueError(f"--solo-mode {options.solo_mode}: must be one of {', '.join(SoloMode)}")
    if options.top_p <= 0:
        raise ValueError(f"--top-p {options.top_p}: must be above 0; for greedy samples give --temperature 0")


def _looks_like_a_path(checkpoint: str) -> bool:
    return checkpoint.startswith((".", "/", "~")) or len(Path(checkpoint).parts) > 2
