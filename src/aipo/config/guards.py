"""Settings of the guards: which numbers a run does not learn from, and what happens then.

Every guard has a policy, and none of them lets a run go on for ever without learning.
"""

from typing import Literal

from pydantic import Field

from aipo.config.problems import Section

Policy = Literal["skip", "roll_back", "stop"]
TrendPolicy = Literal["warn", "stop"]


class GuardSettings(Section):
    """What is done about numbers that would poison a run, and about waits that never end (docs/recovery.md).

    `skip`: leave the bad numbers out, count them, go on. `roll_back`: weights and optimiser of the newest
    periodic checkpoint, and on with other problems. `stop`: exit code 3 and a valid checkpoint.
    """

    non_finite: Policy = Field(
        "skip",
        description="A log-probability, advantage, loss or gradient that is not a finite number. `skip` "
        "leaves out the rollout or the mini-batch.",
    )
    divergence: Policy = Field("skip", description="Beyond max_ratio or max_mismatch_nats, a mini-batch.")
    max_ratio: float = Field(
        4.0,
        gt=1,
        description="Largest mean of p/p_old over a mini-batch's POLICY tokens; 1 is healthy.",
    )
    max_mismatch_nats: float = Field(
        1.0,
        gt=0,
        description="Largest mean distance between the trainer's and the sampler's log-probabilities before "
        "a step's first update.",
    )
    entropy: Policy = Field(
        "stop", description="Mean entropy below min_entropy_nats for entropy_steps steps."
    )
    min_entropy_nats: float = Field(1e-4, ge=0, description="Per POLICY token; 0: the guard is off.")
    entropy_steps: int = Field(10, ge=1, description="In a row.")
    zero_variance: Policy = Field(
        "stop",
        description="No group taught anything for zero_variance_steps steps. `skip`: only count.",
    )
    zero_variance_steps: int = Field(50, ge=1, description="In a row.")
    ungraded: Policy = Field("stop", description="Beyond train.max_ungraded_share, a step.")
    failed_consultations: Policy = Field(
        "stop", description="Beyond train.max_failed_consultations_share, a step."
    )
    trend_steps: int = Field(
        10, ge=1, description="The three trends below are over means of this number of last steps."
    )
    consulting: TrendPolicy = Field(
        "warn", description="Fewer consulting rollouts consult than min_consulting_share."
    )
    min_consulting_share: float = Field(
        0.1, ge=0, le=1, description="Of the consulting rollouts; 0: the guard is off."
    )
    falling_entropy: TrendPolicy = Field("warn", description="The entropy sinks below min_entropy_share.")
    min_entropy_share: float = Field(
        0.2, ge=0, le=1, description="Of the first step's entropy; 0: the guard is off."
    )
    forgetting: TrendPolicy = Field(
        "warn", description="Solo accuracy in training, of a stratum or of all, sinks below min_solo_share."
    )
    min_solo_share: float = Field(
        0.75, ge=0, le=1, description="Of the best that it was, where that was .3 or more; 0: off."
    )
    max_agent_cost: float = Field(
        0.0,
        ge=0,
        description="Most that consultations and judgements may cost in a run, by the prices of `agents` and "
        "`task.judge`; then it stops. 0: no limit.",
    )
    max_skipped_steps: int = Field(
        3,
        ge=0,
        description="Steps in a row that may skip something; the next one that does stops the run.",
    )
    max_failed_checkpoints: int = Field(
        2,
        ge=0,
        description="Checkpoints in a row that could not be written; one more stops the run, and so does one "
        "that its end waits for.",
    )
    max_roll_backs: int = Field(3, ge=0, description="Of a whole run; the next one stops it instead.")
    stall_report_s: float = Field(
        60.0,
        gt=0,
        description="After this time without progress, say what is waited for, for whom, since when.",
    )
    stall_s: float = Field(1800.0, gt=0, description="After this time without progress the run stops.")
    stall_exit_s: float = Field(
        30.0,
        gt=0,
        description="A run that cannot even stop within this time after that is ended from outside.",
    )

    @property
    def may_roll_back(self) -> bool:
        """Whether one of the policies is `roll_back`."""
        policies = (self.non_finite, self.divergence, self.entropy, self.zero_variance)
        return "roll_back" in (*policies, self.ungraded, self.failed_consultations)
