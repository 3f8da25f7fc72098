"""What a task is: problems with checkable answers, a verdict, and what else its entry says of it.

A grader's failure is UNGRADED with a reason, never INCORRECT.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from aipo.config.settings import SandboxSettings, Settings, TaskSettings
from aipo.core.types import Condition, ConsultOutcome
from aipo.grading import Grade

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from aipo.tasks.benchmarks.benchmark import Benchmark

__all__ = ["Ask", "Grade", "Oracle", "Problem", "Split", "Task", "TaskError", "TaskSpec"]

SAMPLES = 4
"""n of Avg@n, unless a task says otherwise."""
MAX_RESPONSE_TOKENS = 16_384
"""Of a response in an evaluation [ours]: what a reasoning policy needs; its context may allow less."""


class Split(StrEnum):
    """Disjoint parts of a task: by question text, not by seed."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class TaskError(ValueError):
    """The task's data cannot be used; the message names file, line, field and the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One problem. `gold` never leaves tasks and grading."""

    id: str
    text: str
    gold: str
    stratum: str = "all"
    """A named part of the data that results are reported for, such as `easy` or `hard`."""
    solution: str | None = None
    """An expert's whole turn, for groups that hold experts (LUFFY, SFT); it leaves tasks for these alone."""
    turns: tuple[tuple[str, str], ...] = ()
    """The prompt's messages as (role, text), the last one the user's, where it is more than `text` alone."""
    tools: str = ""
    """Functions that the chat template offers the policy with this problem: a JSON list. Nothing answers a
    call of one."""
    alternatives: tuple[str, ...] = ()
    """Golds that are as right as `gold`; like it, they never leave tasks and grading."""
    place: str = field(default="", compare=False)
    """Where it stands, for messages: file and line."""
    row: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The columns of the file that it was read from, for rewards of one's own; {}: it was read from none."""


class Task(Protocol):
    """Problems and their grading."""

    name: str

    def problems(self, split: Split) -> Sequence[Problem]:
        """Return the problems of a split, in a fixed order."""
        ...

    async def grade(self, problem: Problem, response: str) -> Grade:
        """Grade what the policy wrote. Never raises for what a response contains."""
        ...

    def without_answer(self, problem: Problem, text: str) -> str | None:
        """Return an agent's words with the gold answer hidden, or None where they do not state it."""
        ...


@dataclass(frozen=True, slots=True)
class Ask:
    """A consultation inside an expert's turn."""

    agent: str
    request: str


class Oracle(Protocol):
    """A programmatic expert for a task: what some agents say."""

    def feedback(self, agent: str, problem: str, rollout: str, request: str) -> str:
        """Return what `agent` says; an empty string when it has nothing to say. Raises `KeyError` for an
        agent that it does not know."""
        ...


@dataclass(frozen=True, slots=True)
class Wording:
    """What a run's protocol writes around words, for oracles and traces: tags without angle brackets."""

    requests: Mapping[str, str]
    """The tag of requests, by agent."""
    feedback: str
    notices: Mapping[str, str]
    """What stands in the place of feedback, by the outcome of the consultation."""

    def request(self, agent: str) -> tuple[str, str]:
        """Return the tags around a request."""
        return f"<{self.requests[agent]}>", f"</{self.requests[agent]}>"

    @property
    def refusal(self) -> str:
        """What the policy reads when no consultation is left."""
        return f"<{self.feedback}> {self.notices[ConsultOutcome.REFUSED_LIMIT]} </{self.feedback}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRequest:
    """What a task is given to make its first policy from."""

    settings: Settings
    wording: Wording
    control_strings: Sequence[str]
    """Every tag of the protocol."""
    words: Sequence[str]
    """What notices and prompts are made of."""
    prompts: "Callable[[PreTrainedTokenizerBase], Callable[[str, Condition], Sequence[int]]]"
    """From a tokenizer to: the ids of a problem's prompt."""
    note: Callable[[str], None]
    progress: Callable[[int, int, float, float], None]
    """Takes step, steps, loss and elapsed seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How a task makes the policy that its runs begin with (`aipo warmstart`)."""

    settings: type[Settings]
    """The settings of a run with the tables that are its own."""
    make: "Callable[[StartRequest], tuple[PreTrainedModel, PreTrainedTokenizerBase]]"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """The entry of a task: how it is made, and what else is known of it."""

    name: str
    make: Callable[[TaskSettings, SandboxSettings], Task]
    """Makes the task from the table `task`. Raises `TaskError` with the fix."""
    title: str = ""
    """What tables call it; '': its name."""
    kind: str = "task"
    source: str = ""
    """Where its problems come from when no file is given."""
    takes_files: bool = False
    """Whether `task.train_file` and its like mean something to it."""
    benchmark: "Benchmark | None" = None
    """Its description, where it is a benchmark."""
    notes: tuple[str, ...] = ()
    """What a reader of its numbers must know."""
    samples: int = SAMPLES
    max_response_tokens: int = MAX_RESPONSE_TOKENS
    oracle: Callable[[Wording], Oracle] | None = None
    """Makes the scripted expert that stands behind `agents.backend = 'oracle'`."""
    agents: tuple[str, ...] = ()
    """Names of the agents that the oracle has words of; their tags are words of the task's vocabulary."""
    options: Mapping[str, str | int | float] = field(default_factory=dict)
    """What `task.options` may say to it, with defaults; `make` finds them in the settings, complete."""
    open_options: bool = False
    """Whether there may be more of them, which the task itself checks."""
    consulted: "Callable[[Problem], Sequence[str | Ask]] | None" = None
    """An expert's turn on a problem with consultations in it, for a warm start on traces. None: a
    consultation is put into the problem's solution."""
    asking: "Callable[[Problem, str], Sequence[str | Ask]] | None" = None
    """What stands in a turn on a problem up to a consultation of the agent that is named: what checks ask
    that agent. () where the task has no question for it; None: `consulted` says."""
    start: Start | None = None
    """None: runs begin with a model from elsewhere."""
