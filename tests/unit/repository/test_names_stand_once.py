"""No name list stands twice: what a registry or an enum of `core` lists, nothing else in src/ lists again."""

import ast
import importlib
from collections.abc import Iterator
from enum import Enum
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import aipo
from aipo.core import types
from aipo.core.registry import Registry

SOURCE = Path(aipo.__file__).parent
FEW = 3
"""Names of one list in one literal that make it a second list."""
ALLOWED = {
    ("integrations/verl/config.py", "AGGREGATIONS"): "verl's own word for each aggregation",
    ("integrations/verl/offered.py", "OPTIMIZERS"): "verl's own class of each optimiser",
    ("integrations/verl/refusals.py", "ALGORITHMS"): "verl's own estimators, which have names of their own",
    ("planning/measured.py", "ConsultOutcome"): "planning imports nothing of ours; it reads records",
}
"""(file, list): why the names stand there too."""


def modules() -> Iterator[ModuleType]:
    """Yield the modules that register something; verl's need verl."""
    for path in sorted(SOURCE.rglob("*.py")):
        if "Registry[" in path.read_text(encoding="utf-8") and path.name != "registry.py":
            name = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
            yield importlib.import_module(name.removesuffix(".__init__"))


@cache
def lists() -> dict[str, tuple[frozenset[str], str]]:
    """Each list of names with the file in which its entries stand."""
    found: dict[str, tuple[frozenset[str], str]] = {}
    for module in modules():
        for name, value in vars(module).items():
            if isinstance(value, Registry) and name not in found:
                found[name] = frozenset(value), _file(module)
    for name, value in vars(types).items():
        if isinstance(value, type) and issubclass(value, Enum) and issubclass(value, str) and len(value) > 2:
            found[name] = frozenset(str(each) for each in value), _file(types)
    return found


def _file(module: ModuleType) -> str:
    assert module.__file__
    return str(Path(module.__file__).relative_to(SOURCE))


def literals(tree: ast.AST) -> Iterator[tuple[int, set[str]]]:
    """Yield line and strings of each list, tuple, set, dict (its keys) and `Literal[...]`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            yield node.lineno, {e.value for e in node.elts if _is_text(e)}  # type: ignore[attr-defined]
        elif isinstance(node, ast.Dict):
            yield node.lineno, {k.value for k in node.keys if k and _is_text(k)}  # type: ignore[attr-defined]


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def again(code: str, file: str) -> list[tuple[str, str, int]]:
    """Return (file, list, line) for each literal that lists names of a registry or an enum a second time."""
    found = []
    for line, strings in literals(ast.parse(code)):
        for name, (names, home) in lists().items():
            if len(strings & names) >= min(FEW, len(names)) > 1 and file != home:
                found.append((file, name, line))
    return found


def test_the_registries_and_enums_are_found() -> None:
    assert {"COEFFICIENTS", "ALGORITHMS", "SURROGATES", "ESTIMATORS", "FEEDBACK_ADVANTAGES"} <= set(lists())
    assert {"AGGREGATIONS", "ConsultOutcome", "Verdict"} <= set(lists())
    assert "floored" in lists()["COEFFICIENTS"][0] and "answered" in lists()["ConsultOutcome"][0]


@pytest.mark.parametrize(
    "code",
    [
        'Name = Literal["masked", "ratio", "floored"]',
        'FORMULAS = {"masked": 0, "unit": 1, "floored": 2}',
        'names = ["grpo", "dapo", "gspo"]',
    ],
)
def test_a_second_list_is_seen(code: str) -> None:
    assert again(code, "report/weights.py")


def test_no_list_of_names_stands_twice() -> None:
    found = {
        (file, name): line
        for path in sorted(SOURCE.rglob("*.py"))
        for file, name, line in again(
            path.read_text(encoding="utf-8"), str(path.relative_to(SOURCE)).replace("\\", "/")
        )
    }
    assert not {
        f"{file}:{line} {name}" for (file, name), line in found.items() if (file, name) not in ALLOWED
    }
    assert set(ALLOWED) <= set(found), "an exception that is not needed any more"
