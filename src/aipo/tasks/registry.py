"""The tasks by name: what `task.name` and `aipo evaluate --benchmarks` may say.

From outside, `module:attribute` is a `TaskSpec`, a `Benchmark`, a task, or a class or function without
parameters that makes one. All of them come out as a `TaskSpec`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from aipo.config.settings import SandboxSettings, TaskSettings
from aipo.core.registry import Registry
from aipo.tasks.base import Split, Task, TaskError, TaskSpec
from aipo.tasks.benchmarks.benchmark import Benchmark
from aipo.tasks.benchmarks.catalogue import BENCHMARKS
from aipo.tasks.benchmarks.load import packaged
from aipo.tasks.benchmarks.task import BenchmarkTask, GradingLimits
from aipo.tasks.cpu.specs import CPU_TASKS
from aipo.tasks.gym import GYM_SPEC
from aipo.tasks.jsonl import JsonlSource, JsonlTask
from aipo.tasks.verifiers import VERIFIERS_SPEC
from aipo.tasks.words.elements import WORD_TASKS
from aipo.tasks.words.rules import RULES_SPEC

Entry = TaskSpec | Benchmark | Task | Callable[[], Task]
GROUP = "aipo.tasks"
"""The group of entry points that an installed package names its tasks in."""


def task_or_maker(found: object) -> bool:
    """Say whether something can stand behind a task's name."""
    return isinstance(found, TaskSpec | Benchmark) or hasattr(found, "problems") or callable(found)


TASKS: Registry[Entry] = Registry("task.name", task_or_maker, GROUP)


def task_spec(name: str) -> TaskSpec:
    """Return the entry of a task. Raises `ValueError` for a name that is empty or stands for nothing."""
    if not name:
        raise TaskError(
            "task.name is not set; name the task to train or evaluate on: task.name = 'jsonl' with "
            "task.train_file for problems of your own, a benchmark that `aipo tasks list` prints, or a task "
            "of your own as 'module:attribute'"
        )
    found = TASKS[name]
    if isinstance(found, TaskSpec):
        return found
    if isinstance(found, Benchmark):
        return benchmark_spec(found)
    make = found if callable(found) else lambda: found
    return TaskSpec(
        name=str(getattr(found, "name", name)),
        make=lambda settings, sandbox: make(),
        source=name,
    )


def benchmark_spec(benchmark: Benchmark) -> TaskSpec:
    """Return the entry of a benchmark as a task."""
    return TaskSpec(
        name=benchmark.name,
        title=benchmark.title,
        make=partial(_benchmark_task, benchmark),
        kind=benchmark.kind.value,
        source="packaged" if packaged(benchmark, Split.TEST) else benchmark.hub,
        notes=benchmark.notes,
        samples=benchmark.samples,
        max_response_tokens=benchmark.max_response_tokens,
        takes_files=True,
        benchmark=benchmark,
    )


def _files(settings: TaskSettings) -> dict[Split, Any]:
    given = {
        Split.TRAIN: settings.train_file,
        Split.VALIDATION: settings.validation_file,
        Split.TEST: settings.test_file,
    }
    return {split: path for split, path in given.items() if path}


def _benchmark_task(benchmark: Benchmark, settings: TaskSettings, sandbox: SandboxSettings) -> Task:
    limits = GradingLimits(settings.grade_timeout_s, settings.grade_workers, sandbox)
    return BenchmarkTask(benchmark, _files(settings), limits)


def jsonl_sources(settings: TaskSettings) -> dict[Split, JsonlSource]:
    """Return the files of problems of one's own, with their columns."""
    columns = settings.model_dump(include=set(JsonlSource.__dataclass_fields__))
    return {split: JsonlSource(path=path, **columns) for split, path in _files(settings).items()}


def _jsonl_task(settings: TaskSettings, sandbox: SandboxSettings) -> Task:
    s = settings
    return JsonlTask(jsonl_sources(s), s.match, s.grade_timeout_s, s.grade_workers, s.on_bad_row)


TASKS.register(
    "jsonl", TaskSpec(name="jsonl", title="Problems of your own", make=_jsonl_task, takes_files=True)
)
for _benchmark in BENCHMARKS:
    TASKS.register(_benchmark, BENCHMARKS[_benchmark])
for _spec in (GYM_SPEC, VERIFIERS_SPEC, *CPU_TASKS, *WORD_TASKS, RULES_SPEC):
    TASKS.register(_spec.name, _spec)
