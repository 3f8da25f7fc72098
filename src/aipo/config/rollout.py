"""Settings of rollouts: how many, how long, how they are sampled, and whether they may cross steps.

Lengths are in tokens of the policy.
"""

from pydantic import Field

from aipo.config.problems import Section


class RolloutSettings(Section):
    """Groups, lengths and sampling."""

    rollouts_per_prompt: int = Field(8, ge=0, description="Size of a group, experts not counted.")
    solo_fraction: float = Field(0.5, ge=0, le=1, description="Share of each group that may not consult.")
    solo_fraction_end: float | None = Field(
        None, ge=0, le=1, description="That share at the last update, reached linearly; none: it stays."
    )
    banned_fraction: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the solo rollouts that cannot sample request tags, as in the solo mode "
        "`banned`; the others may write requests that go unanswered.",
    )
    experts_per_prompt: int = Field(
        0,
        ge=0,
        description="Expert trajectories added to each group (LUFFY: 1 in 8; SFT: 1 and no rollouts).",
    )
    max_prompt_tokens: int = Field(4096, ge=1, description="A longer prompt is an error, never cut.")
    max_response_tokens: int = Field(16384, ge=1, description="Policy, feedback and notices together.")
    temperature: float = Field(1.0, gt=0, description="Of training rollouts; the update uses it too.")
    slots: int = Field(256, ge=1, description="Rollouts that decode at the same time.")
    cache_gb: float | None = Field(
        None,
        gt=0,
        description="Most memory of the in-process engine's keys and values, in GB; with less than `slots` "
        "of the longest rollouts take, fewer are in flight and the others wait. None: what the device has "
        "free beside policy and optimiser.",
    )
    max_staleness_steps: int = Field(
        0,
        ge=0,
        description="Rollouts may cross steps: updates go on while some wait for agents; a token may have "
        "been sampled by weights so many updates older than those that learn from it "
        "(docs/engines.md#rollouts-that-cross-steps). 0: each step waits for all of its rollouts.",
    )
