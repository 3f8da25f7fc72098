"""Programming problems: MBPP's asserts and LiveCodeBench's tests, from their columns to the one row.

Nothing in a data file is ever executed, or turned into any object but a string.

LiveCodeBench packs its private tests as base64 of zlib of a pickle of a JSON string; a pickle can run any
code when it is opened (https://docs.python.org/3/library/pickle.html), hence `StringUnpickler`.
"""

import base64
import hashlib
import io
import json
import pickle
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aipo.grading.code_tests import CodeTests, SlowCallTests, assert_tests, function_tests, stdin_tests
from aipo.tasks.benchmarks.benchmark import Kind, Row
from aipo.tasks.cells import id_of, text_of
from aipo.tasks.files import shown

MAX_UNPACKED_BYTES = 1 << 30
MBPP_TEST_IDS = range(11, 511)
MBPP_SLOW_IDS = frozenset({"123"})
"""Rows whose reference solution takes more than half of `sandbox.cpu_s`' default on the machine of record: 4
to 10 s of CPU time. Their programs have five times the limit."""
_FENCE = "```"
_PRIVATE = "field 'private_test_cases'"


@dataclass(frozen=True, slots=True)
class PackedTests:
    """LiveCodeBench: tests as they stand in the file; `unpack` opens them, which for some takes 100 MB."""

    public: str
    private: str
    function: str
    """The method of `class Solution` to call; '' for a program that reads standard input."""


IoTest = Mapping[str, str]
"""One test: `input` is what goes in, `output` what must come out, both text."""


class StringUnpickler(pickle.Unpickler):
    """Opens pickles of strings alone: any class or function that a pickle names is an error."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse every global, without which a pickle can neither import nor call anything."""
        raise pickle.UnpicklingError(f"the pickle names {module}.{name}; only a string is allowed")

    def persistent_load(self, pid: Any) -> Any:
        """Refuse every reference to something outside."""
        raise pickle.UnpicklingError("the pickle refers to an object outside; only a string is allowed")


def mbpp_row(default: str, row: Mapping[str, Any]) -> Row:
    """Read a row of MBPP (sanitized). The gold is the reference program, which no policy sees."""
    asserts = _texts(row, "test_list")
    if not asserts:
        raise ValueError("field 'test_list': []; a program is graded by its asserts, give at least one")
    imports = _texts(row, "test_imports") if "test_imports" in row else ()
    problem = f"{text_of(row, 'prompt')}\n\nThese tests must pass:\n\n" + "\n".join(asserts)
    identity, tests = id_of(row, default, "task_id"), assert_tests(asserts, imports)
    return Row(
        id=identity,
        problem=problem,
        gold=text_of(row, "code"),
        kind=Kind.CODE,
        material=SlowCallTests(tests.calls, tests.prelude) if identity in MBPP_SLOW_IDS else tests,
    )


def mbpp_test_row(row: Mapping[str, Any]) -> bool:
    """Tell whether a raw row belongs to MBPP's test split: task ids 11 to 510."""
    return row.get("task_id") in MBPP_TEST_IDS


def livecodebench_row(default: str, row: Mapping[str, Any]) -> Row:
    """Read a row of LiveCodeBench; its tests are opened once, to check and count them, and let go."""
    question, starter = text_of(row, "question_content"), str(row.get("starter_code") or "")
    metadata = _json("metadata", str(row.get("metadata") or "{}"))
    function = str(metadata.get("func_name", "")) if isinstance(metadata, Mapping) else ""
    packed = PackedTests(
        str(row.get("public_test_cases") or "[]"), text_of(row, "private_test_cases"), function
    )
    tests = unpack(packed)
    if not tests:
        raise ValueError("field 'private_test_cases': holds no test; give the original file")
    if bool(function) != bool(starter.strip()):
        raise ValueError(
            f"field 'metadata': func_name {function!r} with starter_code {shown(starter)}; a problem has "
            "both or neither"
        )
    if function:
        ask = f"Complete this class:\n\n{_FENCE}python\n{starter.rstrip()}\n{_FENCE}"
    else:
        ask = "The program reads standard input and writes to standard output."
    digest = hashlib.sha256(packed.private.encode()).hexdigest()[:12]
    gold = f"{len(tests)} tests {digest}"
    stratum = str(row.get("difficulty") or "all")
    identity = id_of(row, default, "question_id")
    problem = f"{question}\n\n{ask}"
    return Row(
        id=identity,
        problem=problem,
        gold=gold,
        kind=Kind.CODE,
        material=packed,
        stratum=stratum,
        has_reference=False,
    )


def unpack(packed: PackedTests) -> tuple[IoTest, ...]:
    """Return public and private tests. Raises `ValueError` for what is not a list of them."""
    public = _tests("public_test_cases", packed.public)
    text = packed.private
    if not text.lstrip().startswith("["):
        text = _unpickled(text)
    return (*public, *_tests("private_test_cases", text))


def code_tests(material: CodeTests | PackedTests) -> CodeTests:
    """Return what a program is run with; packed tests are opened anew each time, and not kept."""
    if not isinstance(material, PackedTests):
        return material
    tests = unpack(material)
    return function_tests(tests, material.function) if material.function else stdin_tests(tests)


def _unpickled(text: str) -> str:
    content = _decompressed(text)
    try:
        value = StringUnpickler(io.BytesIO(content)).load()
    # What the pickle machine raises on a malformed stream.
    except (
        pickle.UnpicklingError,
        ArithmeticError,
        AttributeError,
        EOFError,
        ImportError,
        LookupError,
        MemoryError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(f"{_PRIVATE}: {error}; give the original file") from error
    if type(value) is not str:
        raise ValueError(f"{_PRIVATE}: the pickle holds {type(value).__name__}; only a string is allowed")
    return value


def _decompressed(text: str) -> bytes:
    opener = zlib.decompressobj()
    try:
        content = opener.decompress(base64.b64decode(text, validate=True), MAX_UNPACKED_BYTES)
    except (ValueError, zlib.error) as error:
        raise ValueError(f"{_PRIVATE}: not base64 of zlib: {error}; give the original file") from error
    if not opener.eof:
        raise ValueError(f"{_PRIVATE}: cut, or larger than {MAX_UNPACKED_BYTES >> 20} MB unpacked")
    return content


def _tests(field: str, text: str) -> tuple[IoTest, ...]:
    found = _json(field, text)
    if not isinstance(found, list):
        raise ValueError(f"field {field!r}: {shown(found)}; must be a list of tests")
    tests: list[IoTest] = []
    for number, test in enumerate(found):
        if not isinstance(test, Mapping) or not all(
            isinstance(test.get(k), str) for k in ("input", "output")
        ):
            raise ValueError(
                f"field {field!r}: test {number}: {shown(test)}; must have text input and output"
            )
        tests.append({"input": test["input"], "output": test["output"]})
    return tuple(tests)


def _json(field: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"field {field!r}: not JSON ({error}): {shown(text)}") from error


def _texts(row: Mapping[str, Any], field: str) -> tuple[str, ...]:
    if field not in row:
        raise ValueError(f"no field {field!r}; the row has {', '.join(map(repr, row))}")
    value = row[field]
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(map(_is_text, value)):
        raise ValueError(f"field {field!r}: {shown(value)}; must be a list of texts")
    return tuple(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
