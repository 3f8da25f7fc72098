"""What rollouts and updates cost against the length of a response, the size of a group and consultations.

CPU-seconds of one thread, medians over rounds in which the sizes
take turns. Each cost is fitted with a line; a figure is the cost of the largest size beside the line there:
above 1 where cost grows faster. A group's size and consultations should be linear, and are asked to be.
Length cannot be: attention reads all that stands before a token, and its share grows with it. Consultations
are counted two ways: beside about as many words of the policy's own, each makes the response longer, and the
cost has to be linear; within one length of the response, of which they are a part, what is left is what
pausing costs beyond the tokens that are fed, and should be little. Agents answer at once.

The figure is docs/figures/costs.svg. Not measured: waiting for agents (overlap.py), GPUs.
"""

import asyncio
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure as Picture
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from aipo.consult.codec import TagCodec
from aipo.consult.limits import Limits
from aipo.core.advantages import Advantage
from aipo.core.batch import weighted_rows
from aipo.core.objective import ObjectiveSettings
from aipo.core.types import Condition
from aipo.engines.transformers import TransformersEngine
from aipo.rollout.episode import ConsultContext, Rollout, RolloutSpec, rollout
from consulting import PROMPT_TOKENS, PROTOCOL, WORD, Slow
from measure import END, ROOT, VOCABULARY, Clock, Figure, Options, clocked, options, report, tokenizer, words
from update import model_named, updater_of

REPEATS = 3
FIGURE = ROOT / "docs" / "figures" / "costs.svg"
MOST_CONSULTATIONS, FEEDBACK_TOKENS = 1000, 8
LEAST_R2 = 0.98


@dataclass(frozen=True, slots=True)
class Load:
    """How much work: two prompts with so many rollouts each, responses of exactly so many tokens."""

    group: int = 8
    new_tokens: int = 96
    ask_every: float = math.inf
    """Words between two requests, in the mean."""


OWN_WORDS, TOKENS_OF_A_CONSULTATION = 128, 12
"""In the mean: three of the request, nine of the feedback and its tags."""


def _longer(ask_every: float) -> Load:
    """Return a load with room for the consultations beside the policy's own words."""
    room = round(TOKENS_OF_A_CONSULTATION * OWN_WORDS / ask_every)
    return Load(new_tokens=OWN_WORDS + room, ask_every=ask_every)


LOADS = {
    "length": [Load(new_tokens=n) for n in (32, 64, 128, 256, 512)],
    "group": [Load(group=n) for n in (4, 8, 16, 32, 64)],
    "consultations": [_longer(n) for n in (math.inf, 64, 32, 16, 8)],
    "pauses": [Load(new_tokens=192, ask_every=n) for n in (math.inf, 64, 32, 16, 8)],
}
QUICK = {
    "length": [Load(2, n) for n in (16, 64, 256)],
    "group": [Load(n, 32) for n in (1, 8, 32)],
    "consultations": [_longer(n) for n in (math.inf, 32, 8)],
    "pauses": [Load(4, 192, n) for n in (math.inf, 16, 4)],
}
UNITS = {
    "length": "tokens in a response",
    "group": "rollouts in a group",
    "consultations": "consultations in a rollout",
    "pauses": "consultations within one length",
}
LINEAR = {"group", "consultations"}
"""What is asked to be linear."""
MOST_FOR_PAUSES = 1.25
"""Rollouts that pause most beside rollouts that never do, at one length."""


class Asking:
    """Shifts the sampler's logits: no end, and after any word a request at the rate that is set."""

    def __init__(self, model: PreTrainedModel, tokens: PreTrainedTokenizerFast) -> None:
        self._model = model
        opening, closing = map(tokens.convert_tokens_to_ids, ("<knowledge>", "</knowledge>"))
        self._opening = opening
        self._table = torch.zeros(VOCABULARY, VOCABULARY)
        self._table[:, [*tokens.all_special_ids, tokens.convert_tokens_to_ids(END), WORD]] = -40.0
        for last, following in ((opening, WORD), (WORD, closing)):
            self._table[last] = -40.0
            self._table[last, following] = 40.0

    @contextmanager
    def every(self, asked: float) -> Iterator[None]:
        """Have a request begin after so many words in the mean."""
        likely = math.log(VOCABULARY / asked) if math.isfinite(asked) else -40.0
        column = torch.full((VOCABULARY,), likely)
        column[[self._opening, WORD]] = -40.0
        self._table[:, self._opening] = column

        def shift(module: Any, arguments: Any, keywords: dict[str, Any], output: Any) -> Any:
            output.logits[:, -1] += self._table[keywords["input_ids"][:, -1]]
            return output

        handle = self._model.register_forward_hook(shift, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


class Bench:
    """One policy, and what is made with it."""

    def __init__(self, name: str) -> None:
        self.tokens, self.model = tokenizer(), model_named(name)
        self._asking = Asking(self.model, self.tokens)
        self._updater = updater_of(self.model, guarded=False)  # the sampler's logits are shifted on purpose

    def rollouts(self, load: Load) -> tuple[list[Rollout], Clock]:
        """Make the rollouts of a load."""
        limits = Limits(MOST_CONSULTATIONS, FEEDBACK_TOKENS, load.new_tokens)
        consult = ConsultContext(
            protocol=PROTOCOL,
            codec=TagCodec(self.tokens, PROTOCOL),
            limits=limits,
            agents={Slow(0.0).name: Slow(0.0)},
            agent_timeout_s=10.0,
        )
        number, rng = 2 * load.group, Random(2)
        engine = TransformersEngine(
            self.model, self.tokens, slots=number, capacity=PROMPT_TOKENS + load.new_tokens
        )
        prompts = [words(rng, PROMPT_TOKENS) for _ in range(2)]
        condition = Condition.CONSULTING if math.isfinite(load.ask_every) else Condition.SOLO
        specs = [
            RolloutSpec(id=f"r{i}", problem="", prompt_ids=prompts[i % 2], condition=condition, seed=1000 + i)
            for i in range(number)
        ]
        made: list[Rollout] = []

        async def every() -> None:
            made[:] = await asyncio.gather(*(rollout(engine, spec, consult) for spec in specs))

        with self._asking.every(load.ask_every):
            taken = clocked(lambda: asyncio.run(every()))
        short = [r for r in made if len(r.stream) < PROMPT_TOKENS + load.new_tokens - 2 * FEEDBACK_TOKENS]
        assert not short, "a response that ends early would make the comparison worthless"
        return made, taken

    def update(self, made: Sequence[Rollout]) -> Clock:
        """Learn from rollouts."""
        advantages = [Advantage(1.0 if i % 2 else -1.0, 1.0) for i in range(len(made))]
        streams = [r.stream for r in made]
        rows = weighted_rows(streams, advantages, "token_mean", feedback_trained=True)
        return clocked(lambda: self._updater.apply([rows], ObjectiveSettings()))


def measured(work: Bench, loads: Sequence[Load], kind: str, repeats: int) -> dict[str, Any]:
    """Measure one kind of size; return sizes and medians in CPU-seconds."""
    taken: dict[str, list[list[float]]] = {"rollout": [[] for _ in loads], "update": [[] for _ in loads]}
    sizes = [0.0] * len(loads)
    for _ in range(repeats):
        for i, load in enumerate(loads):
            made, clock = work.rollouts(load)
            taken["rollout"][i].append(clock.cpu_s)
            taken["update"][i].append(work.update(made).cpu_s)
            asked = statistics.mean(len(r.consultations) for r in made)
            sizes[i] = {"length": load.new_tokens, "group": load.group}.get(kind, asked)
    medians = {part: [statistics.median(of_size) for of_size in found] for part, found in taken.items()}
    return {"sizes": sizes, **medians}


def line(sizes: Sequence[float], costs: Sequence[float]) -> tuple[float, float, float]:
    """Return slope, intercept and R2 of the line through the costs, by least squares."""
    slope, intercept = np.polyfit(sizes, costs, 1)
    apart = np.asarray(costs) - (slope * np.asarray(sizes) + intercept)
    spread = np.asarray(costs) - np.mean(costs)
    return float(slope), float(intercept), 1.0 - float((apart**2).sum() / (spread**2).sum())


def figures_of(found: dict[str, dict[str, Any]], loads: dict[str, list[Load]], quick: bool) -> list[Figure]:
    """Fit the lines, note them in `found`, and describe them."""
    figures = [pauses_of(found["pauses"], loads["pauses"][0], quick)]
    for kind, values in found.items():
        if kind == "pauses":
            continue
        load, sizes = loads[kind][0], values["sizes"]
        sequences = "2 groups" if kind == "group" else f"{2 * load.group} sequences"
        sequences += {
            "length": "",
            "group": f" of {load.new_tokens} tokens",
            "consultations": f" of about {OWN_WORDS} own words",
        }[kind]
        for part in ("rollout", "update"):
            slope, intercept, r2 = line(sizes, values[part])
            values[f"{part}_line"] = {"slope": slope, "intercept": intercept, "r2": r2}
            last, fitted = values[part][-1], slope * sizes[-1] + intercept
            what = f"{part}s of {sequences}, {sizes[-1]:.3g} {UNITS[kind]}"
            what += f"; a line of {1000 * slope:.2f} CPU-ms for each, R2 {r2:.3f}"
            wanted = kind in LINEAR and not quick
            asked = (f"a line: R2 at least {LEAST_R2:g}", r2 >= LEAST_R2) if wanted else ("", None)
            figures.append(Figure(what, last, "CPU-s", "the line there", fitted, last / fitted, *asked))
    return figures


def pauses_of(values: dict[str, Any], load: Load, quick: bool) -> Figure:
    """Compare rollouts that pause most with those that never do, at one length."""
    last, none = values["rollout"][-1], values["rollout"][0]
    what = f"rollouts of {load.new_tokens} tokens, {values['sizes'][-1]:.3g} consultations within them"
    asked = ("", None) if quick else (f"at most {MOST_FOR_PAUSES:g}", last / none <= MOST_FOR_PAUSES)
    return Figure(what, last, "CPU-s", "without any", none, last / none, *asked)


def draw(found: dict[str, dict[str, Any]]) -> None:
    """Write the figure: a panel for each kind of size, points as measured and their lines."""
    picture = Picture(figsize=(13, 3.4), layout="constrained")
    for panel, (kind, values) in zip(picture.subplots(1, len(found)), found.items(), strict=True):
        for part, colour, mark in (("rollout", "#0072B2", "o"), ("update", "#D55E00", "s")):
            panel.plot(values["sizes"], values[part], mark, color=colour, label=f"{part}s")
            if fitted := values.get(f"{part}_line"):
                ends = np.array([0.0, max(values["sizes"])])
                panel.plot(
                    ends, fitted["slope"] * ends + fitted["intercept"], "--", color=colour, linewidth=1
                )
        panel.set(xlabel=UNITS[kind], ylim=(0, None), xlim=(0, None))
        panel.legend(frameon=False)
    picture.axes[0].set_ylabel("CPU-seconds")
    with mpl.rc_context({"svg.hashsalt": "aipo"}):  # equal input, equal bytes
        picture.savefig(FIGURE, metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure."""
    given: Options = options("costs", arguments)
    work, loads = Bench("tiny" if given.quick else "3.2 M"), QUICK if given.quick else LOADS
    first = next(iter(loads.values()))[0]
    work.update(work.rollouts(first)[0])  # whatever is built on first use
    repeats = given.repeats or (1 if given.quick else REPEATS)
    found = {kind: measured(work, of_kind, kind, repeats) for kind, of_kind in loads.items()}
    figures = figures_of(found, loads, given.quick)
    if given.output is not None and not given.quick:
        draw(found)
    details = {"parameters": sum(p.numel() for p in work.model.parameters()), **found}
    details["figure"] = str(FIGURE.relative_to(ROOT))
    report("costs", figures, details, given)


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"{time.perf_counter() - started:.0f} s in all")
