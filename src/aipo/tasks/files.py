"""Rows from files: JSON lines, a JSON list, Parquet or CSV, plain or packed with gzip.

Every row has a place (file and line, or file and row) that an error can name.
"""

import csv
import gzip
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aipo.tasks.base import TaskError

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".jsonl.gz")
"""What a file of rows may be called; any other name is read as JSON."""


def rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line, value) of JSON lines, or (index from 1, value) of a JSON list, a Parquet or a CSV file.

    Raises:
        TaskError: the file cannot be read or parsed; the message names file, line and fix.
    """
    content = read_bytes(path)
    if path.suffix == ".parquet":
        yield from enumerate(_parquet(path, content), start=1)
        return
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskError(
            f"{path}: cannot read the file: {error}; give a readable UTF-8 JSON-lines file"
        ) from error
    if path.suffix == ".csv":
        csv.field_size_limit(sys.maxsize)
        yield from enumerate(csv.DictReader(io.StringIO(text, newline="")), start=1)
        return
    if text.lstrip().startswith("["):
        yield from enumerate(_parse(text, str(path)), start=1)
        return
    # Only \n ends a line: str.splitlines would also cut at U+2028, which JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, _parse(line, f"{path}:{number}")


def read_bytes(path: Path) -> bytes:
    """Return a file's content, unpacked if its name ends in .gz. Raises `TaskError`."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError) as error:
        raise TaskError(
            f"{path}: cannot read the file: {error}; give a readable UTF-8 JSON-lines file"
        ) from error


def compress(content: bytes) -> bytes:
    """Return `content` packed with gzip, the same bytes every time."""
    return gzip.compress(content, mtime=0)


def canonical(row: Any) -> str:
    """Return a row as one line of JSON. What JSON does not know becomes a list or a text."""
    return json.dumps(row, ensure_ascii=False, default=_plain)


def shown(value: Any) -> str:
    """Return a value for an error message, cut at 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def question_key(text: str) -> str:
    """Return the form in which questions are compared: case and space do not count."""
    return " ".join(text.casefold().split())


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        start = text.strip()[:60]
        raise TaskError(f"{place}: not JSON ({error}): {start!r}; write one JSON object a line") from error


def _parquet(path: Path, content: bytes) -> list[Any]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(io.BytesIO(content))
    except (pyarrow.ArrowException, OSError) as error:
        raise TaskError(f"{path}: not Parquet ({error}); give a Parquet file, or JSON lines") from error
    found: list[Any] = table.to_pylist()
    return found
