"""What the warm start imitates: worked solutions, with and without consultations.

An animal of the hard stratum never occurs. With agents, a fictional animal is never counted without help,
and what an agent says about it is never a target (its legs differ from problem to problem, so there is
nothing to learn). Alone, it has 0, 2 or 4 legs: the only numbers that the policy has met, hence what it
guesses for an animal that it does not know.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from aipo.core.types import KNOWLEDGE, REASONING, VERIFY, Condition
from aipo.tasks.base import Wording
from aipo.tasks.cpu.curriculum import Trace
from aipo.tasks.cpu.leg_counting.notation import (
    FICTIONAL,
    KNOWN,
    LEGS,
    MAX_INSTANCES,
    OK,
    WRONG,
    Item,
    final_line,
    lines,
    problem_text,
    vocabulary,
)
from aipo.tasks.cpu.leg_counting.task import SHORT, Variant, held_out_questions

MAX_LEGS = 14
_KNOWN = sorted(KNOWN)
_FAMILIAR_LEGS = sorted({LEGS[animal] for animal in KNOWN})


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSettings:
    """How often a trace shows what."""

    fictional_share: float = 0.5
    """Share of problems with fictional animals."""
    consult_alone: float = 0.8
    """Share of lines on fictional animals, in solo traces, that consult and go unanswered: the policy replies
    to itself."""
    consult_known: float = 0.3
    """Share of lines on known animals that consult all the same: shows how, and keeps the habit from being
    all or nothing."""
    verify: float = 0.1
    """Share of finished lines that are put to the Verify Agent."""
    mistake: float = 0.3
    """Share of those that hold a mistake, which Verify corrects. The mistake is never a target."""
    refused: float = 0.05
    """Share of consultations on known animals that are refused."""
    max_consultations: int = 3


class LegCountingCurriculum:
    """`aipo.tasks.cpu.curriculum.Curriculum` of leg counting."""

    def __init__(self, max_consultations: int, wording: Wording, variant: Variant = SHORT) -> None:
        self._wording, self._variant = wording, variant
        self._settings = TraceSettings(max_consultations=max_consultations)

    def vocabulary(self) -> list[str]:
        """Return every word of problems, solutions and feedback, in a fixed order."""
        return vocabulary(self._variant.items[1])

    def trace(self, rng: Random) -> Trace:
        """Return a random trace; no held-out question is ever drawn."""
        return trace(rng, self._settings, self._wording, self._variant)


def trace(rng: Random, settings: TraceSettings, wording: Wording, variant: Variant = SHORT) -> Trace:
    """Return a random trace; no held-out question is ever drawn."""
    items = _items(rng, settings, variant)
    condition = rng.choice(list(Condition))
    invented = range(MAX_LEGS + 1) if condition is Condition.CONSULTING else _FAMILIAR_LEGS
    legs: dict[str, int] = dict(LEGS)
    legs.update({item.animal: rng.choice(invented) for item in items if item.animal not in LEGS})
    writer = _Writer(rng, settings, wording, items, legs, condition)
    return Trace(problem_text(items), condition, tuple(writer.write()))


def _items(rng: Random, settings: TraceSettings, variant: Variant) -> list[Item]:
    while True:
        number = rng.randint(*variant.items)
        animals = rng.sample(_KNOWN, number)
        if rng.random() < settings.fictional_share:
            invented = min(rng.randint(1, number), settings.max_consultations)
            for place, name in zip(
                rng.sample(range(number), invented), rng.sample(FICTIONAL, invented), strict=True
            ):
                animals[place] = name
        items = [Item(rng.randint(1, MAX_INSTANCES), animal) for animal in animals]
        if frozenset(items) not in held_out_questions(variant):
            return items


class _Writer:
    """Writes one trace line by line, within the consultations that are left."""

    def __init__(
        self,
        rng: Random,
        settings: TraceSettings,
        wording: Wording,
        items: Sequence[Item],
        legs: Mapping[str, int],
        condition: Condition,
    ) -> None:
        self._rng, self._settings, self._wording = rng, settings, wording
        self._items, self._legs = items, legs
        self._alone = condition is Condition.SOLO
        self._left = settings.max_consultations
        self._must_ask = 0 if self._alone else sum(item.animal not in LEGS for item in items)
        self._pieces: list[tuple[str, bool]] = []

    def write(self) -> list[tuple[str, bool]]:
        """Return the pieces of the whole turn."""
        for index, words in enumerate(lines(self._items, self._legs)):
            known = self._items[index].animal in LEGS
            if not self._consults(known):
                self._say(words)
            elif self._chance(0.5):
                self._say(words[:1])
                self._ask(KNOWLEDGE, words[:1], words[1:2], known)
                self._say(words[2:])
            else:
                self._ask(REASONING, [], words, known)
            if self._left > self._must_ask and self._chance(self._settings.verify):
                self._verify(words)
        self._say(final_line(self._items, self._legs))
        return self._pieces

    def _consults(self, known: bool) -> bool:
        if known:
            return self._left > self._must_ask and self._chance(self._settings.consult_known)
        if self._alone:
            return self._left > 0 and self._chance(self._settings.consult_alone)
        self._must_ask -= 1
        return True

    def _ask(self, agent: str, request: Sequence[str], reply: list[str], known: bool) -> None:
        """Consult; the reply stands where the policy would have said the same, and so it does if refused."""
        opened, closed = self._wording.request(agent)
        self._say([opened, *request, closed])
        if known and not self._alone and self._chance(self._settings.refused):
            self._pieces.append((self._wording.refusal, False))
            self._say(reply)
            return
        self._left -= 1
        self._reply(reply, target=known or self._alone)

    def _reply(self, words: Sequence[str], target: bool) -> None:
        self._say([f"<{self._wording.feedback}>"])
        self._pieces.append((" ".join(words), target))
        self._say([f"</{self._wording.feedback}>"])

    def _verify(self, words: list[str]) -> None:
        self._left -= 1
        reply = [OK]
        if self._chance(self._settings.mistake):
            said, is_target = self._pieces[-1]
            if is_target and said == " ".join(words):
                self._pieces[-1] = (" ".join(self._mistaken(words)), False)
                reply = [WRONG, *words]
        self._say(self._wording.request(VERIFY))
        self._reply(reply, target=True)

    def _mistaken(self, words: list[str]) -> list[str]:
        place = self._rng.randrange(1, len(words) - 1)
        other = self._rng.choice([d for d in "0123456789" if d != words[place]])
        return [*words[:place], other, *words[place + 1 :]]

    def _say(self, words: Sequence[str]) -> None:
        self._pieces.append((" ".join(words), True))

    def _chance(self, share: float) -> bool:
        return self._rng.random() < share
