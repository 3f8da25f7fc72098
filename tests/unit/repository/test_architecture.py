"""The core is the method alone: torch, the standard library and itself."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import aipo.core

CORE = Path(aipo.core.__file__).parent
ALLOWED = {*sys.stdlib_module_names, "torch"}
IMPURE = {"asyncio", "io", "logging", "os", "pathlib", "random", "socket", "subprocess", "threading"}


def imports(source: str) -> Iterator[str]:
    """Yield the modules that a source imports, wherever the import stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: path.name)
def test_core_imports_only_torch_the_standard_library_and_itself(path: Path) -> None:
    for module in imports(path.read_text(encoding="utf-8")):
        own = module == "aipo.core" or module.startswith("aipo.core.")
        assert own or module.partition(".")[0] in ALLOWED, f"{path.name} imports {module}"


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: path.name)
def test_core_does_no_io_and_draws_no_random_numbers(path: Path) -> None:
    used = {module.partition(".")[0] for module in imports(path.read_text(encoding="utf-8"))}
    assert not used & IMPURE


def test_imports_are_found_inside_functions_too() -> None:
    source = "import a.b\nfrom c import d\ndef f():\n    from .e import g\n    import h"
    assert sorted(imports(source)) == [".e", "a.b", "c", "h"]
