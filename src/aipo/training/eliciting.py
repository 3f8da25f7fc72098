"""How often consultations are elicited: less, the more the policy has asked by itself in the latest steps.

The share of a step depends on the settings and on what a checkpoint keeps of the steps before it, so a
resumed run elicits as an uninterrupted one would have.
"""

from collections.abc import Sequence
from typing import Any

from aipo.config.settings import Settings
from aipo.core.types import Condition, ConsultOutcome
from aipo.rollout.elicit import PLACES, Elicit
from aipo.rollout.episode import Rollout
from aipo.rollout.group import Group


def elicit_of(settings: Settings, own_share: float = 0.0) -> Elicit | None:
    """Return how consultations are elicited where a share of `own_share` asks by itself; None: not at all.

    Raises `ValueError` for an agent that is not enabled or an option that `where` does not have.
    """
    elicit, enabled = settings.consult.elicit, settings.agents.names
    if strange := [name for name in elicit.agents if name not in enabled]:
        raise ValueError(
            f"consult.elicit.agents = {strange[0]!r} is not in agents.enabled = {list(enabled)}; enable it "
            "or leave it out"
        )
    place = PLACES[elicit.where]
    if strange := sorted(set(elicit.options) - set(place.options)):
        raise ValueError(
            f"consult.elicit.options: {elicit.where!r} has no {strange[0]!r}; it has "
            f"{', '.join(place.options) or 'none'}"
        )
    share = elicit.share * max(0.0, 1.0 - own_share / elicit.until)
    if share <= 0:
        return None
    return Elicit(
        share=share,
        place=place,
        options={**place.options, **elicit.options},
        agents=elicit.agents or enabled,
        system_closes=elicit.closes == "system",
        max_request_tokens=elicit.max_request_tokens,
        credited=elicit.credit,
    )


class Eliciting:
    """The share from step to step."""

    def __init__(self, settings: Settings) -> None:
        """Raises `ValueError` as `elicit_of` does."""
        elicit_of(settings)
        self._settings = settings
        self._own: list[float] = []
        """Of the latest steps, the newest last: the share of rollouts that asked by themselves."""

    def now(self) -> Elicit | None:
        """Return how the coming step elicits."""
        return elicit_of(self._settings, sum(self._own) / len(self._own) if self._own else 0.0)

    def learn(self, groups: Sequence[Group]) -> dict[str, float]:
        """Take in what the policy did in a step; return its metrics, none where nothing is elicited."""
        consulting = [
            m.rollout
            for g in groups
            for m in g.members
            if m.condition is Condition.CONSULTING and m.rollout is not None
        ]
        if not consulting:
            return {}
        now, own = self.now(), own_share(consulting)
        self._own = [*self._own, own][-self._settings.consult.elicit.window_steps :]
        if not self._settings.consult.elicit.share:
            return {}
        all_ = [c for rollout in consulting for c in rollout.consultations]
        elicited, number = sum(c.elicited for c in all_), len(consulting)
        return {
            "elicit_share": now.share if now else 0.0,
            "elicited_share": sum(bool(rollout.opened) for rollout in consulting) / number,
            "own_consulting_share": own,
            "elicited_consultations_per_rollout": elicited / number,
            "own_consultations_per_rollout": (len(all_) - elicited) / number,
        }

    def state(self) -> list[float]:
        """Return what a checkpoint keeps."""
        return self._own

    def restore(self, state: Sequence[Any]) -> None:
        """Go on where `state` was taken."""
        self._own = [float(share) for share in state]


def own_share(rollouts: Sequence[Rollout]) -> float:
    """Return the share of rollouts with a well-formed request that the policy opened itself.

    Measured where the system was not to open one; where it was to in all of them, in all of them, which is
    less: the system may have come first. 0 for no rollouts.
    """
    counted = [rollout for rollout in rollouts if rollout.opened is None] or rollouts
    asked = sum(
        any(not c.elicited and c.outcome is not ConsultOutcome.MALFORMED for c in rollout.consultations)
        for rollout in counted
    )
    return asked / len(counted) if counted else 0.0
