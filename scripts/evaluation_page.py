"""Write docs/evaluation.md from its words and the committed evaluations: `python scripts/evaluation_page.py`.

docs/evaluation.in.md is joined with what `aipo evaluate` and `aipo compare` wrote, and with the record of
scripts/lighteval_peer.py. No number is typed; an unknown part is an error.
"""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

ROOT = Path(__file__).resolve().parent.parent
DOCS, RECORDS = ROOT / "docs", ROOT / "results" / "evaluation"


def page() -> str:
    """Return the whole page."""
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    words = environment.from_string((DOCS / "evaluation.in.md").read_text(encoding="utf-8"))
    return words.render(part=part, notes=notes, comparison=comparison, peer=peer)


def part(file: str, title: str) -> str:
    """Return what stands under a heading of a record, up to the next of its level; deeper headings with it.

    Raises `ValueError` if there is no such heading.
    """
    lines = (RECORDS / file).read_text(encoding="utf-8").splitlines()
    if f"## {title}" not in lines:
        raise ValueError(f"{file}: no heading {title!r}")
    found = []
    for line in lines[lines.index(f"## {title}") + 1 :]:
        if line.startswith("## "):
            break
        found.append(f"#{line}" if line.startswith("#") else line)
    return "\n".join(found).strip() + "\n"


def notes(file: str) -> str:
    """Return what a record says before its first table, as a list."""
    head = (RECORDS / file).read_text(encoding="utf-8").partition("\n## ")[0]
    return "".join(f"- {line}\n" for line in head.splitlines()[1:] if line)


def comparison() -> str:
    """Return the comparison without its title and figures, its headings one level down."""
    lines = (RECORDS / "comparison" / "comparison.md").read_text(encoding="utf-8").splitlines()
    kept = [f"#{line}" if line.startswith("#") else line for line in lines[1:] if not line.startswith("![")]
    return "\n".join(kept).strip() + "\n"


def peer() -> str:
    """Return how lighteval and this project grade the same completions."""
    record = json.loads((RECORDS / "peer.json").read_text(encoding="utf-8"))
    versions = f"lighteval {record['peer']['lighteval']}, math-verify {record['ours']['math-verify']}"
    lines = [
        f"`scripts/lighteval_peer.sh` writes completions in {len(record['forms'])} forms, right and "
        "wrong, saves them, and grades them with lighteval's `Metrics.avg_at_n_math` and with ours "
        f"({versions}). *Comparable* are the forms that both are meant to read in the same way; in the "
        "others one is known to look elsewhere.\n",
        "| benchmark | completions | Avg@n ours | lighteval | comparable | ours | lighteval | differ | "
        "without a reason |",
        "|---|" + "--:|" * 8,
    ]
    for each in record["benchmarks"]:
        cells = [
            each["benchmark"],
            each["completions"],
            *(f"{100 * each[key]:.2f}" for key in ("avg_at_n_ours", "avg_at_n_lighteval")),
            each["comparable_completions"],
            *(f"{100 * each[f'comparable_avg_{side}']:.2f}" for side in ("ours", "lighteval")),
            each["differences_in_number"],
            each["unexplained"],
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, "", _by_form(record), _reasons(record)])


def _by_form(record: dict[str, Any]) -> str:
    names = [each["benchmark"] for each in record["benchmarks"]]
    lines = [
        f"| form | {' | '.join(f'{name}: completions | ours right | lighteval right' for name in names)} |",
        "|---|" + "--:|" * (3 * len(names)),
    ]
    for form in record["forms"]:
        cells = [
            str(each["by_form"][form].get(key, 0))
            for each in record["benchmarks"]
            for key in ("completions", "ours_correct", "lighteval_correct")
        ]
        lines.append(f"| {form} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _reasons(record: dict[str, Any]) -> str:
    counts: dict[str, int] = {}
    for each in record["benchmarks"]:
        for row in each["differences"]:
            counts[row["why"]] = counts.get(row["why"], 0) + 1
    listed = "".join(
        f"- {number} rows: {why}.\n" for why, number in sorted(counts.items(), key=lambda x: -x[1])
    )
    return f"Why rows differ; each row is in [peer.json](../results/evaluation/peer.json):\n\n{listed}"


if __name__ == "__main__":
    target = DOCS / "evaluation.md"
    target.write_text(page(), encoding="utf-8")
    print(f"wrote {target}")
