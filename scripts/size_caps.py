"""Check the caps on size: `python scripts/size_caps.py`; exit status 1 when one is passed.

Files 400 lines, functions 60, parameters 7 (self and cls not counted); tests are capped by file only. A file
of `core/`, the method, has at most 220 lines, all of them 1,570; all of `cli/`, which is verbs, options and
printing, 2,800.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

FILE_LINES = 400
FUNCTION_LINES = 60
PARAMETERS = 7
CORE_FILE_LINES = 220
CORE_LINES = 1570
CLI_LINES = 2800

ROOT = Path(__file__).resolve().parents[1]


def line_count(path: Path) -> int:
    """Return a file's number of lines."""
    return len(path.read_text(encoding="utf-8").splitlines())


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function, nested ones and methods too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def parameter_count(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the number of parameters without self and cls; *args and **kwargs count."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    starred = [argument for argument in (arguments.vararg, arguments.kwarg) if argument is not None]
    return sum(argument.arg not in ("self", "cls") for argument in [*named, *starred])


def violations(path: Path, name: str, *, file_only: bool) -> Iterator[str]:
    """Yield what passes a cap in one file, as `file:line name: what (cap)`."""
    lines = line_count(path)
    if lines > FILE_LINES:
        yield f"{name}:1 {path.name}: {lines} lines (cap {FILE_LINES})"
    if file_only:
        return
    for function in functions(ast.parse(path.read_text(encoding="utf-8"), filename=name)):
        where = f"{name}:{function.lineno} {function.name}"
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        if length > FUNCTION_LINES:
            yield f"{where}: {length} lines (cap {FUNCTION_LINES})"
        if (count := parameter_count(function)) > PARAMETERS:
            yield f"{where}: {count} parameters (cap {PARAMETERS})"


def all_violations(root: Path) -> Iterator[str]:
    """Yield what passes a cap anywhere in the repository."""
    for folder in ("src", "scripts", "tests"):
        for path in sorted((root / folder).rglob("*.py")):
            yield from violations(path, str(path.relative_to(root)), file_only=folder == "tests")
    core = root / "src" / "aipo" / "core"
    lines = {path: line_count(path) for path in sorted(core.rglob("*.py"))}
    for path, number in lines.items():
        if number > CORE_FILE_LINES:
            yield f"{path.relative_to(root)}:1 {path.name}: {number} lines (cap {CORE_FILE_LINES} in core)"
    for package, cap in ((core, CORE_LINES), (core.parent / "cli", CLI_LINES)):
        whole = sum(map(line_count, package.rglob("*.py")))
        if whole > cap:
            yield f"{package.relative_to(root)}:1 {package.name}: {whole} lines in all (cap {cap})"


if __name__ == "__main__":
    found = list(all_violations(ROOT))
    print("\n".join(found) if found else "sizes are within their caps")
    sys.exit(bool(found))
