"""No wasted prefill: tokens put through the model over distinct tokens, with consultations on.

Distinct are a group's prompt, once, and every token behind it; the last
token of a rollout need not be computed, so less than 1 is possible. Counted, not timed: the figures are the
same on any machine. The second row has half as many slots as rollouts: groups are then admitted in parts.
"""

import asyncio
import time
from collections.abc import Sequence

from aipo.core.types import Source
from consulting import PROMPT_TOKENS, Slow, bench
from measure import Figure, options, report, tokenizer

MOST = 1.05


def main(arguments: Sequence[str] | None = None) -> None:
    """Count."""
    given = options("prefill", arguments)
    rollouts, groups = (8, 2) if given.quick else (64, 8)
    figures: list[Figure] = []
    details: dict[str, object] = {"rollouts": rollouts, "groups": groups, "prompt_tokens": PROMPT_TOKENS}
    for slots in (rollouts, rollouts // 2):
        work = bench(tokenizer(), rollouts=rollouts, groups=groups, quick=given.quick, slots=slots)
        made = asyncio.run(work.run(Slow(speed=0.1)))
        responses = sum(len(r.stream) - r.stream.prompt_length for r in made)
        distinct = groups * PROMPT_TOKENS + responses
        forwarded = work.engine.forwarded_tokens
        ratio = forwarded / distinct
        what = f"tokens forwarded, {rollouts} rollouts on {slots} slots"
        asked = f"at most {MOST:g} of the distinct ones"
        figures.append(Figure(what, forwarded, "tokens", "distinct", distinct, ratio, asked, ratio <= MOST))
        details[f"slots {slots}"] = {
            "consultations": sum(len(r.consultations) for r in made),
            "feedback_tokens": sum(r.stream.count(Source.FEEDBACK) for r in made),
        }
    report("prefill", figures, details, given)


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"{time.perf_counter() - started:.0f} s in all")
