"""docs/paper_map.md is true to the tree: each file, function and test that it names exists.

And every algorithm and coefficient has its line. docs/coefficients.md is the one that `core` gives.
"""

import ast
import re
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from aipo.core.algorithms import ALGORITHMS
from aipo.core.coefficients import COEFFICIENTS

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "paper_map.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`((?:src|tests|scripts|docs)/[^`\s]+)`", PAGE)))


@cache
def names(path: str) -> frozenset[str]:
    """Functions, classes, methods as `Class.name`, and names assigned to, of one module."""
    found: set[str] = set()

    def collect(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    collect(node.body, f"{node.name}.")
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(prefix + node.target.id)
            elif isinstance(node, ast.Assign):
                found.update(prefix + t.id for t in node.targets if isinstance(t, ast.Name))

    collect(ast.parse((ROOT / path).read_text(encoding="utf-8")).body, "")
    return frozenset(found)


@pytest.mark.parametrize("named", NAMED)
def test_what_the_map_names_exists(named: str) -> None:
    path, _, name = named.partition("::")
    assert (ROOT / path).is_file(), path
    assert not name or name in names(path), f"{path} has no {name}"


def test_the_map_names_files_at_all() -> None:
    assert len(NAMED) > 40
    assert "test_loss_and_gradient_are_trls" in names("tests/parity/test_trl.py")
    assert "no_such_function" not in names("tests/parity/test_trl.py")


@pytest.mark.parametrize("name", [*ALGORITHMS, *COEFFICIENTS])
def test_every_algorithm_and_every_coefficient_has_its_line(name: str) -> None:
    assert re.search(rf"^\| .*`{name}`", PAGE, re.MULTILINE)


@pytest.mark.parametrize("row", [line for line in PAGE.splitlines() if re.match(r"\| .*\| .*`src/", line)])
def test_a_line_of_a_claim_says_whose_it_is(row: str) -> None:
    assert re.match(r"\|[^|]*\|[^|]*\b(paper|prototype|ours|arXiv)\b", row)


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target


def test_the_page_of_coefficients_is_up_to_date() -> None:
    spec = spec_from_file_location("coefficients_page", ROOT / "scripts" / "coefficients_page.py")
    assert spec is not None and spec.loader is not None
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    page = (ROOT / "docs" / "coefficients.md").read_text(encoding="utf-8")
    assert page == script.page(), "run: python scripts/coefficients_page.py"
    assert (ROOT / "docs" / script.FIGURE).is_file()
