"""`aipo evaluate CHECKPOINT`: one policy, alone, on benchmarks by name; with agents too, where asked.

Names, files and settings are checked before any compute: questions are loaded before the policy, and the
folder is claimed before the first sample.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from hashlib import sha256
from pathlib import Path

from aipo.assembly.agents import build_agents, oracle_of
from aipo.assembly.parts import make_task, prepare_process
from aipo.assembly.policy import SLOTS, SOLO, Entry, loaded_policy
from aipo.assembly.suite_options import SuiteOptions, chosen_names, counts_of, files_of
from aipo.cli.console import console, plain_errors
from aipo.cli.screen import Terminal
from aipo.config.loader import load_settings
from aipo.config.settings import Settings
from aipo.core.registry import RegistryError
from aipo.core.types import SoloMode
from aipo.evaluation.manifest import EvaluationError, Questions, claim
from aipo.evaluation.pages import RESULTS_MD, ScorePage
from aipo.evaluation.samples import SAMPLES, SampleFile
from aipo.evaluation.sampling import first_of_each_stratum
from aipo.evaluation.scores import read_evaluation
from aipo.tasks.base import Problem, Split, Task, TaskError, TaskSpec
from aipo.tasks.benchmarks.catalogue import PAPER_EIGHT
from aipo.tasks.benchmarks.load import local_file, packaged
from aipo.tasks.benchmarks.task import BenchmarkTask
from aipo.tasks.registry import task_spec

DIGEST_DIGITS = 16
MEANINGFUL = (
    *("run.device", "run.threads", "policy.dtype", "policy.attention", "rollout.slots"),
    *("engine.", "sandbox.", "agents.", "consult.", "task.grade_timeout_s", "task.grade_workers"),
)


def evaluate_checkpoint(checkpoint: str, overrides: Sequence[str], options: SuiteOptions) -> None:
    """Evaluate a checkpoint on benchmarks; see `aipo evaluate --help`."""
    with plain_errors():
        refuse_no_policy(checkpoint)
        settings = suite_settings(checkpoint, overrides, options)
        folder = options.output or default_output(checkpoint)
        _refuse_bad_sampling(options)
        with ExitStack() as opened:
            entries = load_entries(settings, options, opened)
            agent_set = build_agents(settings, oracle_of(settings)) if options.with_agents else None
            prepare_process(settings)
            policy = loaded_policy(settings, entries, agent_set, options)
            manifest = policy.manifest(checkpoint)
            opened.callback(claim(folder, manifest).release)
            samples = SampleFile(folder)
            samples.mend()
            with closing(policy.engine(manifest, folder)) as engine:
                asyncio.run(policy.sample(manifest, samples, engine, options, Terminal()))
            page = ScorePage(read_evaluation(folder))
            page.write(folder)
        show(page, folder)


def show(page: ScorePage, folder: Path) -> None:
    """Print the tables."""
    for condition in page.manifest.conditions:
        title = "alone: no agent was reachable" if condition == SOLO else "with agents"
        console.print(f"{title}\n{page.table(condition)}\n", markup=False)
        for name, grid in page.strata(condition).items():
            console.print(f"{name}, {condition}, by stratum\n{grid}\n", markup=False)
    if page.worth:
        console.print(f"what the agents were worth\n{page.agents()}\n", markup=False)
    for note in page.notes():
        console.print(note, markup=False)
    console.print(f"results: {folder / RESULTS_MD}\nsamples: {folder / SAMPLES}", markup=False)


def suite_settings(checkpoint: str, overrides: Sequence[str], options: SuiteOptions) -> Settings:
    """Return the settings: those of `--with-agents`, if any, changed by the overrides that mean something."""
    for override in overrides:
        if not override.startswith(MEANINGFUL):
            raise ValueError(
                f"{override}: has no meaning for a checkpoint on benchmarks; what may be changed: "
                f"{', '.join(key.rstrip('.') for key in MEANINGFUL)}; the rest are options, see `aipo "
                "evaluate --help`"
            )
    recipe = options.with_agents
    if recipe is not None and not recipe.is_file():
        raise ValueError(f"--with-agents {recipe}: no such recipe; give a TOML file with a table `agents`")
    settings = load_settings(recipe, [*([] if recipe else [f"rollout.slots={SLOTS}"]), *overrides])
    if recipe and not settings.agents.enabled:
        raise ValueError(f"--with-agents {recipe}: agents.enabled is empty; name agents there")
    return settings.model_copy(update={"policy": settings.policy.model_copy(update={"model": checkpoint})})


def refuse_no_policy(checkpoint: str) -> None:
    """Refuse a folder that holds no model, before anything is loaded."""
    folder = Path(checkpoint)
    if (folder / "config.json").is_file() or not (folder.exists() or _looks_like_a_path(checkpoint)):
        return
    inside = folder / "policy"
    hint = f"; did you mean {inside}?" if (inside / "config.json").is_file() else ""
    raise EvaluationError(
        f"{checkpoint}: no config.json in it; give a Hugging Face model folder, a hub id, or a recipe "
        f"(a .toml file){hint}"
    )


def default_output(checkpoint: str) -> Path:
    """Return where an evaluation goes without `--output`."""
    return Path("runs") / "evaluations" / "-".join(Path(checkpoint).parts[-2:]).lstrip("/-.")


def load_entries(settings: Settings, options: SuiteOptions, opened: ExitStack) -> list[Entry]:
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


def _files(specs: Mapping[str, TaskSpec], options: SuiteOptions) -> dict[str, Path]:
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


def _refuse_bad_sampling(options: SuiteOptions) -> None:
    if options.solo_mode not in list(SoloMode):
        raise ValueError(f"--solo-mode {options.solo_mode}: must be one of {', '.join(SoloMode)}")
    if options.top_p <= 0:
        raise ValueError(f"--top-p {options.top_p}: must be above 0; for greedy samples give --temperature 0")


def _looks_like_a_path(checkpoint: str) -> bool:
    return checkpoint.startswith((".", "/", "~")) or len(Path(checkpoint).parts) > 2
