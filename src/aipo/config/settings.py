"""The settings of a run, each field with its unit and its reason.

An unknown key is an error; a resolved `Settings` is complete and immutable.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from aipo.agents.named import AGENTS
from aipo.config.agents import AgentSettings
from aipo.config.elicit import ElicitSettings
from aipo.config.engines import EngineSettings
from aipo.config.guards import GuardSettings
from aipo.config.policy import PolicySettings as PolicySettings
from aipo.config.problems import MayBeAuto, NameIn
from aipo.config.problems import Section as Section
from aipo.config.rollout import RolloutSettings as RolloutSettings
from aipo.config.tasks import SandboxSettings as SandboxSettings
from aipo.config.tasks import TaskSettings as TaskSettings
from aipo.core.types import LeakPolicy, SoloMode

if TYPE_CHECKING:
    EvaluationMode = str
else:
    EvaluationMode = Literal[(*map(str, SoloMode), "agents")]
"""A solo mode, or `agents`; plain strings, because they are part of seed paths."""
CHECKPOINTED_PARAMETERS = 1_000_000_000
"""From this size on activations are computed again by default. A Qwen2.5-1.5B holds 3 MB of them for each
token in bfloat16 [estimated from its shapes], 53 GB for train.microbatch_tokens = 16,384 beside 24 GB of
weights and optimiser: hardly what a GPU of 80 GB has beside logits and kernels; a 0.5B has 25 and 8 GB."""


class RunSettings(Section):
    """Where a run writes, and its one seed."""

    output: Path = Field(Path("runs/run"), description="Folder of the run: checkpoints, records, policy.")
    seed: int = Field(0, ge=0, description="Root of every seed path (run, step, problem, rollout).")
    device: Annotated[str, MayBeAuto()] = Field(
        "auto", description="`cpu`, `cuda` or `mps`. `auto`: `cuda` where torch sees a GPU, else `cpu`."
    )
    threads: int = Field(
        0,
        ge=0,
        description="CPU threads of this process. 0: all cores; `aipo compare` shares them out among its "
        "runs. Set it where last bits must not depend on the machine.",
    )
    ranks: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="What several processes share, where torchrun starts several: the work (`ddp`), or also "
        "trained weights, gradients and the optimiser's state (`fsdp`); docs/ranks.md.",
    )
    rank_timeout_s: float = Field(
        1800.0,
        gt=0,
        description="Longest wait of a rank for another, also while rank 0 evaluates; then the run ends.",
    )
    trackers: tuple[str, ...] = Field(
        (), description="Of accelerate's: `wandb`, `trackio`, `tensorboard`, `mlflow`, … None is required."
    )


class ConsultSettings(Section):
    """The protocol: its form, limits and the two prompts."""

    format: Literal["tags", "tools"] = Field(
        "tags",
        description="How the policy asks: in `tags` inside its turn, or by the tool calls that the model's "
        "own chat template defines (`tools`: Qwen, Llama 3.1, Hermes, …; docs/agents.md#tool-calls).",
    )
    max_consultations: int = Field(3, ge=0, description="Per rollout; one more is refused with a notice.")
    max_feedback_tokens: int = Field(
        256, ge=1, description="Per reply, tags excluded; longer replies are cut."
    )
    tags: dict[str, str] = Field(
        {}, description="By agent: its tag, without angle brackets, in place of the agent's own."
    )
    feedback_tag: str = Field("feedback", description="Tag name around an agent's words and notices.")
    leak_policy: LeakPolicy = Field(
        LeakPolicy.ALLOW,
        description="Feedback that states the final answer: let it pass, hide the answer in it (`mask`), or "
        "drop it. Counted in every case.",
    )
    consulting_prompt: str | None = Field(
        None, description="System prompt that offers the agents; none: the packaged text."
    )
    solo_prompt: str | None = Field(
        None, description="System prompt without agents; none: the packaged text; '': no system message."
    )
    examples: tuple[str, ...] = Field(
        (),
        description="Worked consultations in the consulting prompt, those of enabled agents: `mathematics`, "
        "`code`, `facts`, your own as `module:attribute`. They count against rollout.max_prompt_tokens.",
    )
    examples_file: Path | None = Field(
        None, description="A file with more of them, in the form of src/aipo/consult/examples."
    )
    elicit: ElicitSettings = ElicitSettings()

    @model_validator(mode="after")
    def _one_format(self) -> "ConsultSettings":
        if self.format == "tags":
            return self
        others = {
            "consult.tags": (self.tags, "a tool has its agent's name; leave it out"),
            "consult.feedback_tag": (self.feedback_tag != "feedback", "leave it out"),
            "consult.examples": (self.examples, "they show tags; leave them out"),
            "consult.examples_file": (self.examples_file, "it shows tags; leave it out"),
            "consult.elicit.share": (self.elicit.share, "a call has no tag to open; set it to 0"),
        }
        for field, (is_set, fix) in others.items():
            if is_set:
                raise ValueError(f"{field} is for consult.format = 'tags', and it is 'tools': {fix}")
        return self


class AlgorithmSettings(Section):
    """The objective (docs/method.md#objective)."""

    name: Annotated[str, NameIn("aipo.core.algorithms:ALGORITHMS")] = Field(
        "dapo", description="The base RLVR algorithm; see `core/algorithms.py`."
    )
    clip_low: float | None = Field(None, ge=0, le=1, description="None: the algorithm's own.")
    clip_high: float | None = Field(None, ge=0, description="None: the algorithm's own.")
    aggregation: Annotated[str | None, NameIn("aipo.core.batch:AGGREGATIONS")] = Field(
        None, description="How token terms become one number. None: the algorithm's own."
    )
    estimator: Annotated[str | None, NameIn("aipo.core.advantages:ESTIMATORS")] = Field(
        None, description="What a reward is compared with. None: the algorithm's own."
    )
    overlong_buffer_tokens: int = Field(
        0, ge=0, description="DAPO's soft overlong punishment grows over this many last tokens; 0: none."
    )
    split_baselines: bool = Field(
        True, description="POLICY tokens take the advantage within their own condition."
    )
    coefficient: Annotated[str, NameIn("aipo.core.coefficients:COEFFICIENTS")] = Field(
        "floored", description="C on FEEDBACK tokens; see `core/coefficients.py`."
    )
    coefficient_options: dict[str, float] = Field(
        {}, description="Parameters of a coefficient's own, by name; those left out keep their defaults."
    )
    floor: float = Field(0.1, gt=0, le=1, description="d of `floored` and `attenuated`, c_min of `stopgrad`.")
    floor_end: float | None = Field(
        None, gt=0, le=1, description="The floor at the last update, reached linearly; none: it stays."
    )
    shape: float = Field(0.1, gt=0, description="g of `shaped`.")
    truncation: float = Field(2.0, ge=1, description="Largest p/q of `agent`.")
    mismatch_truncation: Annotated[float | Literal["auto"], MayBeAuto()] = Field(
        "auto",
        description="Correct for a sampler that computes differently from the trainer (truncated importance "
        "sampling): largest weight of a POLICY token; 0: off. `auto`: 0 where rollouts are sampled in the "
        "trainer's process and end with their step, else 2. Statistics are always recorded.",
    )
    feedback_weight: float = Field(1.0, ge=0, description="lambda.")
    feedback_weight_end: float | None = Field(
        None, ge=0, description="lambda at the last update, reached linearly; none: it stays."
    )
    kl_weight: float = Field(
        0.0,
        ge=0,
        description="Of KL(policy || starting policy) on POLICY tokens, whatever their rollout's advantage. "
        "With adapters the start is the policy without them, else a frozen copy in memory. 0: none.",
    )
    kl_estimator: Annotated[str, NameIn("aipo.core.divergence:KL_ESTIMATORS")] = Field(
        "k3", description="How that is estimated; see `core/divergence.py`."
    )
    entropy_weight: float = Field(
        0.0, ge=0, description="Of an entropy bonus on POLICY tokens, from all logits; 0: none."
    )
    feedback_advantage: Annotated[str, NameIn("aipo.core.advantages:FEEDBACK_ADVANTAGES")] = Field(
        "over_solo", description="What FEEDBACK tokens are credited with; see `core/advantages.py`."
    )
    stripped_copies: bool = Field(
        True, description="Learn from consult-stripped copies of successful consulting rollouts."
    )
    copies_advantage: Annotated[str | None, NameIn("aipo.core.advantages:FEEDBACK_ADVANTAGES")] = Field(
        None,
        description="What copies are credited with: `over_banned` goes on teaching until the policy needs no "
        "request (rollout.banned_fraction). None: `feedback_advantage`.",
    )
    copies_without_requests: bool = Field(
        False,
        description="Learn copies in the policy from which request tags are taken away: they do not compete "
        "with the requests that were cut out.",
    )
    verified_copies: bool = Field(
        False,
        description="Only from copies that the agent that checks (Verify), asked once more, approves of.",
    )
    agent_token_price: float = Field(
        0.0,
        ge=0,
        description="Taken off a consulting rollout's reward for each token that agents wrote for it, where "
        "its consulting siblings' rewards differ.",
    )

    @field_validator("mismatch_truncation")
    @classmethod
    def _a_weight(cls, value: float | Literal["auto"]) -> float | Literal["auto"]:
        if value != "auto" and value < 0:
            raise ValueError(f"{value:g} is no weight; make it 2, 0 for none, or 'auto'")
        return value


class TrainSettings(Section):
    """The optimiser and the loop."""

    steps: int = Field(200, ge=1, description="Policy updates; each learns from one batch of groups.")
    prompts_per_step: int = Field(24, ge=1, description="Problems, hence groups, of a step.")
    minibatches_per_step: int = Field(4, ge=1, description="Optimiser steps per batch of groups.")
    microbatch_tokens: int = Field(
        16384, ge=1, description="Most padded tokens in a forward pass; on a CPU 1,024 are enough."
    )
    logit_chunk_tokens: int | None = Field(
        None,
        ge=0,
        description="Positions whose logits are in memory at a time; 0: a whole micro-batch's. None: whole "
        "up to 2^25 logits, else in chunks of that size.",
    )
    share_prefixes: bool = Field(
        True,
        description="Beginnings that rows share, such as a group's prompt, go through the model once in an "
        "update, where that is exact and cheaper than padding (policies above a few million parameters).",
    )
    gradient_checkpointing: Annotated[bool | Literal["auto"], MayBeAuto()] = Field(
        "auto",
        description="Compute activations again in the backward pass: less memory, more time. `auto`: for "
        "policies of at least 1e9 parameters (docs/policies.md#memory).",
    )
    compile: bool = Field(False, description="torch.compile in the update: docs/policies.md#compiled-layers.")
    optimizer: Annotated[str, NameIn("aipo.training.optimizers:OPTIMIZERS")] = Field(
        "adamw", description="`adamw8bit`: states in 8 bits, by bitsandbytes (docs/policies.md#memory)."
    )
    learning_rate: float = Field(1e-6, gt=0, description="Of the optimiser, after the warm-up.")
    learning_rate_schedule: Annotated[str, NameIn("aipo.training.schedule:RATE_SCHEDULES")] = Field(
        "constant", description="What it does after the warm-up, until the last step."
    )
    warmup_steps: int = Field(20, ge=0, description="Linear warm-up, in steps.")
    weight_decay: float = Field(0.0, ge=0, description="Of the optimiser.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    stratum_mix: dict[str, float] = Field(
        {}, description="Share of each stratum in a batch; {}: as in the data."
    )
    dynamic_sampling_rounds: int = Field(
        0,
        ge=0,
        description="DAPO's dynamic sampling: groups that teach nothing are replaced by groups of other "
        "problems in up to this many further rounds of a step; 0: off.",
    )
    reward: str = Field("verdict", description="What counts as correct; `random`: a coin, as a control.")
    source_gradients_every_steps: int = Field(
        0, ge=0, description="Steps between measurements of POLICY's and FEEDBACK's gradient norms; 0: never."
    )
    checkpoint_every_minutes: float = Field(
        10.0,
        ge=0,
        description="A checkpoint is begun after the first step that ends this long after the one before; "
        "what a crash can lose. It is written while the run goes on. One is always written at the end.",
    )
    checkpoint_every_steps: int = Field(
        0,
        ge=0,
        description="Checkpoints after every n-th step instead, however long that takes. 0: by time; on "
        "verl, which has no clock for that, every 20.",
    )
    keep_checkpoints: int = Field(2, ge=1, description="How many are kept; the oldest is removed first.")
    keep_best: bool = Field(
        True,
        description="Copy the policy to `best/` whenever an evaluation on `validation` is better than all "
        "before; one on `test` chooses nothing.",
    )
    max_ungraded_share: float = Field(
        0.05, ge=0, le=1, description="The run stops if a larger share of a step's rollouts is UNGRADED."
    )
    max_failed_consultations_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="The run stops if a larger share of a step's consultations fails (TIMEOUT, AGENT_ERROR).",
    )
    min_consultations_to_stop: int = Field(
        20, ge=1, description="A step with fewer consultations does not stop the run."
    )
    record_rollouts_every_steps: int = Field(1, ge=1, description="Record whole rollouts every n-th step.")


class EvaluateSettings(Section):
    """Solo evaluation."""

    split: Literal["validation", "test"] = Field("test", description="Choose settings on `validation` only.")
    problems: int = Field(64, ge=1, description="Per stratum; fewer if the split has fewer.")
    samples_per_problem: int = Field(64, ge=1, description="n of pass@k.")
    modes: tuple[EvaluationMode, ...] = Field(
        tuple(map(str, SoloMode)), description="Two solo modes, and `agents` to see what those are worth."
    )
    pass_at: tuple[int, ...] = Field((1, 8, 64), description="Values of k; one above n is shown as missing.")
    temperature: float = Field(1.0, gt=0, description="Of evaluation samples.")
    seed: int = Field(0, ge=0, description="Seed of the samples; the same for all methods that are compared.")
    every_steps: int | None = Field(
        None,
        ge=1,
        description="`aipo train` evaluates on validation problems, one sample each, before training, after "
        "every n-th step and at the end. None: n such that this samples about a tenth of what training does.",
    )
    curve_problems: int = Field(
        64, ge=1, description="Problems of each of those, over all strata; at least one of each."
    )
    at_steps: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None,
        description="Evaluate after exactly these steps instead (0: before training), with the split, "
        "problems and samples above; []: never during training.",
    )
    curve_samples_per_problem: int = Field(16, ge=1, description="Samples at `at_steps` but the last step.")


class Settings(Section):
    """All settings of a run."""

    other_tables: ClassVar[tuple[str, ...]] = ("warmstart",)
    """Tables of a recipe that a run does not read: those of a task that makes its first policy."""

    run: RunSettings = RunSettings()
    policy: PolicySettings = PolicySettings()
    engine: EngineSettings = EngineSettings()
    task: TaskSettings = TaskSettings()
    sandbox: SandboxSettings = SandboxSettings()
    agents: AgentSettings = AgentSettings()
    consult: ConsultSettings = ConsultSettings()
    rollout: RolloutSettings = RolloutSettings()
    algorithm: AlgorithmSettings = AlgorithmSettings()
    train: TrainSettings = TrainSettings()
    guards: GuardSettings = GuardSettings()
    evaluate: EvaluateSettings = EvaluateSettings()

    @model_validator(mode="after")
    def _tags(self) -> "Settings":
        if not any(":" in name for name in self.agents.enabled):
            known = {*AGENTS, *self.agents.enabled}
            self.agents.refuse_other_names("consult.tags", self.consult.tags, known)
        return self

    @model_validator(mode="after")
    def _stale(self) -> "Settings":
        if not self.rollout.max_staleness_steps:
            return self
        others = {
            "algorithm.mismatch_truncation = 0": (
                self.algorithm.mismatch_truncation == 0,
                "tokens of older weights need the correction; leave it out, or make it 2",
            ),
            "train.dynamic_sampling_rounds": (
                self.train.dynamic_sampling_rounds,
                "which groups a step replaces would depend on the clock; set it to 0",
            ),
            "consult.elicit.share": (
                self.consult.elicit.share,
                "it follows what the steps before have asked, which is not known yet; set it to 0",
            ),
            "a guard's policy 'roll_back'": (
                self.guards.may_roll_back,
                "rollouts under way are of weights that it takes back; choose 'skip' or 'stop'",
            ),
        }
        for field, (is_set, fix) in others.items():
            if is_set:
                n = self.rollout.max_staleness_steps
                raise ValueError(f"rollout.max_staleness_steps = {n} does not go with {field}: {fix}")
        return self

    @model_validator(mode="after")
    def _roll_back(self) -> "Settings":
        if self.guards.may_roll_back and not self.train.checkpoint_every_steps:
            raise ValueError(
                "a guard with the policy 'roll_back' goes back to a checkpoint, which must not depend on a "
                "clock: set train.checkpoint_every_steps, to 10 for instance"
            )
        return self
