"""A benchmark's rows from a local file or from the hub, checked before anything else sees them.

What is returned has distinct ids and questions, golds, and the expected number of rows. Anything else is a
`TaskError` that names the file, the line or row, and the fix.
"""

from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from aipo.tasks.base import Split, TaskError
from aipo.tasks.benchmarks.benchmark import Benchmark, Kind, Part, Row
from aipo.tasks.files import SUFFIXES, question_key, read_bytes, rows, shown

Placed = Iterable[tuple[str, Any]]
"""(place, raw row): the place is `file:line` or `hub id:row`."""


def load(benchmark: Benchmark, split: Split, path: Path | None = None) -> tuple[Row, ...]:
    """Return a split's rows: from `path`, from what is packaged, or from the hub, in this order.

    Raises:
        TaskError: the benchmark has no such split, or a file, the hub or a row cannot be used.
    """
    part = part_of(benchmark, split, given=path is not None)
    if path is None:
        path = packaged(benchmark, split)
    if path is None:
        return _checked(benchmark, part, f"{benchmark.hub} ({part.hub_split})", _from_hub(benchmark, part))
    return _checked(benchmark, part, str(path), _from_file(benchmark, path, split))


def load_whole(benchmark: Benchmark, path: Path) -> tuple[Row, ...]:
    """Return every row of a file, also those outside the split; checked like the others. For validation."""
    counts = tuple(count for part in benchmark.parts.values() for count in part.rows)
    return _checked(
        benchmark, Part(hub_split="", stem="", rows=counts), str(path), _from_file(benchmark, path)
    )


def part_of(benchmark: Benchmark, split: Split, given: bool = False) -> Part:
    """Return a split's description; a training set may be `given` validation rows of its schema.

    Raises:
        TaskError: there is no such split.
    """
    if part := benchmark.parts.get(split):
        return part
    if given and split is Split.VALIDATION and not benchmark.evaluation_only:
        return Part(hub_split="", stem=f"{benchmark.name}_validation")
    if benchmark.evaluation_only:
        raise TaskError(
            f"{benchmark.name} is for evaluation only and has no {split.value} split: train, and choose "
            "settings, on another task, for example task.name = 'gsm8k'"
        )
    raise TaskError(f"{benchmark.name} has no {split.value} split; it has {', '.join(benchmark.parts)}")


def local_file(benchmark: Benchmark, split: Split, folder: Path) -> Path | None:
    """Return a split's file in a data folder: the stem of its part with a suffix that can be read."""
    part = benchmark.parts.get(split)
    if part is None:
        return None
    found = (folder / f"{part.stem}{suffix}" for suffix in SUFFIXES)
    return next((path for path in found if path.is_file()), None)


def refuse_evaluation_file(path: Path, setting: str, benchmarks: Iterable[Benchmark]) -> None:
    """Refuse a file to train on that has the name of a benchmark's test file.

    Simplification: the name is looked at, not the content; `aipo tasks contamination` looks at that.

    Raises:
        TaskError: the file's name, without suffixes, is that of a test split.
    """
    stem = path.name.partition(".")[0]
    for benchmark in benchmarks:
        part = benchmark.parts.get(Split.TEST)
        if part is not None and stem == part.stem:
            raise TaskError(
                f"{setting} = '{path}': {benchmark.title} is for evaluation only; nothing is trained on its "
                "test problems. Give another file, for example GSM8K's training file"
            )


def packaged(benchmark: Benchmark, split: Split) -> Path | None:
    """Return the file that this package holds of a split, if any: reasoning-gym's frozen test items."""
    if benchmark.kind is not Kind.REASONING_GYM or split is not Split.TEST:
        return None
    path = Path(str(files("aipo.tasks.benchmarks").joinpath("data")))
    return local_file(benchmark, split, path)


def _checked(benchmark: Benchmark, part: Part, origin: str, placed: Placed) -> tuple[Row, ...]:
    kept: list[Row] = []
    place_of_id: dict[str, str] = {}
    place_of_text: dict[str, str] = {}
    count = 0
    for index, (place, raw) in enumerate(placed):
        count += 1
        row = _row(benchmark, place, raw, f"{part.stem or benchmark.name}/{index}")
        key = question_key(row.problem)
        if benchmark.repeats and key in place_of_text:
            continue
        if first := place_of_id.get(row.id) if not benchmark.repeats else None:
            raise TaskError(f"{place}: id {row.id!r} also stands at {first}; ids must differ")
        if first := place_of_text.get(key):
            raise TaskError(f"{place}: the problem also stands at {first}; give a file without repetitions")
        place_of_id[row.id] = place_of_text[key] = place
        if part.select is None or part.select(raw):
            kept.append(row)
    if part.rows and count not in part.rows:
        counts = " or ".join(map(str, part.rows))
        raise TaskError(
            f"{origin}: {count} rows; {benchmark.title} has {counts}: the file is cut, repeated or another "
            "version. Give the whole file; a part of it can be read with task.name = 'jsonl'"
        )
    if not kept:
        raise TaskError(f"{origin}: no rows of {benchmark.title}; give the whole file")
    result = tuple(_distinct(kept)) if benchmark.repeats else tuple(kept)
    if benchmark.check is not None:
        try:
            benchmark.check(result)
        except ValueError as error:
            raise TaskError(f"{origin}: {error}") from error
    return result


def _row(benchmark: Benchmark, place: str, raw: Any, default_id: str) -> Row:
    if not isinstance(raw, Mapping):
        raise TaskError(f"{place}: {shown(raw)} is not an object; write one JSON object for each row")
    if missing := [column for column in benchmark.columns if column not in raw]:
        raise TaskError(
            f"{place}: no field {', '.join(map(repr, missing))}; {benchmark.title} has them, the row has "
            f"{', '.join(map(repr, raw))}. For columns of your own use task.name = 'jsonl'"
        )
    try:
        return benchmark.convert(default_id, raw)
    except ValueError as error:
        raise TaskError(f"{place}: {error}") from error


def _distinct(kept: list[Row]) -> Iterator[Row]:
    """Yield rows whose ids differ: a data set that repeats problems gives different ones the same index."""
    from dataclasses import replace

    seen: set[str] = set()
    for index, row in enumerate(kept):
        yield replace(row, id=f"{row.id}#{index}") if row.id in seen else row
        seen.add(row.id)


def _from_file(benchmark: Benchmark, path: Path, split: Split | None = None) -> Iterator[tuple[str, Any]]:
    if benchmark.kind is Kind.REASONING_GYM:
        from aipo.tasks.benchmarks.gym_freeze import check_frozen

        check_frozen(path, read_bytes(path), split)
    for line, raw in rows(path):
        yield f"{path}:{line}", raw


def _from_hub(benchmark: Benchmark, part: Part) -> Iterator[tuple[str, Any]]:
    if not benchmark.hub:
        raise TaskError(
            f"{benchmark.name}: no hub holds its {part.stem}; make it with `aipo tasks generate "
            f"{benchmark.name}` and give the file"
        )
    import httpx2
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub import hf_hub_download

    where = f"{benchmark.hub} ({benchmark.configuration or part.hub_split})"
    try:
        if benchmark.hub_file:
            path = hf_hub_download(
                benchmark.hub, part.hub_split, repo_type="dataset", revision=benchmark.revision
            )
            yield from _from_file(benchmark, Path(path))
            return
        found = load_dataset(
            benchmark.hub, benchmark.configuration, split=part.hub_split, revision=benchmark.revision
        )
    except TaskError:
        raise
    # What the two libraries raise: no network, gated or absent data, a script that they refuse.
    except (DatasetsError, httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise TaskError(
            f"{where}: cannot be fetched from the hub ({type(error).__name__}: {error!s:.200}); give a local "
            f"file as task.{_setting(benchmark, part)}_file, or log in for a gated one"
        ) from error
    for index, raw in enumerate(found, start=1):
        yield f"{benchmark.hub}:{index}", raw


def _setting(benchmark: Benchmark, part: Part) -> str:
    return next(split.value for split, each in benchmark.parts.items() if each is part)
