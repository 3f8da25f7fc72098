"""What cites a page cites a section that exists; the page of the architecture is true to the code."""

import re
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SPEC = spec_from_file_location("architecture_page", ROOT / "scripts" / "architecture_page.py")
assert SPEC is not None and SPEC.loader is not None
architecture_page = module_from_spec(SPEC)
SPEC.loader.exec_module(architecture_page)
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
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


def test_the_page_of_the_architecture_is_up_to_date() -> None:
    assert architecture_page.page() == ARCHITECTURE, "run: python scripts/architecture_page.py"


def test_every_package_has_a_line_and_the_layers_are_those_of_the_contract() -> None:
    packages = architecture_page.packages()
    assert "core" in packages and "config" in packages
    rooms = re.findall(r"^\| `(\w+)` \| [A-Z]", ARCHITECTURE, re.MULTILINE)
    assert sorted(rooms) == sorted(packages)
    drawn = re.findall(r"^│ +(\w.*\w) +│$", ARCHITECTURE, re.MULTILINE)
    assert [line.split() for line in drawn] == architecture_page.layers()


def test_whatever_is_caught_is_caught_at_a_boundary_of_the_list() -> None:
    listed = set(re.findall(r"^\| `([\w/]+\.py)` \|", ARCHITECTURE, re.MULTILINE))
    package = ROOT / "src" / "aipo"
    catching = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(
            r"^\s*except( \(?(Base)?Exception\b.*)?:", path.read_text(encoding="utf-8"), re.MULTILINE
        )
    }
    assert catching == listed
