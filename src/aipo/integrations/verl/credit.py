"""What each row of a step is credited with: its group, its advantage on FEEDBACK tokens, its weight.

Plain facts about rows go to `core`, without verl or tensors. An UNGRADED or padding row is in no group,
weighs nothing, and changes nothing of any other row.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from aipo.core.advantages import Advantage, Member, group_advantages
from aipo.core.batch import weighted_rows
from aipo.core.rewards import overlong_penalty
from aipo.core.tokens import Segment, TokenStream
from aipo.core.types import Condition, Source, Verdict
from aipo.integrations.verl.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFacts:
    """What is known of a row of verl's batch."""

    group: str
    verdict: Verdict
    condition: Condition
    policy_tokens: int
    feedback_tokens: int
    response_tokens: int
    padding: bool = False

    @property
    def counts(self) -> bool:
        """Whether it is a graded rollout."""
        return not self.padding and self.verdict is not Verdict.UNGRADED


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCredit:
    """What a row takes into the update."""

    baseline: str
    """Name of the rows that it is compared with, which verl's estimators take as its group."""
    siblings: int
    """Rows with that name, itself included; 0 for a row that does not count."""
    penalty: float
    """Added to the reward, at most 0."""
    feedback: float
    """Advantage of its FEEDBACK tokens."""
    weight: float
    """Weight of each of its trained tokens in its mini-batch."""


def credits_of(rows: Sequence[RowFacts], minibatches: Sequence[Sequence[int]], plan: Plan) -> list[RowCredit]:
    """Return each row's credit. `minibatches` are the rows of each optimiser step, all ranks together."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        if not row.padding:
            groups[row.group].append(index)
    penalty, feedback = [0.0] * len(rows), [0.0] * len(rows)
    for members in groups.values():
        for index in members:
            length = rows[index].response_tokens
            penalty[index] = overlong_penalty(length, plan.max_response_tokens, plan.overlong_buffer_tokens)
        advantages = group_advantages(
            [
                Member(verdict=rows[i].verdict, condition=rows[i].condition, penalty=penalty[i])
                for i in members
            ],
            estimator=plan.estimator,
            split_baselines=plan.split_baselines,
            feedback=plan.feedback_advantage,
        )
        for index, advantage in zip(members, advantages, strict=True):
            feedback[index] = advantage.feedback if advantage else 0.0
    names = [_baseline(row, index, plan) for index, row in enumerate(rows)]
    sizes = Counter(names)
    siblings = [sizes[name] if row.counts else 0 for name, row in zip(names, rows, strict=True)]
    weights = _weights(rows, minibatches, plan)
    return [
        RowCredit(baseline=name, siblings=number, penalty=below, feedback=taught, weight=weight)
        for name, number, below, taught, weight in zip(
            names, siblings, penalty, feedback, weights, strict=True
        )
    ]


def minibatches_of(rows: int, rows_of_minibatch: int, ranks: int) -> list[list[int]]:
    """Return the rows of each optimiser step: verl gives each rank one run of rows and cuts it in order.

    Raises `ValueError` where the rows do not divide, as verl pads them to.

    >>> minibatches_of(8, 4, 2)
    [[0, 1, 4, 5], [2, 3, 6, 7]]
    """
    if rows % rows_of_minibatch or rows_of_minibatch % ranks:
        raise ValueError(f"{rows} rows cannot be cut into parts of {rows_of_minibatch} on {ranks} ranks")
    of_rank, of_step = rows // ranks, rows_of_minibatch // ranks
    return [
        [rank * of_rank + step * of_step + i for rank in range(ranks) for i in range(of_step)]
        for step in range(rows // rows_of_minibatch)
    ]


def _baseline(row: RowFacts, index: int, plan: Plan) -> str:
    if not row.counts:
        return f"none/{index}"
    return f"{row.group}/{row.condition.value}" if plan.split_baselines else row.group


def _weights(rows: Sequence[RowFacts], minibatches: Sequence[Sequence[int]], plan: Plan) -> list[float]:
    weights = [0.0] * len(rows)
    nothing = Advantage(0.0, 0.0)
    for minibatch in minibatches:
        counted = weighted_rows(
            [_counted(rows[i]) for i in minibatch],
            [nothing] * len(minibatch),
            plan.aggregation,
            feedback_trained=plan.objective.feedback_trained,
            horizon_tokens=plan.max_response_tokens,
        )
        for index, row in zip(minibatch, counted, strict=True):
            weights[index] = row.weight if rows[index].counts else 0.0
    return weights


def _counted(row: RowFacts) -> TokenStream:
    """Return a stream as denominators see it: so many tokens of each source."""
    policy, feedback = (row.policy_tokens, row.feedback_tokens) if row.counts else (0, 0)
    return TokenStream(
        (
            Segment(Source.PROMPT, (0,)),
            Segment(Source.POLICY, (0,) * policy, (0.0,) * policy),
            Segment(Source.FEEDBACK, (0,) * feedback),
        )
    )
