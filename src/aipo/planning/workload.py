"""What a step asks for: how many rollouts, how long they are, how often they consult, and who answers.

A trajectory depends on the seed and its own number only, never on the number of others or the order in which
they run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp, log
from random import Random


@dataclass(frozen=True, slots=True)
class Spread:
    """A log-normal quantity, cut at `most`; `sigma` is the deviation of its logarithm, 0: always the mean."""

    mean: float
    sigma: float
    most: float

    @classmethod
    def around(cls, median: float, sigma: float, most: float) -> "Spread":
        """Return the spread with this median.

        >>> round(Spread.around(2.0, 0.7, 60).mean, 3)
        2.555
        """
        return cls(median * exp(sigma**2 / 2), sigma, most)

    def draw(self, rng: Random) -> float:
        """Return one value; `mean` is the mean before the cut."""
        if self.mean <= 0:
            return 0.0
        normal = rng.gauss(0.0, 1.0)
        return min(self.most, exp(log(self.mean) - self.sigma**2 / 2 + self.sigma * normal))


@dataclass(frozen=True, slots=True)
class Consultation:
    """One request: how long the agent thinks before it writes, what it writes, and what is inserted."""

    agent: str
    latency_s: float
    feedback_tokens: int


@dataclass(frozen=True, slots=True)
class Turn:
    """Tokens that the policy samples in one go, its request included; then a consultation, but at the end."""

    policy_tokens: int
    consultation: Consultation | None = None


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One rollout as the engine will see it."""

    group: int
    prompt_tokens: int
    turns: tuple[Turn, ...]

    @property
    def policy_tokens(self) -> int:
        """Tokens to decode."""
        return sum(turn.policy_tokens for turn in self.turns)

    @property
    def feedback_tokens(self) -> int:
        """Tokens to insert."""
        return sum(turn.consultation.feedback_tokens for turn in self.turns if turn.consultation)

    @property
    def length(self) -> int:
        """All tokens, the prompt's too."""
        return self.prompt_tokens + self.policy_tokens + self.feedback_tokens


def _agents() -> dict[str, float]:
    return {"verify": 0.5, "knowledge": 0.5, "reasoning": 0.5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A step's rollouts: sizes from docs/method.md#defaults-of-a-real-run, assumed rates and lengths."""

    prompts_per_step: int = 256
    rollouts_per_prompt: int = 8
    solo_fraction: float = 0.5
    prompt_tokens: Spread = Spread(300, 0.5, 4096)
    response_tokens: Spread = Spread(3000, 0.7, 16384)
    """What the policy samples besides requests."""
    consultations: Mapping[str, float] = field(default_factory=_agents)
    """By agent, per consulting rollout."""
    max_consultations: int = 3
    request_tokens: float = 60
    feedback_tokens: Spread = Spread(200, 0.5, 1024)
    latency_s: Spread = field(default_factory=lambda: Spread.around(2.0, 0.7, 60))
    """Until an agent writes its first token: reading, network, whatever is not `AgentService.tokens_s`."""
    grade_s: float = 0.05
    grade_workers: int = 16

    def __post_init__(self) -> None:
        if self.prompts_per_step < 1 or self.rollouts_per_prompt < 1:
            raise ValueError(
                f"--prompts {self.prompts_per_step}, --rollouts {self.rollouts_per_prompt}: give at least 1"
            )
        if any(rate < 0 for rate in self.consultations.values()) or self.rate > self.max_consultations:
            raise ValueError(
                f"--consultations adds up to {self.rate:g} per rollout; 0 to {self.max_consultations} are "
                "possible (--max-consultations)"
            )

    @property
    def rollouts(self) -> int:
        """Of the step."""
        return self.prompts_per_step * self.rollouts_per_prompt

    @property
    def rate(self) -> float:
        """Consultations per consulting rollout."""
        return sum(self.consultations.values())

    @property
    def longest(self) -> int:
        """Tokens of the longest rollout that the limits allow."""
        return int(self.prompt_tokens.most + self.response_tokens.most)


def draw_trajectories(workload: Workload, seed: int = 0) -> list[Trajectory]:
    """Return a step's rollouts, group by group, the solo ones of a group last."""
    per_prompt = workload.rollouts_per_prompt
    consulting = per_prompt - round(per_prompt * workload.solo_fraction)
    made = []
    for group in range(workload.prompts_per_step):
        prompt = max(1, round(workload.prompt_tokens.draw(Random(f"{seed}/{group}"))))
        for member in range(per_prompt):
            rng = Random(f"{seed}/{group}/{member}")
            turns = _turns(workload, rng, consults=member < consulting)
            made.append(Trajectory(group, prompt, turns))
    return made


def _turns(workload: Workload, rng: Random, *, consults: bool) -> tuple[Turn, ...]:
    """Draw one rollout: the lengths, the number of consultations (binomial, so that its mean is the rate in
    spite of the limit), and where in the response they stand."""
    own = max(1, round(workload.response_tokens.draw(rng)))
    asked = []
    if consults and workload.rate:
        share = workload.rate / workload.max_consultations
        number = sum(rng.random() < share for _ in range(workload.max_consultations))
        names = rng.choices(list(workload.consultations), list(workload.consultations.values()), k=number)
        for name in names:
            feedback = round(workload.feedback_tokens.draw(rng))
            asked.append(Consultation(name, workload.latency_s.draw(rng), feedback))
    places = sorted(rng.randint(0, own) for _ in asked)
    stretches = [b - a for a, b in zip([0, *places], [*places, own], strict=True)]
    request = round(workload.request_tokens)
    room = int(workload.response_tokens.most)
    turns = []
    for stretch, consultation in zip(stretches, [*asked, None], strict=True):
        wanted = stretch + (request if consultation else 0)
        needed = wanted + (consultation.feedback_tokens if consultation else 0)
        if consultation is None or needed >= room:  # the limit ends the rollout, as it does in `rollout/`
            turns.append(Turn(min(wanted, room)))
            break
        turns.append(Turn(wanted, consultation))
        room -= needed
    return tuple(turns)
