"""The table `[task.judge]`: who judges rollouts where `task.reward` names `judge`, and by which rubric."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from aipo.config.agents import AgentOverrides


class JudgeSettings(AgentOverrides):
    """Who judges, by which rubric, where task.reward names `judge`; what is not set is `[agents]`'s."""

    backend: str | None = Field(
        "remote", description="`remote` or `local`, as of an agent; or your own as `module:attribute`."
    )
    temperature: Annotated[float, Field(ge=0)] | None = Field(
        0.0, description="Of its replies; above 0 the seed depends on the problem and the response alone."
    )
    rubric: str = Field(
        "",
        description="What a good response is, in words, and what each part of the scale stands for. Neither "
        "this nor a file: whether the answer is right and the reasoning sound.",
    )
    rubric_file: Path | None = Field(None, description="A text file in place of `rubric`.")
    scale: tuple[float, float] = Field(
        (0.0, 10.0),
        description="Worst and best score; the reward is where a score lies between them, from 0 to 1.",
    )
    show_answer: bool = Field(
        True, description="Whether it is shown the row's gold answer, where there is one."
    )
    timeout_s: float = Field(
        60.0, gt=0, description="Deadline of one judgement, retries included; passing it is UNGRADED."
    )
    cache: bool = Field(
        True, description="Keep judgements where agents.cache keeps replies; false: judge each rollout anew."
    )

    @model_validator(mode="after")
    def _one_rubric_and_a_scale(self) -> "JudgeSettings":
        if self.rubric and self.rubric_file:
            raise ValueError(
                f"rubric and rubric_file = {str(self.rubric_file)!r} are both set; leave one of them out"
            )
        if self.scale[0] >= self.scale[1]:
            raise ValueError(
                f"scale = {list(self.scale)}: the worst score comes first and is below the best; write "
                "scale = [0, 10]"
            )
        return self
