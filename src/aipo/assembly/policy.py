"""A loaded policy, ready to be evaluated: prompts, consults, the room in its context, and the engine.

Owns what both conditions need of a policy. Must not know options of benchmarks, nor count anything.
Invariant: the consult of the condition `solo` holds no agent; the manifest says everything that the numbers
depend on.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from transformers import PreTrainedModel

from aipo.agents.base import Agent
from aipo.assembly.agents import AgentSet
from aipo.assembly.engines import build_engine
from aipo.assembly.parts import build_protocol
from aipo.assembly.suite_options import SuiteOptions
from aipo.config.settings import Settings
from aipo.console import console
from aipo.consult.codec import TagCodec
from aipo.consult.limits import Limits
from aipo.consult.prompts import prompt_hash, system_prompt
from aipo.consult.protocol import Protocol
from aipo.core.types import Condition, SoloMode
from aipo.engines.base import Sampling
from aipo.evaluation.benchmark_run import AGENTS, SOLO, Entry, Evaluator
from aipo.evaluation.manifest import EvaluationError, Manifest, fingerprint
from aipo.rollout.episode import ConsultContext
from aipo.rollout.group import Prompts
from aipo.rollout.leaks import LeakPolicy
from aipo.training.events import duration
from aipo.training.model import load_policy

SLOTS = 64
"""Rollouts that decode at once, unless a recipe or rollout.slots says otherwise."""
BATCH_OF_SLOTS = 4
"""A batch is so many times that: its last, longest responses then hold up little."""
NO_LIMIT = 1 << 30
GRADERS = ("aipo", "math-verify", "reasoning-gym")
COMPUTES = ("torch", "transformers", "tokenizers")
LINES_EVERY_S = 30.0


@dataclass(frozen=True, slots=True)
class Way:
    """How responses are sampled."""

    solo_mode: SoloMode
    sampling: Sampling
    seed: int


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A policy with its prompts and consults, by condition."""

    settings: Settings
    entries: Sequence[Entry]
    crew: AgentSet | None
    way: Way
    model: PreTrainedModel
    prompts: Mapping[str, Prompts]

    @property
    def context(self) -> int:
        """Tokens of prompt and response that the policy was made for."""
        text = self.model.config.get_text_config(decoder=True)
        return int(getattr(text, "max_position_embeddings", None) or NO_LIMIT)

    def manifest(self, checkpoint: str) -> Manifest:
        """Return what the folder is filled under."""
        consult, how = self.settings.consult, self.way.sampling
        protocol = self.prompts[SOLO].consult.protocol
        texts = {SOLO: system_prompt(Condition.SOLO, protocol, consult.solo_prompt)}
        agents: dict[str, object] = {}
        if self.crew:
            texts[AGENTS] = system_prompt(Condition.CONSULTING, protocol, consult.consulting_prompt)
            agents = {
                "who": {str(name): dict(record) for name, record in self.crew.record.items()},
                "max_consultations": consult.max_consultations,
                "max_feedback_tokens": consult.max_feedback_tokens,
                "leak_policy": consult.leak_policy,
            }
        return Manifest(
            checkpoint=checkpoint,
            policy=_named(checkpoint, self.model),
            sampling={
                "temperature": how.temperature,
                "top_p": how.top_p,
                "solo_mode": self.way.solo_mode.value,
                "dtype": self.settings.policy.dtype,
                "context": self.context,
                "engine": self.settings.engine.name,
            },
            prompts={name: prompt_hash(text) for name, text in texts.items()},
            seed=self.way.seed,
            benchmarks=tuple(entry.questions for entry in self.entries),
            graders={name: version(name) for name in GRADERS},
            agents=agents,
            made_with={name: version(name) for name in COMPUTES} | {"device": self.settings.run.device},
        )

    @contextmanager
    def evaluator(self, manifest: Manifest, folder: Path, options: SuiteOptions) -> Iterator[Evaluator]:
        """Yield what samples; a policy server that was started ends with it. Raises `EvaluationError`."""
        slots = max(1, min(self.settings.rollout.slots, manifest.samples))
        prompt_tokens, capacity = self._needed()
        room = {
            "slots": slots,
            "max_prompt_tokens": prompt_tokens,
            "max_response_tokens": capacity - prompt_tokens,
            "temperature": self.way.sampling.temperature or 1.0,
        }
        settings = self.settings.model_copy(update={"rollout": self.settings.rollout.model_copy(update=room)})
        tokenizer = self.prompts[SOLO].tokenizer
        with closing(build_engine(settings, self.model, tokenizer, folder)) as engine:
            yield Evaluator(
                engine=engine.engine,
                consults={name: prompts.consult for name, prompts in self.prompts.items()},
                prompts=self.prompts,
                sampling=self.way.sampling,
                solo_mode=self.way.solo_mode,
                context=self.context,
                batch=slots * BATCH_OF_SLOTS,
                max_ungraded_share=options.max_ungraded_share,
                retry_ungraded=options.retry_ungraded,
                report=Lines(),
            )

    def _needed(self) -> tuple[int, int]:
        """Return the tokens of the longest prompt that fits, and of the longest prompt with its response."""
        prompt_tokens = capacity = 0
        for name, prompts in self.prompts.items():
            kind = Condition.SOLO if name == SOLO else Condition.CONSULTING
            for entry in self.entries:
                for problem in entry.problems:
                    length = len(prompts.ids(problem, kind))
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


class Lines:
    """Prints how far a benchmark is: at its end, and every now and then."""

    def __init__(self) -> None:
        self._begun = self._last = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Print, if there is something to say."""
        now = time.monotonic()
        if done == total or now - self._last > LINES_EVERY_S:
            self._last = now
            console.print(f"{what}: {done}/{total} samples, {duration(now - self._begun)}", markup=False)
            sys.stdout.flush()


def loaded_policy(
    settings: Settings, entries: Sequence[Entry], crew: AgentSet | None, way: Way
) -> LoadedPolicy:
    """Load the policy of the settings. Raises `ValueError` subclasses, each one sentence with the fix."""
    model, tokenizer = load_policy(settings.policy, settings.run.device)
    consult = settings.consult
    protocol = build_protocol(consult, settings.agents.enabled)
    codec = TagCodec(tokenizer, protocol)
    consults = {SOLO: _consult(settings, codec, protocol, {}, 0)}
    if crew is not None:
        consults[AGENTS] = _consult(settings, codec, protocol, crew.agents, consult.max_consultations)
        _refuse_no_room(entries, codec, settings)
    prompts = {
        name: Prompts(tokenizer, context, consult.consulting_prompt, consult.solo_prompt, NO_LIMIT)
        for name, context in consults.items()
    }
    return LoadedPolicy(settings, entries, crew, way, model, prompts)


def _consult(
    settings: Settings,
    codec: TagCodec,
    protocol: Protocol,
    agents: Mapping[str, Agent],
    consultations: int,
) -> ConsultContext:
    # The limit of a response is each question's own.
    limits = Limits(consultations, settings.consult.max_feedback_tokens, NO_LIMIT)
    leaks = LeakPolicy(settings.consult.leak_policy)
    return ConsultContext(protocol, codec, limits, agents, settings.agents.timeout_s, leaks)


def _refuse_no_room(entries: Sequence[Entry], codec: TagCodec, settings: Settings) -> None:
    least = codec.request_room(settings.consult.max_feedback_tokens) + 3
    for entry in entries:
        if entry.questions.max_response_tokens < least:
            raise EvaluationError(
                f"--max-response-tokens {entry.questions.name}={entry.questions.max_response_tokens} has no "
                f"room for one feedback; make it at least {least}, or lower consult.max_feedback_tokens = "
                f"{settings.consult.max_feedback_tokens}"
            )


def _named(checkpoint: str, model: PreTrainedModel) -> str:
    """Return which weights these are: a folder's fingerprint, or a hub id with its commit."""
    folder = Path(checkpoint)
    if folder.is_dir():
        return fingerprint(folder)
    commit = getattr(model.config, "_commit_hash", None) or "unknown"
    return f"{checkpoint}@{commit:.12}"
