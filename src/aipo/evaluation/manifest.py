"""What an evaluation folder holds, fixed at its start: the policy, the questions and the way of sampling.

A folder is filled under one manifest only; a difference is reported field by field, never ignored.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aipo.training.durable import hold_lock, write_whole

SCHEMA = 1
MANIFEST, LOCK = "manifest.json", ".lock"
FINGERPRINT_DIGITS = 16

_WEIGHTS = ("*.safetensors", "*.bin")
_BESIDE = ("*.json", "*.jinja", "*.txt", "*.model")
"""What decides how a policy answers, beside its weights: configuration, tokenizer, chat template."""


class EvaluationError(ValueError):
    """An evaluation folder cannot be used; the message names it, the difference and the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """One benchmark of an evaluation: which questions, and how each is sampled."""

    name: str
    title: str
    kind: str
    digest: str
    """Of ids, texts as they are asked, golds and tests."""
    source: str
    """The file, the hub id or `packaged`: reported, not compared."""
    problems: int
    whole: bool
    """Whether these are all of the benchmark's questions."""
    samples: int
    """n of Avg@n."""
    max_response_tokens: int
    notes: tuple[str, ...] = ()
    """What a reader of its number must know; reported, not compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything that the numbers depend on."""

    checkpoint: str
    """As it was given: reported, not compared. `policy` says which weights it names."""
    policy: str
    sampling: Mapping[str, Any]
    """Temperature, top_p, top_k, solo mode, type of the weights, context length, engine."""
    prompts: Mapping[str, str]
    """Digest of each condition's system prompt."""
    seed: int
    benchmarks: tuple[Questions, ...]
    graders: Mapping[str, str]
    """Versions of what decides verdicts."""
    agents: Mapping[str, Any] = field(default_factory=dict)
    """Who answers in the condition `agents`, with the limits; {} without."""
    made_with: Mapping[str, str] = field(default_factory=dict)
    """Versions of the libraries: reported, not compared."""
    schema: int = SCHEMA

    @property
    def conditions(self) -> tuple[str, ...]:
        """The conditions that are sampled, `solo` first."""
        return ("solo", "agents") if self.agents else ("solo",)

    @property
    def samples(self) -> int:
        """How many samples there will be."""
        return len(self.conditions) * sum(each.problems * each.samples for each in self.benchmarks)

    def questions(self, name: str) -> Questions:
        """Return a benchmark by name. Raises `KeyError`."""
        return {each.name: each for each in self.benchmarks}[name]


@contextmanager
def claim(folder: Path, manifest: Manifest) -> Iterator[None]:
    """Make the folder, or go on in it; nobody else writes to it meanwhile.

    Raises `EvaluationError` for another evaluation's folder, a foreign one, or one that is being written to.
    """
    _refuse_other(folder, manifest)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / LOCK) as free:
        if not free:
            raise EvaluationError(
                f"--output {folder} is being written to by another process; wait for it or choose another "
                "folder"
            )
        path = folder / MANIFEST
        if not path.exists():
            write_whole(path, json.dumps(asdict(manifest), indent=1) + "\n")
        yield


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a file's lock; yield whether it was free. The end of the process lets go of it too."""
    lock = hold_lock(path)
    with lock or nullcontext():
        yield lock is not None


def _refuse_other(folder: Path, manifest: Manifest) -> None:
    """Refuse a folder that holds another evaluation, or files that are none. Raises `EvaluationError`."""
    if is_evaluation(folder):
        if changed := differences(read_manifest(folder), manifest):
            raise EvaluationError(
                f"--output {folder} holds an evaluation with other settings; choose another folder or go "
                "back to its settings:\n  " + "\n  ".join(changed)
            )
        return
    ours = {folder / LOCK, (folder / MANIFEST).with_suffix(".partial")}
    if folder.exists() and not (folder.is_dir() and set(folder.iterdir()) <= ours):
        raise EvaluationError(
            f"--output {folder} is not empty and holds no evaluation; choose another folder"
        )


def is_evaluation(folder: Path) -> bool:
    """Tell a folder of `aipo evaluate CHECKPOINT` from any other by its content."""
    path = folder / MANIFEST
    if not path.is_file():
        return False
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"policy", "benchmarks", "sampling"} <= set(found)


def read_manifest(folder: Path) -> Manifest:
    """Return a folder's manifest. Raises `EvaluationError`."""
    path = folder / MANIFEST
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        if row.get("schema") != SCHEMA:
            raise EvaluationError(
                f"{path}: schema {row.get('schema')!r}; this version of aipo reads schema {SCHEMA}"
            )
        benchmarks = tuple(Questions(**{**q, "notes": tuple(q["notes"])}) for q in row["benchmarks"])
        return Manifest(**{**row, "benchmarks": benchmarks})
    except EvaluationError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise EvaluationError(f"{path}: cannot be read: {error!r}; evaluate into a new folder") from error


_TOLD = ("checkpoint", "made_with")
_TOLD_OF_QUESTIONS = ("source", "notes", "title", "whole")


def differences(one: Manifest, other: Manifest, leave_out: Iterable[str] = ()) -> list[str]:
    """Return each compared field that differs, as `field: value | value`; `leave_out` names fields more."""
    sides = [dict(_flat("", _compared(each, {*_TOLD, *leave_out}))) for each in (one, other)]
    missing = "(none)"
    return [
        f"{key}: {sides[0].get(key, missing)} | {sides[1].get(key, missing)}"
        for key in dict.fromkeys([*sides[0], *sides[1]])
        if sides[0].get(key, missing) != sides[1].get(key, missing)
    ]


def fingerprint(folder: Path) -> str:
    """Return a digest of a policy's weights, configuration, tokenizer and chat template.

    The files are read whole: about a second for each GB. Their names count, their dates do not.
    """
    whole = hashlib.sha256()
    for path in sorted({p for pattern in (*_WEIGHTS, *_BESIDE) for p in folder.glob(pattern)}):
        with path.open("rb") as file:
            whole.update(f"{path.name}\x1f{hashlib.file_digest(file, 'sha256').hexdigest()}\x1f".encode())
    return whole.hexdigest()[:FINGERPRINT_DIGITS]


def _compared(manifest: Manifest, left_out: set[str]) -> dict[str, Any]:
    table = {key: value for key, value in asdict(manifest).items() if key not in left_out}
    if "benchmarks" in table:
        table["benchmarks"] = {
            each["name"]: {k: v for k, v in each.items() if k not in {"name", *_TOLD_OF_QUESTIONS}}
            for each in table["benchmarks"]
        }
    return table


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        # As JSON reads it back: a tuple is a list there.
        yield prefix, list(value) if isinstance(value, tuple) else value
        return
    for key, inner in value.items():
        yield from _flat(f"{prefix}.{key}" if prefix else str(key), inner)
