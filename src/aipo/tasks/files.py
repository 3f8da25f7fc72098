"""Rows from files: JSON lines, JSON, Parquet or CSV, in the forms that pandas and `datasets` write.

Every row has a place (file and line, or file and row) that an error can name.
"""

import codecs
import csv
import gzip
import io
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from aipo.tasks.base import TaskError

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".jsonl.gz")
"""What a file of rows may be called; any other name is read as JSON."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_WRAPPERS = ("data", "rows", "examples", "instances", "records", "problems", "questions", "train", "test")
"""Names under which one object holds the list of rows."""
_DIGITS_OF_AN_INT = 4300
"""Python reads no longer one; its digits are kept as a text."""


def rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line, value) of JSON lines, or (index from 1, value) of a JSON, a Parquet or a CSV file.

    Raises:
        TaskError: the file cannot be read or parsed; the message names file, line and fix.
    """
    for number, value in rows_or_errors(path):
        if isinstance(value, TaskError):
            raise value
        yield number, value


def rows_or_errors(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield what `rows` yields, and a `TaskError` in the place of a row that cannot be read.

    Raises:
        TaskError: the file as a whole cannot be read.
    """
    content = read_bytes(path)
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        yield from enumerate(_parquet(path, content), start=1)
        return
    text = _decoded(path, content)
    if name.endswith((".csv", ".tsv")):
        yield from enumerate(_csv(path, text), start=1)
    elif (whole := _whole(path, text)) is not None:
        yield from enumerate(whole, start=1)
    else:
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


def _decoded(path: Path, content: bytes) -> str:
    mark, encoding = next(((m, e) for m, e in _MARKS if content.startswith(m)), (b"", "utf-8"))
    try:
        return content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        raise TaskError(
            f"{path}: cannot read the file: {error}; give a readable UTF-8 JSON-lines file"
        ) from error


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= _DIGITS_OF_AN_INT else digits


def _parse(text: str, place: str) -> Any:
    """Return the value of a JSON text, or the error that says why there is none."""
    try:
        return json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        start = text.strip()[:60]
        return TaskError(f"{place}: not JSON ({error}): {start!r}; write one JSON object a line")


def _whole(path: Path, text: str) -> list[Any] | None:
    """Return the rows of a file that is one JSON value; None where it is JSON lines.

    Raises `TaskError` for a list that is no JSON.
    """
    begins = text.lstrip()
    if not begins.startswith(("[", "{")):
        return None
    if begins.startswith("{"):
        first, _, rest = begins.partition("\n")
        if rest.strip() and not isinstance(_parse(first, ""), TaskError):
            return None  # the usual case: a whole object on the first line, and more lines
    value = _parse(text, str(path))
    if not isinstance(value, TaskError):
        return records(value)
    if begins.startswith("["):
        raise value
    return None


def records(value: Any) -> list[Any]:
    """Return the rows that one JSON value holds, in the forms of `pandas.DataFrame.to_json` too.

    >>> records({"problem": {"0": "1+1?"}, "answer": {"0": "2"}})
    [{'problem': '1+1?', 'answer': '2'}]
    >>> records({"columns": ["problem", "answer"], "index": [0], "data": [["1+1?", "2"]]})
    [{'problem': '1+1?', 'answer': '2'}]
    >>> records({"data": [{"problem": "1+1?"}]}), records({"problem": ["1+1?"], "answer": ["2"]})
    ([{'problem': '1+1?'}], [{'problem': '1+1?', 'answer': '2'}])
    """
    if isinstance(value, list):
        return value
    if not isinstance(value, dict) or not value:
        return [value]
    columns, data = value.get("columns"), value.get("data")
    if isinstance(columns, list) and _lists(data):
        return [dict(zip(columns, row, strict=False)) for row in data]
    for name in _WRAPPERS:
        held = value.get(name)
        if _objects(held):
            # The hub's viewer puts each row under `row`, beside its number.
            return [one["row"] if isinstance(one.get("row"), dict) else one for one in held]
    inner = list(value.values())
    if all(isinstance(each, dict) for each in inner):
        by_row = all(name.isdigit() for name in value)
        if by_row:
            return inner
        if all(name.isdigit() for each in inner for name in each):
            numbers = dict.fromkeys(number for each in inner for number in each)
            return [{name: value[name].get(number) for name in value} for number in numbers]
    if _lists(inner) and inner[0] and len({len(each) for each in inner}) == 1 and not _messages(inner):
        return [dict(zip(value, row, strict=True)) for row in zip(*inner, strict=True)]
    return [value]


def _lists(value: Any) -> TypeGuard[list[list[Any]]]:
    return isinstance(value, list) and all(isinstance(each, list) for each in value)


def _objects(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    """Say whether a value is a list of rows; the messages of a conversation are none."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, Mapping) and not {"role", "from"} & each.keys() for each in value)
    )


def _messages(columns: list[list[Any]]) -> bool:
    return any(isinstance(each, dict) for column in columns for each in column)


def _csv(path: Path, text: str) -> Iterator[Any]:
    csv.field_size_limit(sys.maxsize)
    header = text.lstrip().partition("\n")[0]
    # What cuts the header into most columns: European spreadsheets write semicolons, some tools tabs.
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for number, row in enumerate(reader, start=1):
            if None in row:
                yield TaskError(
                    f"{path}:{number}: {len(row[None])} values more than the header has columns, from "
                    f"{shown(row[None][0])} on; put texts that hold {delimiter!r} in quotes"
                )
            else:
                yield row
    except csv.Error as error:
        raise TaskError(f"{path}: no CSV ({error}); write it anew, or as JSON lines") from error


def _parquet(path: Path, content: bytes) -> list[Any]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(io.BytesIO(content))
    except (pyarrow.ArrowException, OSError) as error:
        raise TaskError(f"{path}: not Parquet ({error}); give a Parquet file, or JSON lines") from error
    found: list[Any] = table.to_pylist()
    return found
