"""What cites the documentation cites sections that exist."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CITING = ("src", "tests", "scripts", "recipes", "benchmarks", "docs")
CITATION = re.compile(r"(?<![\w/])(?:docs/)?(\w+\.md)#([\w-]+)")


def files() -> Iterator[Path]:
    """Yield every text that may cite a page, but for this test."""
    for folder in CITING:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".md", ".toml", ".sh", ".txt") and path != Path(__file__):
                yield path
    yield from ROOT.glob("*.md")


def sections(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def cited() -> dict[str, list[str]]:
    """Return where each `page.md#section` is cited."""
    found: dict[str, list[str]] = {}
    for path in files():
        for page, section in CITATION.findall(path.read_text(encoding="utf-8")):
            found.setdefault(f"{page}#{section}", []).append(str(path.relative_to(ROOT)))
    return found


CITED = cited()


@pytest.mark.parametrize("citation", sorted(CITED))
def test_a_cited_section_exists(citation: str) -> None:
    name, _, section = citation.partition("#")
    folder = ROOT if name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md") else ROOT / "docs"
    assert section in sections(folder / name), f"{citation} is cited by {CITED[citation]}"


def test_the_code_cites_the_method() -> None:
    assert len([where for name, where in CITED.items() if name.startswith("method.md#")]) > 5
    assert "objective" in sections(ROOT / "docs" / "method.md")


def test_nothing_cites_a_page_that_is_not_here() -> None:
    missing = {
        f"{path.relative_to(ROOT)}: {page}"
        for path in files()
        for page in re.findall(r"(?<![\w/{])docs/([\w/]+\.md)\b", path.read_text(encoding="utf-8"))
        if not (ROOT / "docs" / page).is_file()
    }
    assert not missing
    bare = {
        str(path.relative_to(ROOT))
        for path in files()
        if re.search(r"\blab\.md\b|(?<!docs/)(?<!\()(?<!\[)\bmethod\.md\b", path.read_text(encoding="utf-8"))
    }
    assert not bare, "cite docs/method.md#section"
