"""The benchmarks of an evaluation by name, with their questions from files, the package or the hub."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from aipo.assembly.evaluation_options import EvaluationOptions, chosen_names, counts_of, files_of
from aipo.assembly.parts import make_task
from aipo.config.settings import Settings
from aipo.core.registry import RegistryError
from aipo.evaluation.manifest import Questions
from aipo.evaluation.sampling import first_of_each_stratum
from aipo.tasks.base import Problem, Split, Task, TaskError, TaskSpec
from aipo.tasks.benchmarks.catalogue import PAPER_EIGHT
from aipo.tasks.benchmarks.load import local_file, packaged
from aipo.tasks.benchmarks.task import BenchmarkTask
from aipo.tasks.registry import task_spec

DIGEST_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A benchmark that is ready to be asked."""

    questions: Questions
    task: Task
    problems: tuple[Problem, ...]


def load_entries(settings: Settings, options: EvaluationOptions, opened: ExitStack) -> list[Entry]:
    """Load every benchmark that is asked for. Graders' processes end with `opened`.

    Raises `ValueError` for names, files and rows that cannot be used, before a policy is loaded.
    """
    try:
        asked = map(task_spec, chosen_names(options.benchmarks or "all", PAPER_EIGHT))
        specs = {spec.name: spec for spec in asked}
    except RegistryError as error:
        raise RegistryError(f"--benchmarks: {error}") from None
    names = list(specs)
    counts = counts_of(options.samples, "--samples", names)
    limits = counts_of(options.max_response_tokens, "--max-response-tokens", names)
    files = _files(specs, options)
    entries = []
    for name, spec in specs.items():
        task = _task(spec, files.get(name), settings)
        opened.callback(getattr(task, "close", lambda: None))
        everything = task.problems(Split.TEST)
        chosen = first_of_each_stratum(everything, options.problems) if options.problems else everything
        questions = Questions(
            name=name,
            title=spec.title or name,
            kind=spec.kind,
            digest=digest(task, chosen),
            source=str(files.get(name) or spec.source),
            problems=len(chosen),
            whole=len(chosen) == len(everything),
            samples=counts.get(name, spec.samples),
            max_response_tokens=limits.get(name, spec.max_response_tokens),
            notes=spec.notes,
        )
        entries.append(Entry(questions=questions, task=task, problems=tuple(chosen)))
    return entries


def digest(task: Task, problems: Sequence[Problem]) -> str:
    """Return a digest of questions with all that their verdicts depend on but the response."""
    whole = sha256()
    for problem in problems:
        own = (
            task.fingerprint(problem)
            if isinstance(task, BenchmarkTask)
            else f"{problem.text}\x1f{problem.gold}"
        )
        whole.update(f"{problem.id}\x1f{problem.stratum}\x1f{own}\x1e".encode(errors="surrogatepass"))
    return whole.hexdigest()[:DIGEST_DIGITS]


def _files(specs: Mapping[str, TaskSpec], options: EvaluationOptions) -> dict[str, Path]:
    """Return the local files, each of which exists; with `--data` one for each benchmark that needs one."""
    files = files_of(options.files, list(specs))
    if missing := [f"{name}={path}" for name, path in files.items() if not path.is_file()]:
        raise TaskError(f"--files {','.join(missing)}: no such file")
    for name in files:
        if not specs[name].takes_files:
            raise TaskError(f"--files {name}=…: {name} makes its own problems; leave it out")
    if options.data is None:
        return files
    if not options.data.is_dir():
        raise TaskError(f"--data {options.data}: no such folder")
    absent = []
    for name, benchmark in ((n, s.benchmark) for n, s in specs.items() if s.benchmark and n not in files):
        part = benchmark.parts.get(Split.TEST)
        if path := local_file(benchmark, Split.TEST, options.data):
            files[name] = path
        elif part and not packaged(benchmark, Split.TEST):
            absent.append(f"{part.stem}.jsonl ({name})")
    if absent:
        raise TaskError(
            f"--data {options.data}: no {', '.join(absent)} in it; add them, give others with --files "
            "NAME=FILE, or leave these out of --benchmarks"
        )
    return files


def _task(spec: TaskSpec, file: Path | None, settings: Settings) -> Task:
    """Return a task with its test questions. Raises `TaskError`."""
    if spec.benchmark and Split.TEST not in spec.benchmark.parts:
        raise TaskError(
            f"--benchmarks: {spec.name} is a training set without a test split; evaluate on one of "
            f"{', '.join(PAPER_EIGHT)}"
        )
    given = {"train_file": None, "validation_file": None, "test_file": file}
    try:
        return make_task(spec, settings.task.model_copy(update=given), settings.sandbox)
    except TaskError as error:
        hint = "" if file or not spec.takes_files else f" (here: --files {spec.name}=FILE, or --data FOLDER)"
        raise TaskError(f"{spec.name}: {error}{hint}") from error
