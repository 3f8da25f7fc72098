"""The start-up self-test: before anything is spent, the parts are shown to fit together.

It takes seconds and trains nothing; a failure is one error with the reason.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import torch

from aipo.assembly.parts import AssemblyError, Parts
from aipo.consult.limits import Limits
from aipo.core.types import Verdict
from aipo.engines.base import Sampling
from aipo.engines.precision import compute_dtype
from aipo.rollout.group import GroupShape, Sampler
from aipo.tasks.base import Problem
from aipo.training.log_probs import token_log_probs

MAX_RATIO_ERROR = 1e-4
"""Of log p, on any token, where sampler and trainer compute in float32."""
MAX_MEAN_ERROR = 0.1
"""The mean over a rollout where one of them computes in bfloat16 or TF32."""
CHECKED_PROBLEMS = 3
OWN_TOKENS, FEEDBACK_TOKENS = 16, 24
"""What a rollout of the self-test may write itself, and be told: a few tokens show what many would."""
SELF_TEST = f"self-test: {CHECKED_PROBLEMS} problems, {OWN_TOKENS} tokens for each rollout"
"""What to say while it runs."""


def self_test(parts: Parts, problems: Sequence[Problem], temperature: float = 1.0) -> None:
    """Roll out both conditions, compare the sampler with the trainer; `Parts.problems` has measured prompts.

    `temperature` is that of training. Raises `ValueError`. Samples a few rollouts from a seed of its own, so
    that it changes no later draw.
    """
    asyncio.run(_sampler_agrees(parts, problems[:CHECKED_PROBLEMS], temperature))


def _bounded(sampler: Sampler) -> Sampler:
    """Return the sampler with limits under which a rollout takes seconds, whatever the recipe's are."""
    consult = sampler.consult
    consultations = min(1, consult.limits.max_consultations)
    feedback = min(FEEDBACK_TOKENS, consult.limits.max_feedback_tokens)
    told = consult.codec.request_room(feedback) if consultations else 0
    response = min(consult.limits.max_response_tokens, OWN_TOKENS + told)
    limits = Limits(consultations, feedback, response)
    return replace(sampler, consult=replace(consult, limits=limits))


async def _sampler_agrees(parts: Parts, problems: Sequence[Problem], temperature: float) -> None:
    sampler = _bounded(parts.sampler)
    trained_in = str(compute_dtype(parts.model)).removeprefix("torch.")
    tf32 = parts.model.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    exact = (trained_in, parts.policy_engine.dtype) == ("float32", "float32") and not tf32
    consulting = 1 if sampler.consult.agents else 0
    groups = await sampler.groups(
        problems,
        GroupShape(consulting=consulting, solo=1, sampling=Sampling(temperature=temperature)),
        ("self-test",),
    )
    for member in (m for g in groups for m in g.members):
        if member.grade.verdict is Verdict.UNGRADED or member.rollout is None:
            raise AssemblyError(f"self-test: a rollout could not be graded: {member.grade.reason}")
        stream = member.rollout.stream
        ids = torch.tensor([stream.ids], device=parts.model.device)
        with torch.no_grad():
            log_p, _ = token_log_probs(parts.model, ids, temperature, stream.prompt_length)
        pairs = zip(log_p[0].tolist(), stream.log_probs, stream.sources, strict=True)
        differences = [abs(a - b) for a, b, source in pairs if source.name == "POLICY"] or [0.0]
        error, tolerance = (
            (max(differences), MAX_RATIO_ERROR) if exact else (fmean(differences), MAX_MEAN_ERROR)
        )
        if error > tolerance:
            raise AssemblyError(
                f"self-test: the sampler's log-probabilities differ from the training forward's by "
                f"{error:.2g}; with a trainer in {trained_in} and a "
                f"sampler in {parts.policy_engine.dtype} {'at most' if exact else 'a mean of at most'} "
                f"{tolerance} is expected. Does the engine serve policy.model? Else try policy.attention = "
                "'eager', or report the architecture"
            )
