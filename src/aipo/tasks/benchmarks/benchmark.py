"""What a benchmark is: a frozen description of a data set, and the one row that everything reads.

A description says everything that a number depends on but the policy and its sampling: source, split,
revision, rows, prompt, protocol, samples.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from aipo.tasks.base import MAX_RESPONSE_TOKENS, SAMPLES, Split


class Kind(StrEnum):
    """The scoring protocol of a row."""

    MATH = "math"
    """The last box, by text and then by math-verify."""
    INTEGER = "integer"
    """The last box, as an integer: no algebra."""
    CHOICE = "choice"
    """The letter in the last box."""
    CODE = "code"
    """A program, run in a sandbox; expected values stay outside."""
    REASONING_GYM = "reasoning_gym"
    """The generator's own scorer, binarised."""


class Use(StrEnum):
    """What a benchmark may be used for."""

    EVALUATION = "evaluation"
    """Never trained on."""
    TRAINING = "training"
    """May be trained on; a test split of its own is still only evaluated on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of any benchmark. `gold` and `material` never leave tasks and grading."""

    id: str
    problem: str
    gold: str
    """Short and readable: an answer, a letter, a reference program, or what stands for hidden tests."""
    kind: Kind
    material: Any = field(default=None, repr=False)
    """What grading needs beyond the gold: a program's tests, a reasoning-gym entry."""
    secrets: tuple[str, ...] = ()
    """Texts that state the answer, to be hidden in an agent's words; empty where the answer is a program."""
    stratum: str = "all"
    has_reference: bool = True
    """Whether the gold is an answer, or a program, that can be put to the grader."""


Convert = Callable[[str, Mapping[str, Any]], Row]
"""(id for a row without one, the raw row) -> Row. Raises `ValueError` with field, value and fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One split of a benchmark and where it is."""

    hub_split: str
    """Split on the hub, or the file for a repository that `datasets` cannot read."""
    stem: str
    """Name, without suffix, that a local copy has in a data folder."""
    rows: tuple[int, ...] = ()
    """Row counts that a whole file may have; () where no count is confirmed."""
    select: Callable[[Mapping[str, Any]], bool] | None = None
    """Which raw rows of a file belong to the split, for files that hold several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One data set: where it comes from, how it is asked and how it is scored."""

    name: str
    title: str
    kind: Kind
    use: Use
    hub: str
    """Hub id; '' for what is generated."""
    configuration: str
    parts: Mapping[Split, Part]
    licence: str
    columns: tuple[str, ...]
    """Columns that every row must have."""
    convert: Convert
    prompt: str
    """Instruction after the problem; '' where the problem asks for everything itself."""
    samples: int = SAMPLES
    """n of Avg@n: the mean over problems of the mean over n samples."""
    max_response_tokens: int = MAX_RESPONSE_TOKENS
    """Of an evaluation."""
    in_paper: bool = False
    """Whether it is one of the eight that the paper reports."""
    revision: str = "main"
    notes: tuple[str, ...] = ()
    """Traps: what a reader of a number must know."""
    repeats: bool = False
    """Whether a file repeats problems; later copies are then dropped, not refused."""
    hub_file: bool = False
    """Whether the hub holds a script, so that the file itself is fetched."""
    check: Callable[[tuple[Row, ...]], None] | None = None
    """A check of all rows at once. Raises `ValueError`."""

    @property
    def evaluation_only(self) -> bool:
        """Whether no split of it may be trained on."""
        return self.use is Use.EVALUATION

    def ask(self, row: Row) -> str:
        """Return what the policy is asked: the problem and the benchmark's instruction."""
        return f"{row.problem}\n\n{self.prompt}" if self.prompt else row.problem
