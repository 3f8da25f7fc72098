"""Every sample of an evaluation, one JSON object a line, in the order of the plan.

Owns the sample's fields and the file's format. Must not know policies, agents, graders or statistics.
Invariant: what is read back equals what was written, or reading fails with file and line; a sample is there
once, but for UNGRADED ones, which a later line may replace.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from aipo.core.types import Verdict
from aipo.evaluation.records import RecordError

SAMPLES = "samples.jsonl"
SCHEMA = 1
"""Version of a sample's fields; a change of their meaning raises it."""

Key = tuple[str, str, str, int]
"""Condition, benchmark, problem id, sample index."""


@dataclass(frozen=True, slots=True)
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

    @property
    def key(self) -> Key:
        """What the sample is the only one of."""
        return (self.condition, self.benchmark, self.problem, self.index)

    @property
    def graded(self) -> bool:
        """Whether it has a verdict."""
        return self.verdict != Verdict.UNGRADED


class SampleFile:
    """The samples of one evaluation folder. One writer at a time; the caller holds the folder's lock."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / SAMPLES

    def append(self, samples: Sequence[Sample]) -> None:
        """Append samples in one write and flush them to the disk."""
        lines = "".join(json.dumps({"schema": SCHEMA, **asdict(sample)}) + "\n" for sample in samples)
        with self.path.open("ab") as file:
            file.write(lines.encode("ascii"))
            file.flush()
            os.fsync(file.fileno())

    def mend(self) -> None:
        """Cut off what a crash left of an unfinished last line, so that it never stands before a whole one.

        Its sample counts as never made, also where the line lacks its newline only.
        """
        if not self.path.exists():
            return
        with self.path.open("r+b") as file:
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                file.truncate(whole)
                os.fsync(file.fileno())

    def read(self) -> dict[Key, Sample]:
        """Return the samples in order; a torn last line is passed over.

        Raises `RecordError` with file and line for anything else that is no sample, and for a graded sample
        that is there twice.
        """
        if not self.path.exists():
            return {}
        # Only \n ends a line. What follows the last one is torn.
        lines = self.path.read_bytes().split(b"\n")[:-1]
        found: dict[Key, Sample] = {}
        for number, line in enumerate(lines, start=1):
            try:
                sample = _from_json(json.loads(line))
            except (ValueError, TypeError, KeyError) as error:
                raise RecordError(f"{self.path}:{number}: not a sample: {error}") from error
            if sample.key in found and found[sample.key].graded:
                raise RecordError(f"{self.path}:{number}: sample {sample.key} is there twice")
            found[sample.key] = sample
        return found


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
