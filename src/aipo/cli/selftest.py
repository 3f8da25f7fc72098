"""The start-up self-test: before anything is spent, the parts are shown to fit together.

Owns what is checked at start. Must not train. Invariant: it takes seconds, and a failure is one error with
the reason.
"""

import asyncio
from collections.abc import Sequence

from aipo.cli.assembly import AssemblyError, Parts
from aipo.core.types import Condition, Verdict
from aipo.rollout.group import GroupShape
from aipo.tasks.base import Problem
from aipo.train.model import token_log_probs

MAX_RATIO_ERROR = 1e-4
CHECKED_PROBLEMS = 3
LONGEST_CHECKED = 50
"""Prompts of so many problems, the longest in characters, must fit rollout.max_prompt_tokens."""


def self_test(parts: Parts, problems: Sequence[Problem]) -> None:
    """Check that the longest prompts fit, roll out both conditions, compare the sampler with the trainer.

    Raises `ValueError`. Samples a few rollouts from a seed of its own, so that it changes no later draw.
    """
    for problem in sorted(problems, key=lambda problem: -len(problem.text))[:LONGEST_CHECKED]:
        parts.sampler.prompts.ids(problem, Condition.CONSULTING)
    asyncio.run(_sampler_agrees(parts, problems[:CHECKED_PROBLEMS]))


async def _sampler_agrees(parts: Parts, problems: Sequence[Problem]) -> None:
    import torch

    consulting = 1 if parts.sampler.desk.agents else 0
    groups = await parts.sampler.groups(problems, GroupShape(consulting, 1), ("self-test",))
    for member in (m for g in groups for m in g.members):
        if member.grade.verdict is Verdict.UNGRADED or member.rollout is None:
            raise AssemblyError(f"self-test: a rollout could not be graded: {member.grade.reason}")
        stream = member.rollout.stream
        ids = torch.tensor([stream.ids], device=parts.model.device)
        with torch.no_grad():
            log_p, _ = token_log_probs(parts.model, ids, 1.0)
        pairs = zip(log_p[0].tolist(), stream.log_probs, stream.sources, strict=True)
        error = max((abs(a - b) for a, b, source in pairs if source.name == "POLICY"), default=0.0)
        tolerance = MAX_RATIO_ERROR if parts.model.dtype == torch.float32 else 0.1
        if error > tolerance:
            raise AssemblyError(
                f"self-test: the sampler's log-probabilities differ from the training forward's by "
                f"{error:.2g}; in {parts.model.dtype} at most {tolerance} is expected. Try "
                "policy.attention = 'eager' or report the architecture"
            )
