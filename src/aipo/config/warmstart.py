"""The table `[warmstart]` of a pretrained model, which `aipo warmstart` alone reads."""

from typing import Annotated

from pydantic import Field, model_validator

from aipo.config.agents import AgentOverrides
from aipo.config.problems import NameIn
from aipo.config.settings import Section, Settings


class ExpertSettings(AgentOverrides):
    """Who writes the traces of `warmstart.source = "expert"`; what is not set is `[agents]`'s."""

    backend: str | None = Field(
        "remote", description="`remote` or `local`, as of an agent; or your own as `module:attribute`."
    )
    timeout_s: float = Field(300.0, gt=0, description="Deadline of one solution, retries included.")


class TraceStartSettings(Section):
    """Supervised start of a pretrained model on traces that consult and traces that do not."""

    model: str = Field("", description="Folder or hub id of the pretrained model that it begins with.")
    source: Annotated[str, NameIn("aipo.assembly.trace_sources:TRACES")] = Field(
        "solution",
        description="What the traces are: the problems' solutions; what an `expert` writes; rollouts of the "
        "policy with `elicited` consultations. Of the last two, correct ones only. Or `module:attribute`.",
    )
    expert: ExpertSettings = ExpertSettings()
    tries: int = Field(
        8,
        ge=1,
        description="expert, elicited: most attempts for each trace that is wanted, failed ones included.",
    )
    examples: int = Field(360, ge=1, description="Traces to learn from.")
    solo_fraction: float = Field(
        0.5, ge=0, le=1, description="Share of them under the solo prompt; the others consult."
    )
    solo_strata: tuple[str, ...] = Field((), description="Strata of the solo traces' problems; (): all.")
    consulting_strata: tuple[str, ...] = Field(
        (), description="Strata of the consulting traces' problems; (): all."
    )
    held_out: int = Field(
        32, ge=0, description="Traces, of other problems, that the held-out loss is measured on."
    )
    learn_feedback: bool = Field(
        False, description="Whether the agents' words in a trace are learnt too, or are context only."
    )
    epochs: int = Field(1, ge=1, description="How often each trace is learnt from.")
    sequences_per_step: int = Field(8, ge=1, description="Traces of an update.")
    learning_rate: float = Field(
        1e-4, gt=0, description="Of AdamW, warmed up and decayed; 1e-4 for all weights or adapters."
    )
    check_problems: int = Field(
        8, ge=0, description="Validation problems of each stratum that are sampled before and after; 0: none."
    )
    check_samples: int = Field(2, ge=1, description="Samples of each, consulting and solo.")
    checkpoint_every_s: float = Field(300.0, gt=0, description="Seconds that a crash can lose.")


class TraceSettings(Settings):
    """The settings of a run, and of the start on traces that it begins from."""

    warmstart: TraceStartSettings = TraceStartSettings()

    @model_validator(mode="after")
    def _tags_only(self) -> "TraceSettings":
        if self.consult.format != "tags":
            raise ValueError(
                f"warmstart.source = {self.warmstart.source!r} writes requests in tags, and consult.format = "
                f"{self.consult.format!r}; set consult.format = 'tags', or begin with a model that calls"
            )
        return self
