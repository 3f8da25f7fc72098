"""Reasoning-gym items, drawn once and frozen: a JSON-lines file beside a manifest that holds its hash.

No question of a drawn split occurs in a split that was drawn before. What was frozen is read back byte by
byte or refused.

Items are never drawn again to evaluate: generators depend on the process's hash seed, so that the same seed
gives other items in another process. Item i of a generator uses seed + i, hence seeds that are far apart.
"""

import hashlib
import json
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aipo.grading.gym import MIN_SCORE
from aipo.tasks.base import Split, TaskError
from aipo.tasks.benchmarks.gym_tasks import TASKS, GymTask, score
from aipo.tasks.files import canonical, compress, question_key

SEEDS: Mapping[Split, int] = {Split.TRAIN: 0, Split.VALIDATION: 100_000_000, Split.TEST: 200_000_000}
MANIFEST = "manifest.json"
TRIES_PER_ITEM = 20
"""A configuration with fewer different questions than asked for is an error after so many draws for each."""

Row = dict[str, Any]


def draw(task: GymTask, split: Split, items: int, taken: set[str]) -> Iterator[Row]:
    """Yield `items` rows of one configuration; questions in `taken` are passed over, new ones join it.

    Raises:
        TaskError: the configuration has too few different questions, or its own answer does not score.
    """
    import reasoning_gym

    parameters = {**task.parameters, **(task.train_parameters if split is not Split.TEST else {})}
    most = items * TRIES_PER_ITEM
    drawn = reasoning_gym.create_dataset(task.generator, seed=SEEDS[split], size=most, **parameters)
    found = 0
    for index in range(most):
        if found == items:
            return
        entry = drawn[index]
        key = question_key(str(entry["question"]))
        # An `ab` program may reduce to nothing: an empty gold, which silence would match.
        if key in taken or not str(entry["answer"]).strip():
            continue
        taken.add(key)
        row = {
            "id": f"{task.name}/{split.value}/{index}",
            "task": task.name,
            "question": entry["question"],
            "answer": entry["answer"],
            "metadata": entry["metadata"],
        }
        row = json.loads(canonical(row))  # what is scored is what is read back
        if score(row["answer"].strip(), row) < MIN_SCORE:
            raise TaskError(f"{row['id']}: reasoning-gym's own answer does not score; leave {task.name} out")
        found += 1
        yield row
    if found < items:
        raise TaskError(
            f"reasoning-gym task {task.name}: {found} different questions in {most} draws; ask for at most "
            f"{found} for each task"
        )


def freeze(folder: Path, split: Split, rows: Sequence[Row], *, packed: bool = False) -> Path:
    """Write the rows of a split and add them to the folder's manifest; return the file.

    Raises:
        TaskError: the split is there already. What is frozen is never drawn again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"reasoning_gym_{split.value}.jsonl{'.gz' if packed else ''}"
    if path.exists():
        raise TaskError(f"{path}: is frozen already; give another folder, or delete it by hand")
    text = "".join(canonical(row) + "\n" for row in rows).encode()
    path.write_bytes(compress(text) if packed else text)
    manifest = _manifest(folder)
    manifest[path.name] = {
        "rows": len(rows),
        "sha256": hashlib.sha256(text).hexdigest(),
        "seed": SEEDS[split],
        "tasks": sorted({row["task"] for row in rows}),
        "reasoning_gym": version("reasoning-gym"),
        "python": platform.python_version(),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return path


def check_frozen(path: Path, content: bytes, split: Split | None = None) -> None:
    """Refuse a file that is not what its manifest says; `content` is the file's text, unpacked.

    Raises:
        TaskError: there is no manifest, it does not name the file, the hash differs, or the items were drawn
            for another split than `split`.
    """
    entry = _manifest(path.parent).get(path.name)
    if entry is None:
        raise TaskError(
            f"{path}: no {MANIFEST} beside it names it; freeze items with `aipo tasks generate reasoning_gym`"
        )
    digest = hashlib.sha256(content).hexdigest()
    if digest != entry["sha256"]:
        raise TaskError(
            f"{path}: its sha256 is {digest[:12]}, {MANIFEST} says {entry['sha256'][:12]}; the file was "
            "changed, freeze it again"
        )
    if split is not None and entry["seed"] != SEEDS[split]:
        drawn = next((each.value for each, seed in SEEDS.items() if seed == entry["seed"]), "unknown")
        raise TaskError(f"{path}: its items are {drawn} items; give it as task.{drawn}_file")


def rows_of(split: Split, items_per_task: int, held_out: Iterable[str], names: Iterable[str]) -> list[Row]:
    """Draw a split over several configurations, in order; no question of `held_out` (texts) is among them."""
    taken = set(map(question_key, held_out))
    return [row for name in names for row in draw(TASKS[name], split, items_per_task, taken)]


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TaskError(f"{path}: cannot be read: {error}; freeze the items again") from error
    if not isinstance(found, dict):
        raise TaskError(f"{path}: {found!r:.60} is not an object; freeze the items again")
    return found
