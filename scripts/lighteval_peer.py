"""Saved completions of math benchmarks through lighteval's grader and ours, row by row.

`scripts/lighteval_peer.sh` makes lighteval's environment and runs the three steps, ours in our environment:
the two want different versions of the library that reads LaTeX. The completions are made on the spot,
seeded: right and wrong answers in forms that policies write, saved as samples of an evaluation and read back.
lighteval grades with its own Avg@n metric (`Metrics.avg_at_n_math`, as its task aime25 uses it). Every row on
which the two differ is recorded with its form and a reason; a difference in a form without a reason is an
error.
"""

import argparse
import asyncio
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aipo.core.types import StopReason, Verdict
from aipo.evaluation.samples import Sample, SampleFile, as_record
from aipo.evaluation.statistics import estimate

if TYPE_CHECKING:
    from aipo.tasks.base import Problem
    from aipo.tasks.benchmarks.task import BenchmarkTask

N = 4


@dataclass(frozen=True, slots=True)
class Form:
    """A way to write an answer."""

    right: bool
    """Whether a person would take the answer for right."""
    words: str
    """GOLD stands for the gold, OTHER for another row's."""
    why: str = ""
    """Why the two graders may differ on it; '' where they must not."""
    integers: bool = False
    """Written only for golds that are integers; AIME's protocol takes none of it."""

    def completion(self, gold: str, other: str) -> str:
        """Return the completion."""
        return (
            self.words.replace("DGOLD", gold.replace(r"\frac", r"\dfrac"))
            .replace("OTHER", other)
            .replace("GOLD", gold)
        )


BOX = (
    "ours reads the last box, which the prompt asks for, and nothing else; lighteval reads other phrases too"
)
STOP = "a full stop inside the box: ours strips it, lighteval reads no answer"
ALONE = "AIME's protocol takes an integer alone in the box; lighteval also reads `x =` and a unit"
FORMS: Mapping[str, Form] = {
    "boxed": Form(True, r"We add the parts. The final answer is \boxed{GOLD}."),
    "boxed in dollars": Form(True, r"Therefore, the final answer is: $\boxed{GOLD}$. I hope it is correct."),
    "boxed in a display": Form(True, "So we find\n\\[\n\\boxed{GOLD}\n\\]"),
    "boxed with spaces": Form(True, r"Hence $\boxed{ GOLD }$"),
    "boxed dfrac": Form(True, r"Hence $\boxed{DGOLD}$"),
    "boxed after thinking": Form(
        True,
        "<think>Try 7. Or OTHER? No.</think>\nThe answer is $\\boxed{GOLD}$.",
    ),
    "boxed equation": Form(True, r"Hence $\boxed{x = GOLD}$.", integers=True),
    "boxed with a unit": Form(True, r"Hence $\boxed{GOLD\text{ units}}$.", integers=True),
    "boxed with a full stop": Form(True, r"Hence \boxed{GOLD.}", STOP),
    "wrong boxed": Form(False, r"The final answer is $\boxed{OTHER}$."),
    "wrong boxed, gold before": Form(
        False, r"First I got $GOLD$ for the half. In all it is $\boxed{OTHER}$."
    ),
    "nothing": Form(False, "I cannot solve this. Let me think about it again, from the beginning"),
    "cut": Form(False, "We look at the case in which the sum is OTHER and so the"),
    "no box": Form(True, "Adding up, the final answer is $GOLD$.", BOX),
    "corrected box": Form(False, r"It is $\boxed{GOLD}$. No, wait: it is $\boxed{OTHER}$."),
    "two boxes": Form(True, r"It is $\boxed{OTHER}$. No, wait: it is $\boxed{GOLD}$."),
}

BENCHMARKS_COMPARED = ("aime25", "math500")
THEIRS = "lighteval.json"


def main() -> None:
    """Run one of the three steps; `report` exits with 1 if a difference has no reason."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("ours", "theirs", "report"))
    parser.add_argument("work", type=Path, help="folder for the saved completions and both gradings")
    parser.add_argument("--data", type=Path, help="ours: folder with math500.jsonl and aime25.jsonl")
    parser.add_argument("--problems", type=int, default=0, help="ours: only the first so many; 0: all")
    parser.add_argument("--output", type=Path, default=Path("results/evaluation/peer.json"))
    chosen = parser.parse_args()
    if chosen.step == "ours":
        for name in BENCHMARKS_COMPARED:
            write_ours(name, chosen.data, chosen.work, chosen.problems)
    elif chosen.step == "theirs":
        write_theirs(chosen.work)
    else:
        raise SystemExit(bool(write_report(chosen.work, chosen.output)))


def write_ours(name: str, data: Path, work: Path, problems: int) -> None:
    """Write completions of one benchmark with our verdicts, and its golds."""
    from aipo.tasks.base import Split
    from aipo.tasks.benchmarks.catalogue import BENCHMARKS
    from aipo.tasks.benchmarks.task import BenchmarkTask, GradingLimits

    task = BenchmarkTask(BENCHMARKS[name], {Split.TEST: data / f"{name}.jsonl"}, GradingLimits(20.0))
    try:
        chosen = list(task.problems(Split.TEST))[: problems or None]
        (work / name).mkdir(parents=True)
        SampleFile(work / name).append(asyncio.run(graded(task, chosen, name)))
    finally:
        task.close()
    golds = {problem.id: problem.gold for problem in chosen}
    (work / name / "golds.json").write_text(json.dumps(golds))


def write_theirs(work: Path) -> None:
    """Write lighteval's score of each saved completion, in order."""
    for name in BENCHMARKS_COMPARED:
        golds = json.loads((work / name / "golds.json").read_text())
        samples = list(SampleFile(work / name).read().values())
        found = {"version": version("lighteval"), "scores": lighteval_scores(samples, golds)}
        (work / name / THEIRS).write_text(json.dumps(found))


def write_report(work: Path, output: Path) -> int:
    """Write and print the comparison; return the number of differences without a reason."""
    benchmarks = [compared(name, work / name) for name in BENCHMARKS_COMPARED]
    peer = json.loads((work / BENCHMARKS_COMPARED[0] / THEIRS).read_text())["version"]
    report = {
        "peer": {"lighteval": peer},
        "ours": {name: version(name) for name in ("aipo", "math-verify", "latex2sympy2_extended", "sympy")},
        "forms": {name: {"right": form.right, "may_differ": form.why} for name, form in FORMS.items()},
        "benchmarks": benchmarks,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for each in benchmarks:
        print(json.dumps({k: v for k, v in each.items() if k not in ("differences", "by_form")}))
        for row in each["differences"]:
            if not row["why"]:
                print("no reason:", json.dumps(row, ensure_ascii=False))
    print(f"wrote {output}")
    return sum(each["unexplained"] for each in benchmarks)


def compared(name: str, work: Path) -> dict[str, Any]:
    """Return both Avg@n of one benchmark, counts by form, and each row on which the graders differ."""
    samples = list(SampleFile(work).read().values())
    golds = json.loads((work / "golds.json").read_text())
    theirs = json.loads((work / THEIRS).read_text())["scores"]
    rows = list(zip(samples, theirs, strict=True))
    both = [(s, t) for s, t in rows if s.graded]
    different = [(s, t) for s, t in both if (s.verdict == Verdict.CORRECT) != (t == 1.0)]
    comparable = [(s, t) for s, t in both if not known_difference(s)]
    return {
        "benchmark": name,
        "questions": len(golds),
        "n": N,
        "completions": len(samples),
        "ungraded_by_ours": len(samples) - len(both),
        "avg_at_n_ours": estimate([as_record(samples, "ours", "solo")], "all", 1).value,
        "avg_at_n_lighteval": sum(theirs) / len(theirs),
        "comparable_completions": len(comparable),
        "comparable_avg_ours": share([s.verdict == Verdict.CORRECT for s, _ in comparable]),
        "comparable_avg_lighteval": share([t == 1.0 for _, t in comparable]),
        "differences_in_number": len(different),
        "unexplained": sum(not reason(s) for s, _ in different),
        "by_form": by_form(both),
        "differences": [
            {
                "problem": s.problem,
                "index": s.index,
                "form": form_of(s),
                "gold": golds[s.problem],
                "response": s.response,
                "ours": f"{s.verdict}: {s.reason}",
                "lighteval": t,
                "why": reason(s),
            }
            for s, t in different
        ],
    }


async def graded(task: "BenchmarkTask", problems: "Sequence[Problem]", name: str) -> list[Sample]:
    """Return n completions of each problem with our verdicts; about half of the answers are right."""
    draw = random.Random(0)
    golds = [problem.gold for problem in problems]
    names = list(FORMS)
    samples = []
    for place, problem in enumerate(problems):
        others = [gold for gold in golds[place + 1 :] + golds[:place] if gold != problem.gold]
        for index in range(N):
            form = draw.choice(names)
            if FORMS[form].integers and not problem.gold.lstrip("-").isdigit():
                form = "boxed"
            response = FORMS[form].completion(problem.gold, draw.choice(others[:50]))
            grade = await task.grade(problem, response)
            samples.append(
                Sample(
                    condition="solo",
                    benchmark=name,
                    problem=problem.id,
                    stratum="all",
                    index=index,
                    seed_path=(0, form),
                    questions="peer",
                    policy="peer",
                    prompt_tokens=1,
                    unknown_tokens=0,
                    response=response,
                    response_tokens=1,
                    agent_tokens=0,
                    consultations=0,
                    stop=StopReason.END,
                    verdict=grade.verdict,
                    reason=grade.reason,
                )
            )
    return samples


def lighteval_scores(samples: Sequence[Sample], golds: Mapping[str, str]) -> list[float]:
    """Return lighteval's score of each completion, by the metric of its Avg@n tasks with n = 1."""
    from lighteval.metrics.metrics import Metrics  # type: ignore[import-not-found]
    from lighteval.models.model_output import ModelResponse  # type: ignore[import-not-found]
    from lighteval.tasks.requests import Doc  # type: ignore[import-not-found]

    metric = Metrics.avg_at_n_math(sample_params={"n": 1})
    found = []
    for sample in samples:
        doc = Doc(query="", choices=[f"${golds[sample.problem]}$"], gold_index=0, task_name="peer")
        found.append(float(metric.sample_level_fn.compute(doc, ModelResponse(text=[sample.response]))))
    return found


def reason(sample: Sample) -> str:
    """Return why the graders differ on a completion; '' where nobody knows."""
    form = FORMS[form_of(sample)]
    if known := known_difference(sample):
        return known
    if (sample.verdict == Verdict.CORRECT) == form.right:
        held = "the gold" if form.right else "another row's gold, or there is no answer"
        return f"lighteval is wrong by construction: the box holds {held}"
    return ""


def known_difference(sample: Sample) -> str:
    """Return why the graders are not meant to agree on a completion's form; '' where they are."""
    form = FORMS[form_of(sample)]
    return ALONE if form.integers and sample.benchmark.startswith("aime") else form.why


def by_form(rows: Sequence[tuple[Sample, float]]) -> dict[str, dict[str, int]]:
    """Return, by form, how many completions there are and how many each grader takes for right."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in FORMS}
    for sample, theirs in rows:
        own = counts[form_of(sample)]
        own["completions"] += 1
        own["ours_correct"] += sample.verdict == Verdict.CORRECT
        own["lighteval_correct"] += theirs == 1.0
    return {name: dict(own) for name, own in counts.items()}


def form_of(sample: Sample) -> str:
    """Return the form that a completion was written in."""
    return str(sample.seed_path[1])


def share(values: Sequence[bool]) -> float:
    """Return the share of True; NaN-free: no values are an error."""
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
