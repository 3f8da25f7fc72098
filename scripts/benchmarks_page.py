"""Write docs/benchmarks.md from the benchmarks' descriptions: `python scripts/benchmarks_page.py`."""

from pathlib import Path

from aipo.tasks.benchmarks.page import describe

DOCS = Path(__file__).resolve().parents[1] / "docs"


def page() -> str:
    """Return the whole page: the text by hand, then the tables."""
    return (DOCS / "benchmarks.in.md").read_text(encoding="utf-8") + describe()


if __name__ == "__main__":
    path = DOCS / "benchmarks.md"
    path.write_text(page(), encoding="utf-8")
    print(f"wrote {path}")
