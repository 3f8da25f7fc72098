"""Write docs/results.md and its figures from the committed records: no number is typed by hand.

Owns the join of docs/results.in.md, the words, with what `Report` generates. In the words,
`{{ cell(METHOD, MODE, K) }}` stands for an estimate, `{{ table }}` and the like for whole parts; an unknown
name is an error.
"""

from pathlib import Path

from jinja2 import Environment, StrictUndefined

from aipo.evaluate.comparison import Report

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def render(figures: Path) -> str:
    """Write the figures into a folder and return the page."""
    report = Report(ROOT / "results" / "main", pass_at=(1, 8, 64))
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(
        (DOCS / "results.in.md").read_text()
    )
    figures.mkdir(exist_ok=True)
    shown = [line.replace("](", "](figures/") for line in report.figures(figures)]
    for png in ("boundary.png", "training.png", "expert_tokens.png"):
        (figures / png).unlink()
    return template.render(
        table=report.table().markdown(),
        figures=shown,
        differences=report.differences(),
        token_table=report.token_table(),
        internals=report.internals(),
        how=report.how(),
        cell=report.cell,
        seeds=report.seeds,
    )


def main() -> None:
    """Write the page."""
    (DOCS / "results.md").write_text(render(DOCS / "figures"))
    print(f"wrote {DOCS / 'results.md'}")


if __name__ == "__main__":
    main()
