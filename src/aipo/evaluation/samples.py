"""Every sample of an evaluation, one JSON object a line, in the order of the plan; their counts by problem.

What is read back equals what was written, or reading fails with file and line. A sample is there once, except
that a later line may replace an UNGRADED one.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from aipo.core.types import StopReason, Verdict
from aipo.evaluation.records import SCHEMA as RECORD_SCHEMA
from aipo.evaluation.records import (
    EvaluationRecord,
    ProblemResult,
    RecordError,
    append_lines,
    read_lines,
    without_none,
)

SAMPLES = "samples.jsonl"
SCHEMA = 1
"""Version of a sample's fields; a change of their meaning raises it."""
ALL = "all"
"""The stratum that every question of a benchmark is in."""
TOO_LONG = "prompt_too_long"
"""Reason of a problem that the policy's context cannot take: wrong for this policy, never left out."""

Key = tuple[str, str, str, str, str, int]
"""Policy, questions, condition, benchmark, problem id, sample index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One response to one problem, and its verdict. Nothing in it was measured with a clock."""

    condition: str
    """`solo`, or `agents`."""
    benchmark: str
    problem: str
    """The problem's id."""
    stratum: str
    index: int
    """Which of the problem's n samples, from 0."""
    seed_path: tuple[str | int, ...]
    """`core.seeds.seed_of` makes the sampler's seed of it; nothing else is random."""
    questions: str
    """Digest of the benchmark's questions, golds and tests, as in the manifest."""
    policy: str
    """Fingerprint of the policy, as in the manifest."""
    prompt_tokens: int
    unknown_tokens: int
    """Of the prompt: tokens that stand for words which the tokenizer does not know."""
    response: str
    """The assistant's turn, the end token excluded; with agents, their words included."""
    response_tokens: int
    """All tokens of the turn; with agents, theirs included."""
    agent_tokens: int
    """Of these, the ones that agents wrote, tags excluded."""
    consultations: int
    stop: str
    """A `StopReason`; '' where nothing was sampled: the engine failed, or the prompt does not fit."""
    verdict: str
    reason: str
    reward: float | None = None
    """Of one's own; None where what a policy learns from is the verdict."""

    @property
    def key(self) -> Key:
        """What the sample is the only one of."""
        return self.policy, self.questions, self.condition, self.benchmark, self.problem, self.index

    @property
    def graded(self) -> bool:
        """Whether it has a verdict."""
        return self.verdict != Verdict.UNGRADED

    @property
    def truncated(self) -> bool:
        """Whether the response was cut at the limit of tokens."""
        return self.stop == StopReason.LENGTH


class SampleFile:
    """The samples of one evaluation folder. One writer at a time; the caller holds the folder's lock."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / SAMPLES

    def append(self, samples: Sequence[Sample]) -> None:
        """Append samples in one write and flush them to the disk."""
        rows = ({"schema": SCHEMA, **asdict(sample)} for sample in samples)
        append_lines(self.path, "".join(json.dumps(without_none(row, "reward")) + "\n" for row in rows))

    def read(self) -> dict[Key, Sample]:
        """Return the samples in order; see `read_lines`.

        Raises `RecordError` with file and line for what is no sample, and for a graded sample that is there
        twice.
        """
        found: dict[Key, Sample] = {}
        for number, sample in read_lines(self.path, _from_json, "sample") if self.path.exists() else ():
            if sample.key in found and found[sample.key].graded:
                raise RecordError(f"{self.path}:{number}: sample {sample.key} is there twice")
            found[sample.key] = sample
        return found


def results(samples: Iterable[Sample], stratum: str = "") -> tuple[ProblemResult, ...]:
    """Return the counts of each problem, in order of appearance; in `stratum`, or else in each one's own."""
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.problem, []).append(sample)
    return tuple(
        ProblemResult(
            problem=problem,
            stratum=stratum or own[0].stratum,
            samples=len(own),
            correct=sum(s.verdict == Verdict.CORRECT for s in own),
            ungraded=sum(not s.graded for s in own),
            truncated=sum(s.truncated for s in own),
            reward=_mean_reward(own),
        )
        for problem, own in found.items()
    )


def _mean_reward(samples: Iterable[Sample]) -> float | None:
    rewards = [s.reward for s in samples if s.reward is not None]
    return fmean(rewards) if rewards else None


def as_record(
    samples: Iterable[Sample], label: str, mode: str = "solo", stratum: str = ALL
) -> EvaluationRecord:
    """Return samples of one benchmark as the record that statistics and figures read, ordered by problem."""
    counted = tuple(sorted(results(samples, stratum), key=lambda result: result.problem))
    return EvaluationRecord(
        schema=RECORD_SCHEMA,
        run=label,
        method=label,
        seed=0,
        step=0,
        split="test",
        mode=mode,
        results=counted,
    )


def refuse_foreign(path: Path, samples: Iterable[Sample], policy: str, questions: dict[str, str]) -> None:
    """Refuse samples of another policy or of other questions than the manifest's. Raises `RecordError`."""
    for sample in samples:
        if sample.policy != policy or questions.get(sample.benchmark) != sample.questions:
            raise RecordError(
                f"{path}: sample {sample.key} belongs to policy {sample.policy} and questions "
                f"{sample.questions}, not to this folder's manifest; files of two evaluations were mixed"
            )


def _from_json(row: object) -> Sample:
    if not isinstance(row, dict) or row.pop("schema", None) != SCHEMA:
        raise ValueError(f"its schema is not {SCHEMA}")
    Verdict(row["verdict"])
    return Sample(**{**row, "seed_path": tuple(row["seed_path"])})
