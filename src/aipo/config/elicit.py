"""The settings of elicited consultations: requests whose opening tag the system writes."""

from typing import Annotated, Literal

from pydantic import Field

from aipo.config.problems import NameIn, Section


class ElicitSettings(Section):
    """Elicited consultations: for a policy that does not ask (docs/method.md#elicited-consultations)."""

    share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the consulting rollouts of training in which the system may open a request's "
        "tag, behind a sentence; the policy writes the request. 0: none.",
    )
    until: float = Field(
        0.5,
        gt=0,
        le=1,
        description="The share falls in proportion as the policy asks by itself, and is 0 where so large a "
        "share of the rollouts that it is left alone in do so.",
    )
    window_steps: int = Field(8, ge=1, description="Latest steps over which that is measured.")
    where: Annotated[str, NameIn("aipo.rollout.elicit:PLACES")] = Field(
        "random",
        description="Behind which sentence. `random`: each boundary with the same chance, that before the "
        "first word too. `entropy`: behind the first sentence of which the policy was unsure. Your own: "
        "`module:attribute`.",
    )
    options: dict[str, float] = Field(
        {}, description="Parameters of `where`, by name: `chance` of random (.5), `nats` of entropy (1)."
    )
    agents: tuple[str, ...] = Field(
        (), description="Agents whose tags are opened, in turn within a group; (): all that are enabled."
    )
    closes: Literal["system", "policy"] = Field(
        "system",
        description="Who ends the request. `system`: the policy, or else the system behind the first "
        "sentence of it. `policy`: only the policy; without an end tag the request is MALFORMED.",
    )
    max_request_tokens: int = Field(
        48, ge=1, description="Of a request that the system opened; with that many it ends."
    )
    credit: bool = Field(
        False,
        description="Whether tags that the system wrote are learnt, as FEEDBACK; else they are SCAFFOLD, and "
        "the policy learns what it is told, but not to ask.",
    )
