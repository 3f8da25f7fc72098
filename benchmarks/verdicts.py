"""Verdicts on real golds, and what they cost: `python benchmarks/verdicts.py [--data ../shared/data]`.

Prints one table for each question, as Markdown:
golds     every gold of math500, aime24 and aime25 against itself, by its benchmark's own protocol;
pairs     2,000 random pairs of different golds, all through the mathematical grader;
speed     verdicts a second of one grader process on answers like those to GSM8K, and of the fast path;
hostile   a batch with one answer that never ends: it costs its deadline and a process start, nothing else.
Nothing is downloaded. The machine's load is printed, since every time depends on it.
"""

import argparse
import asyncio
import os
import platform
import random
import resource
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from aipo.core.types import Verdict
from aipo.grading.pool import MathPool, grade_math
from aipo.tasks.base import Split
from aipo.tasks.benchmarks.benchmark import Row
from aipo.tasks.benchmarks.catalogue import BENCHMARKS
from aipo.tasks.benchmarks.load import load, local_file
from aipo.tasks.benchmarks.task import Graders, GradingLimits, gold_response
from aipo.tasks.benchmarks.validate import same_answer

NAMES = ("math500", "aime24", "aime25")
PAIRS, SEED = 2_000, 0
DEADLINE_S = 2.0
HOSTILE = r"\boxed{\binom{10^9}{5 \cdot 10^8}}"
FORMS = (
    (r"\${0}.00", True),
    (r"{0} \text{{ dollars}}", True),
    (r"\frac{{{1}}}{{2}}", True),
    (r"{2}+1", True),
    (r"\frac{{{0}}}{{7}}", False),
    (r"{0}.5", False),
)
"""Answers to a GSM8K problem that are no plain integers, so that algebra decides; which are right."""


def rows(data: Path) -> dict[str, tuple[Row, ...]]:
    """Return the rows of the three files. Raises `TaskError` where one cannot be used."""
    found = {}
    for name in NAMES:
        path = local_file(BENCHMARKS[name], Split.TEST, data)
        if path is None:
            raise SystemExit(f"{data}: no {name} file; give --data")
        found[name] = load(BENCHMARKS[name], Split.TEST, path)
    return found


async def golds(of: dict[str, tuple[Row, ...]]) -> list[tuple[str, int, Counter[Verdict]]]:
    """Grade every gold against itself, by benchmark."""
    result = []
    for name, some in of.items():
        graders = Graders(BENCHMARKS[name].kind, GradingLimits(DEADLINE_S))
        grades = [await graders.grade(row, gold_response(row) or "") for row in some]
        graders.close()
        result.append((name, len(some), Counter(grade.verdict for grade in grades)))
    return result


async def pairs(of: dict[str, tuple[Row, ...]], pool: MathPool) -> tuple[Counter[Verdict], list[str]]:
    """Grade random pairs of different golds; return the verdicts, and the pairs that were not INCORRECT."""
    rng = random.Random(SEED)
    everything = [row for some in of.values() for row in some]
    verdicts: Counter[Verdict] = Counter()
    odd = []
    while verdicts.total() < PAIRS:
        one, other = rng.sample(everything, 2)
        if same_answer(one.gold, other.gold):
            continue
        grade = await grade_math(f"\\boxed{{{other.gold}}}", one.gold, pool)
        verdicts[grade.verdict] += 1
        if grade.verdict is not Verdict.INCORRECT:
            odd.append(
                f"{one.id} `{one.gold}` and {other.id} `{other.gold}`: {grade.verdict} ({grade.reason})"
            )
    return verdicts, odd


def gsm8k_like(number: int) -> tuple[list[tuple[str, str]], list[bool]]:
    """Return (gold, response) of answers that algebra must decide, and which are right."""
    rng = random.Random(SEED)
    asked, right = [], []
    for index in range(number):
        gold = rng.randrange(1, 50_000)
        form, is_right = FORMS[index % len(FORMS)]
        asked.append((str(gold), f"so \\boxed{{{form.format(gold, 2 * gold, gold - 1)}}}"))
        right.append(is_right)
    return asked, right


async def speed(asked: Sequence[tuple[str, str]], pool: MathPool) -> tuple[float, list[Verdict]]:
    """Return seconds, and the verdicts. The process is started before the clock."""
    await pool.equal("1/2", "0.5")
    began = time.perf_counter()
    grades = [await grade_math(response, gold, pool) for gold, response in asked]
    return time.perf_counter() - began, [grade.verdict for grade in grades]


def cost(asked: Sequence[tuple[str, str]]) -> tuple[float, float, list[Verdict]]:
    """Return wall seconds, the grader process's own CPU seconds without its start, and the verdicts."""
    started = _cpu([])[1]
    (wall, verdicts), cpu = _cpu(asked)
    return wall, max(cpu - started, 0.0), verdicts


def _cpu(asked: Sequence[tuple[str, str]]) -> tuple[tuple[float, list[Verdict]], float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    pool = MathPool(1, DEADLINE_S)
    result = asyncio.run(speed(asked, pool))
    pool.close()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return result, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


async def hostile(asked: Sequence[tuple[str, str]], pool: MathPool) -> tuple[float, str, list[Verdict]]:
    """Put a hostile answer into the middle; return the seconds of the batch, its grade and the others'."""
    await pool.equal("1/2", "0.5")
    mixed = [*asked]
    mixed.insert(len(mixed) // 2, ("7", HOSTILE))
    began = time.perf_counter()
    grades = await asyncio.gather(*(grade_math(response, gold, pool) for gold, response in mixed))
    seconds = time.perf_counter() - began
    bad = grades.pop(len(asked) // 2)
    return seconds, f"{bad.verdict} ({bad.reason})", [grade.verdict for grade in grades]


def expected(right: Sequence[bool]) -> list[Verdict]:
    """Return the verdicts that right and wrong answers must get."""
    return [Verdict.CORRECT if each else Verdict.INCORRECT for each in right]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[1].parent / "shared" / "data")
    parser.add_argument("--answers", type=int, default=1_200, help="answers to time")
    arguments = parser.parse_args()
    load_1, _, _ = os.getloadavg()
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {load_1:.1f}\n")
    of = rows(arguments.data)
    print("| golds against themselves | rows | CORRECT | INCORRECT | UNGRADED |\n|---|--:|--:|--:|--:|")
    for name, count, verdicts in asyncio.run(golds(of)):
        print(f"| {name} | {count} | " + " | ".join(str(verdicts[v]) for v in Verdict) + " |")
    pool = MathPool(1, DEADLINE_S)
    found, odd = asyncio.run(pairs(of, pool))
    print("\n| random pairs of different golds | CORRECT | INCORRECT | UNGRADED |\n|--:|--:|--:|--:|")
    print(f"| {found.total()} | " + " | ".join(str(found[v]) for v in Verdict) + " |")
    print("".join(f"- {line}\n" for line in odd))
    asked, right = gsm8k_like(arguments.answers)
    integers = [(gold, f"so \\boxed{{{gold}}}") for gold, _ in asked]
    mixed = [*asked[: len(asked) // 4], *integers[len(asked) // 4 :]]
    mixed_right = [*right[: len(asked) // 4], *[True] * (len(asked) - len(asked) // 4)]
    print("| answers like GSM8K's, one grader process | verdicts/s | its CPU ms each | as expected |")
    print("|---|--:|--:|--:|")
    for name, batch, flags in (
        ("none a plain integer: algebra decides", asked, right),
        ("three of four plain integers", mixed, mixed_right),
        ("plain integers: text decides", integers, [True] * len(asked)),
    ):
        wall, cpu, given = cost(batch)
        agreed = sum(a is b for a, b in zip(given, expected(flags), strict=True))
        rates = f"{len(batch) / wall:.0f} | {1000 * cpu / len(batch):.2f}"
        print(f"| {name} | {rates} | {agreed} of {len(batch)} |")
    few, flags = asked[:300], right[:300]
    without, _ = asyncio.run(speed(few, pool))
    seconds, grade, others = asyncio.run(hostile(few, pool))
    agreed = sum(a is b for a, b in zip(others, expected(flags), strict=True))
    print(f"\n| 300 answers and `{HOSTILE}`, deadline {DEADLINE_S:.0f} s | |\n|---|--:|")
    print(f"| the hostile answer | {grade} |\n| the others as expected | {agreed} of {len(few)} |")
    print(f"| seconds without it | {without:.2f} |\n| seconds with it | {seconds:.2f} |")
    pool.close()


if __name__ == "__main__":
    main()
