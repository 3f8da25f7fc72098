"""A dataclass with more than three fields is built by keyword, so that a new field moves no other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import aipo

SOURCE = Path(aipo.__file__).parent
MOST_POSITIONAL = 3


def positional(path: Path) -> Iterator[str]:
    """Yield the dataclasses of a file that take more than three fields by position."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            for decorator in node.decorator_list:
                call = decorator.func if isinstance(decorator, ast.Call) else decorator
                if not (isinstance(call, ast.Name) and call.id == "dataclass"):
                    continue
                options = decorator.keywords if isinstance(decorator, ast.Call) else []
                fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
                if len(fields) > MOST_POSITIONAL and "kw_only" not in {option.arg for option in options}:
                    yield node.name


def test_a_dataclass_with_more_than_three_fields_is_keyword_only() -> None:
    found = {
        str(path.relative_to(SOURCE)): names
        for path in sorted(SOURCE.rglob("*.py"))
        if (names := set(positional(path)))
    }
    assert not found, "give it kw_only=True"
