"""Write the pages of results from the committed records, figures too: no number is typed.

They are docs/results.md, docs/real_models.md and docs/ablation.md.

The words are docs/*.in.md, the rest is what `Report` generates. In the words,
`{{ cell(METHOD, MODE, K) }}` stands for an estimate, `{{ table }}` and the like for whole parts; an unknown
name is an error.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from jinja2 import Environment, StrictUndefined

from aipo.comparison.report import FACTS, Report
from aipo.evaluation.table import format_share

ROOT = Path(__file__).resolve().parent.parent
DOCS, RECORDS = ROOT / "docs", ROOT / "results"
PASS_AT, FOCUS = (1, 8, 64), ("hard",)
RECORDS_OF = {"results": "main", "real_models": "smollm2"}
"""Folder of the records of a page that shows one comparison; what is beside it is called FOLDER-NAME."""
MAIN = "Main table"
SECTIONS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "facts": {
        "Advantage on FEEDBACK tokens, solo rollouts, controls": (
            "floored",
            "AIPO (floored + copies)",
            "AIPO, half of solo rollouts banned",
            "AIPO, random reward",
            "floored, signed advantage",
            "ratio",
            "ratio, signed advantage",
            "ratio, signed-unit advantage",
            "floored, positive advantage",
            "floored, no solo rollouts",
            "floored, one baseline for both conditions",
        ),
        "Base algorithms": (
            "GRPO",
            "AIPO (floored + copies)",
            "Dr.GRPO",
            "AIPO on Dr.GRPO",
            "GSPO",
            "AIPO on GSPO",
            "DAPO with dynamic sampling",
        ),
        "What part 4 chose": (
            "AIPO (floored + copies)",
            "AIPO, ratio + copies",
            "AIPO on GSPO",
            "AIPO on GSPO, Knowledge only",
            "SFT on expert trajectories",
        ),
        "Each agent removed in turn": (
            "AIPO (floored + copies)",
            "AIPO without Verify",
            "AIPO without Knowledge",
            "AIPO without Reasoning",
        ),
        "Noisy agents": (
            "AIPO (floored + copies)",
            "AIPO, agents 90 % right",
            "AIPO, agents 80 % right",
            "AIPO, agents 70 % right",
        ),
    }
}
"""Side tables of a comparison; what is in none of them is in the main table."""
AIPO = "AIPO (floored + copies)"
MAIN_TOO = ("GRPO", "floored", "ratio", "SFT on expert trajectories", AIPO)
"""What of the side tables stands in the main table too."""
COPIES = "copies.json"
"""What scripts/copy_decisions.py wrote about the policies of a comparison."""
BESIDE_AIPO = ("Base algorithms", "What part 4 chose", "Each agent removed in turn", "Noisy agents")
"""Side tables of variants of AIPO, which are compared with that too."""


def render(page: str, figures: Path) -> str:
    """Write a page's figures into a folder and return the page."""
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    template = environment.from_string((DOCS / f"{page}.in.md").read_text())
    figures.mkdir(exist_ok=True)
    values = (
        {"parts": list(_parts(figures)), "copies": _copies} if page == "ablation" else _results(page, figures)
    )
    for svg in figures.glob("*.svg"):  # a page shows those; what has no vector twin is somebody else's
        svg.with_suffix(".png").unlink(missing_ok=True)
    return template.render(values)


def pages() -> list[str]:
    """Return the names of the pages that there are records for."""
    single = [page for page, folder in RECORDS_OF.items() if (RECORDS / folder / FACTS).exists()]
    return [*single, *(["ablation"] if list(RECORDS.glob(f"ablation/*/{FACTS}")) else [])]


def _results(page: str, figures: Path) -> dict[str, Any]:
    folder = RECORDS_OF[page]
    report = Report(RECORDS / folder, PASS_AT if page == "results" else (1, 8), FOCUS)
    prefix = "" if page == "results" else f"{folder}-"
    return {
        "table": report.table().markdown(),
        "figures": _shown(report.figures(figures, prefix=prefix)),
        "differences": report.differences(),
        "token_table": report.token_table(),
        "how": report.how(),
        "cell": report.cell,
        "seeds": report.seeds,
        "beside": {
            records.name.removeprefix(f"{folder}-"): Report(records, (1, 8), FOCUS)
            for records in RECORDS.glob(f"{folder}-*")
        },
        "ablation": {
            records.name: Report(records, PASS_AT, FOCUS)
            for records in (RECORDS / "ablation").iterdir()
            if (records / FACTS).exists()
        },
    }


def _parts(figures: Path) -> Iterator[dict[str, Any]]:
    folders = [folder for folder in (RECORDS / "ablation").iterdir() if (folder / FACTS).exists()]
    reports = {folder: Report(folder, PASS_AT, FOCUS) for folder in folders}
    for records, report in sorted(reports.items(), key=lambda item: str(item[1].facts["name"])):
        side = SECTIONS.get(records.name, {})
        sections = list(_sections(report, side))
        yield {
            "name": records.name,
            "cell": report.cell,
            "tokens_at": report.tokens_at,
            "title": report.facts["name"],
            "missing": report.facts["missing"],
            "sections": sections,
            "easy": {stratum: report.table(strata=[stratum]).markdown() for stratum in report.others},
            "internals": report.internals(),
            "tokens": report.token_table() if records.name in ("search", "long") else "",
            "figures": _shown(report.figures(figures, _main(report, side), f"ablation-{records.name}-")),
            "how": report.how(),
        }


def _copies(part: str, kind: str, key: str = "probability", method: str = "aipo") -> str:
    """Return the mean over a method's seeds of what is recorded of one kind of tokens in its copies."""
    runs = json.loads((RECORDS / "ablation" / part / COPIES).read_text())["methods"][method]
    return format_share(mean(run[kind][key] for run in runs))


def _sections(report: Report, side: Mapping[str, Sequence[str]]) -> Iterator[dict[str, str]]:
    for title, methods in {MAIN: _main(report, side), **side}.items():
        there = [method for method in methods if method in report.methods]
        if not there:
            continue
        differences = report.differences(there) if report.facts["baseline"] in report.methods else ""
        if title in BESIDE_AIPO:
            differences += "\n" + report.differences([m for m in there if m != AIPO], AIPO)
        yield {"title": title, "table": report.table(there).markdown(), "differences": differences}


def _main(report: Report, side: Mapping[str, Sequence[str]]) -> list[str]:
    listed = [method for methods in side.values() for method in methods]
    return [method for method in report.methods if method in MAIN_TOO or method not in listed]


def _shown(figures: Sequence[str]) -> list[str]:
    return [line.replace("](", "](figures/") for line in figures]


def main() -> None:
    """Write the pages."""
    for page in pages():
        (DOCS / f"{page}.md").write_text(render(page, DOCS / "figures"))
        print(f"wrote {DOCS / page}.md")


if __name__ == "__main__":
    main()
