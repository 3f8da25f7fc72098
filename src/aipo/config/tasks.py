"""Settings of the problems: which, how files are read, how answers are matched and rewarded, where programs
run."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from aipo.config.judge import JudgeSettings
from aipo.config.problems import NameIn, Section


class TaskSettings(Section):
    """Which problems, and how answers are matched."""

    name: str = Field(
        "",
        description="`jsonl`: problems of your own. A benchmark (docs/benchmarks.md): its files, or the hub "
        "when none is given. A task from outside the package: `module:attribute` (CONTRIBUTING.md).",
    )
    train_file: Path | None = Field(
        None, description="Problems to train on: JSON lines, a JSON list, Parquet or CSV."
    )
    validation_file: Path | None = Field(
        None, description="Held-out problems to choose settings on; none: 5 % of the training problems."
    )
    test_file: Path | None = Field(None, description="Held-out problems to report on.")
    problem_field: str = Field(
        "problem",
        description="jsonl: the column with the problem's text, or with messages that end with the user's; "
        "`a.b`: a field inside a column.",
    )
    answer_field: str = Field(
        "answer", description="jsonl: the column with the gold answer, as in `reward_model.ground_truth`."
    )
    golds: Literal["one", "all", "any"] = Field(
        "one",
        description="jsonl: what several golds in a list mean: `one`, an error; `all`, an answer lists them; "
        "`any`, each alone is right.",
    )
    answer_after: str = Field(
        "", description="jsonl: the gold is what stands after the last of these marks (GSM8K: '####')."
    )
    solution_field: str = Field(
        "solution",
        description="jsonl: the column with an expert's solution, where a row has one (for LUFFY, SFT).",
    )
    id_field: str = Field(
        "id",
        description="jsonl: the column with a row's id. Where it is absent, empty or repeated, the row's "
        "number stands for it; '': always.",
    )
    stratum_field: str = Field(
        "stratum",
        description="jsonl: the column with a named part of the data, such as `easy`, where a row has one; "
        "results are also reported for each.",
    )
    tools_field: str = Field(
        "",
        description="jsonl: the column with functions that the chat template offers the policy; nothing "
        "answers a call of one.",
    )
    on_bad_row: Literal["refuse", "drop"] = Field(
        "refuse",
        description="A row that cannot be read or graded (jsonl), or whose prompt is too long, ends the run "
        "before it begins, or is left out and counted.",
    )
    match: Literal["exact", "math"] = Field("math", description="jsonl: normalised text, or math-verify.")
    options: dict[str, str | bool | int | float] = Field(
        {}, description="Of a task that has some of its own, by name; those left out keep their defaults."
    )
    grade_timeout_s: float = Field(
        2.0,
        gt=0,
        description="CPU time of one symbolic comparison; an answer that takes longer is INCORRECT.",
    )
    grade_workers: int = Field(1, ge=1, description="Killable grader processes.")

    reward: Annotated[dict[str, float], NameIn("aipo.rollout.reward:TASK_REWARDS")] = Field(
        {},
        description="What the update learns from, in the verdict's place: a function of your own as "
        "`module:function` (docs/grading.md#rewards-of-your-own), a model's `judge` (`[task.judge]`), or "
        'several with their weights, as in `{ "verdict" = 1.0, "my_rewards:brevity" = 0.2 }`. None: the '
        "verdict.",
    )
    reward_threshold: Annotated[float, Field(allow_inf_nan=False)] | None = Field(
        None,
        description="A rollout is CORRECT from this reward on; none: the task's own grading says. Accuracy, "
        "pass@k and copies are computed from verdicts.",
    )
    reward_timeout_s: float = Field(
        30.0, gt=0, description="Deadline of one call of a reward function; passing it is UNGRADED."
    )
    judge: JudgeSettings = JudgeSettings()

    @field_validator("reward", mode="before")
    @classmethod
    def _weighted(cls, value: Any) -> Any:
        """Take a name, or a list of names, for names of weight 1."""
        names = [value] if isinstance(value, str) and value else value or {}
        return names if isinstance(names, dict) else dict.fromkeys(names, 1.0)

    @model_validator(mode="after")
    def _files(self) -> "TaskSettings":
        if self.name == "jsonl" and not (self.train_file or self.test_file):
            raise ValueError("task.name = 'jsonl' needs task.train_file or task.test_file")
        if self.reward_threshold is not None and not self.reward:
            raise ValueError(
                f"task.reward_threshold = {self.reward_threshold:g} makes verdicts of task.reward: set it too"
            )
        return self


class SandboxSettings(Section):
    """Where programs run that a policy wrote, and what one run may use (docs/grading.md)."""

    backend: Literal["auto", "bubblewrap", "landlock", "sandboxfusion"] = Field(
        "auto", description="`auto`: SandboxFusion when a URL is set, else bubblewrap, else Landlock."
    )
    url: str = Field("", description="A SandboxFusion server, such as http://127.0.0.1:8080.")
    interpreter: str = Field("", description="The Python inside; '': this one, or /usr/bin/python3.")
    library_paths: tuple[str, ...] = Field(
        (), description="Folders with packages that programs may import; none: the standard library alone."
    )
    cpu_s: float = Field(6.0, gt=0, description="CPU time of one run; passing it is INCORRECT.")
    wall_s: float = Field(20.0, gt=0, description="What a program may sleep, in all its runs together.")
    memory_mb: int = Field(1024, ge=1, description="Memory of one run.")
