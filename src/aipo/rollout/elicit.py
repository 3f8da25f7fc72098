"""Elicited consultations: where in a rollout the system opens a request's tag, and whose.

Whether a tag is opened depends on what is already written, and kept, and on a draw from the rollout's own
seed; never on a token that is then thrown away. So what the policy wrote has the probability that its sampler
says, and no more has to be corrected than with a reply (docs/method.md#elicited-consultations).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from aipo.core.registry import Registry
from aipo.core.seeds import seed_of
from aipo.core.types import Source

BOUNDARY_STOPS = (".", "!", "?", "\u2026", "\n", "\u3002", "\uff01", "\uff1f")
"""Generation pauses with a token that holds one of these, and goes on where no sentence ends."""
_SENTENCE_END = re.compile(r"(?:[^0-9\s.][.!?\u2026]+[\"')\]\u201d]*|[\u3002\uff01\uff1f]|\n)\s*\Z")
"""What stands behind a digit and a full stop is not yet known: `3.` may become `3.5`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """A place behind a sentence, and what may be asked of it."""

    problem: str
    response: str
    """What the policy has written so far."""
    agent: str
    """Whose tag would be opened."""
    number: int
    """How many boundaries were passed; 0: nothing is written yet."""
    log_probs: tuple[float, ...]
    """Of the tokens since the last boundary, by the sampler."""
    uniform: float
    """A number in [0, 1) that belongs to this rollout and this boundary."""
    options: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A rule of where to open a tag, such as a model of when help pays."""

    opens: Callable[[Boundary], bool]
    """Asked at each boundary until it says yes; it should return at once and the same for the same."""
    options: Mapping[str, float] = field(default_factory=dict)
    """Its parameters with their defaults."""


PLACES = Registry("consult.elicit.where", Place, "aipo.places")


def surprise(log_probs: Sequence[float]) -> float:
    """Return the mean of -log p in nats: what the policy's entropy was, on average, at these tokens.

    An estimate from one sample; its expectation is the mean entropy. 0 for no tokens.
    """
    return -sum(log_probs) / len(log_probs) if log_probs else 0.0


PLACES.register("random", Place(opens=lambda at: at.uniform < at.options["chance"], options={"chance": 0.5}))
PLACES.register(
    "entropy", Place(opens=lambda at: surprise(at.log_probs) > at.options["nats"], options={"nats": 1.0})
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Elicit:
    """How consultations are elicited in a step: `consult.elicit` of the settings, its names looked up."""

    share: float
    """Of the consulting rollouts, now."""
    place: Place
    options: Mapping[str, float]
    agents: tuple[str, ...]
    system_closes: bool
    max_request_tokens: int
    credited: bool

    @property
    def source(self) -> Source:
        """Of the tags that the system writes."""
        return Source.FEEDBACK if self.credited else Source.SCAFFOLD

    def chosen(self, seed: int, turn: int) -> "Opening | None":
        """Return what is to be opened in the rollout of this seed; None: it is left alone.

        `turn` counts through the agents.
        """
        if not self.agents or _uniform(seed, "elicited") >= self.share:
            return None
        return Opening(self, self.agents[turn % len(self.agents)])


@dataclass(frozen=True, slots=True)
class Opening:
    """That a tag is to be opened in one rollout, and whose."""

    how: Elicit
    agent: str


class Watch:
    """Looks for the place in one rollout. Ask it once for each pause of the policy."""

    def __init__(self, opening: Opening, problem: str, seed: int) -> None:
        self._opening, self._problem, self._seed = opening, problem, seed
        self._number = self._tokens = 0
        self._written = ""

    def opens(self, response: str, log_probs: Sequence[float]) -> bool:
        """Say whether the tag is opened behind `response`; `log_probs` are those of all its tokens."""
        if self._number and not ends_sentence(response[len(self._written) :]):
            return False
        how = self._opening.how
        boundary = Boundary(
            problem=self._problem,
            response=response,
            agent=self._opening.agent,
            number=self._number,
            log_probs=tuple(log_probs[self._tokens :]),
            uniform=_uniform(self._seed, "boundary", self._number),
            options=how.options,
        )
        self._number, self._tokens, self._written = self._number + 1, len(log_probs), response
        return how.place.opens(boundary)


def ends_sentence(text: str) -> bool:
    """Say whether a sentence, or a line with words in it, ends where `text` ends.

    >>> [ends_sentence(text) for text in ("It is 3.", "Is it odd?", "so\\n", "\\n", 'He said "no."')]
    [False, True, True, False, True]

    Simplifications: `Dr.` ends one, and a number before a full stop ends one only where a new line follows.
    """
    return bool(text.strip()) and _SENTENCE_END.search(text) is not None


def _uniform(seed: int, *path: str | int) -> float:
    return seed_of(seed, *path) / 2**63
