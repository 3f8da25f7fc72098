"""Runs in processes of their own, several at a time, each resumable.

A job that is finished is not run again; a job that fails stops all, and the end of its log is shown.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

from aipo.config.loader import diff_settings, dump_settings, load_settings
from aipo.config.settings import Settings
from aipo.training.events import Reporter, duration
from aipo.training.journal import METRICS

POLL_S = 0.5
REPORT_EVERY_S = 10.0
LOG_LINES_SHOWN = 15
END_S = 30.0


class JobFailedError(ValueError):
    """A run failed; the message holds the end of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One `aipo VERB` on settings of its own."""

    title: str
    verb: str
    settings: Settings
    finished: Callable[[], bool]
    steps: int = 0
    """Training steps; 0 for a job that reports none."""
    needs: Path | None = None
    """A file that another job writes; it is not started before that is there."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.settings.run.output

    @property
    def expected_length(self) -> int:
        """How long it takes beside others, roughly: steps that consult take about twice as long."""
        return self.steps * (2 if self.settings.agents.enabled else 1)

    def steps_done(self) -> int:
        """Number of steps in the run's metrics."""
        path = self.folder / METRICS
        return path.read_bytes().count(b"\n") if path.exists() else 0


@dataclass(frozen=True, slots=True)
class Pace:
    """How jobs are run."""

    at_once: int
    start_until_s: float = inf
    """On the clock of `time.monotonic`; no job is started after it, those that run are waited for."""


def run_jobs(
    jobs: Sequence[Job], pace: Pace, what: str, when_done: Callable[[Job], None], reporter: Reporter
) -> bool:
    """Run jobs, `pace.at_once` at a time, until all are finished; return whether they are.

    `when_done` is called with each job as it is finished, also with those that were when this began. Stops
    its children on Ctrl-C. Raises `JobFailedError`, also for a job that was begun with other settings,
    finished or not.
    """
    for job in jobs:
        _refuse_other_settings(job)
    waiting = []
    for job in jobs:
        if job.finished():
            when_done(job)
        else:
            waiting.append(job)
    if not waiting:
        return True
    begun = reported = time.monotonic()
    running: dict[str, tuple[Job, subprocess.Popen[bytes]]] = {}
    total, already = len(waiting), sum(job.steps_done() for job in waiting)
    # Seed by seed, so that what is there early is balanced; long ones first, so that none is left alone.
    queue = sorted(waiting, key=lambda job: (job.settings.run.seed, -job.expected_length))
    try:
        while running or (queue and time.monotonic() < pace.start_until_s):
            while len(running) < pace.at_once and time.monotonic() < pace.start_until_s:
                following = _next(queue, running)
                if following is None:
                    break
                running[following.title] = (following, _start(following, pace.at_once))
            time.sleep(POLL_S)
            for title, (job, process) in list(running.items()):
                if process.poll() is not None:
                    del running[title]
                    _check(job, process.returncode)
                    when_done(job)
            if time.monotonic() - reported > REPORT_EVERY_S:
                reported = time.monotonic()
                done = total - len(queue) - len(running)
                remaining = _remaining(waiting, already, reported - begun)
                reporter.note(f"{what}: {done}/{total} runs done  {_states(running)}  {remaining}")
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            _wait_for_end(process)
    took = duration(time.monotonic() - begun)
    reporter.note(f"{what}: {total - len(queue)}/{total} runs done in {took}")
    return not queue


def _wait_for_end(process: "subprocess.Popen[bytes]") -> None:
    """Wait for a run that was told to end: it finishes its step and saves, if that does not take too long."""
    try:
        process.wait(timeout=END_S)
    except subprocess.TimeoutExpired:
        process.kill()  # the same command continues from its newest checkpoint
        process.wait()


def _next(queue: "list[Job]", running: Mapping[str, object]) -> Job | None:
    """Take the first job that has what it needs; None if all wait for one that runs."""
    for i, job in enumerate(queue):
        if job.needs is None or job.needs.exists():
            return queue.pop(i)
    if queue and not running:
        raise JobFailedError(f"{queue[0].title}: {queue[0].needs} is not there and no run will write it")
    return None


def _refuse_other_settings(job: Job) -> None:
    recipe = _recipe(job)
    if not (recipe.exists() and job.folder.exists()):
        return
    if changed := diff_settings(load_settings(recipe), job.settings):
        raise JobFailedError(
            f"{job.title}: {str(job.folder)!r} holds a run with other settings; choose another "
            "compare.output, go back to its settings or remove that folder:\n  " + "\n  ".join(changed)
        )


def _recipe(job: Job) -> Path:
    return job.folder.parent / f"{job.folder.name}.toml"


def _start(job: Job, at_once: int) -> "subprocess.Popen[bytes]":
    """Start a job with the threads that its settings name, else with its share of the cores."""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    recipe = _recipe(job)
    recipe.write_text(dump_settings(job.settings))
    command = [sys.executable, "-m", "aipo", job.verb, str(recipe)]
    threads = job.settings.run.threads or max(1, (os.cpu_count() or 1) // at_once)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with _log(job).open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def _log(job: Job) -> Path:
    return job.folder.parent / f"{job.folder.name}.log"


def _check(job: Job, code: int) -> None:
    if code == 0 and job.finished():
        return
    tail = "\n  ".join(_log(job).read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:])
    raise JobFailedError(f"{job.title} ended with code {code}; the end of {_log(job)}:\n  {tail}")


def _states(running: "dict[str, tuple[Job, subprocess.Popen[bytes]]]") -> str:
    return "  ".join(
        f"[{title} {job.steps_done()}/{job.steps}]" if job.steps else f"[{title}]"
        for title, (job, _) in running.items()
    )


def _remaining(jobs: Sequence[Job], already: int, elapsed_s: float) -> str:
    steps, done = sum(job.steps for job in jobs), sum(job.steps_done() for job in jobs)
    if done <= already:
        return ""
    return f"remaining about {duration((steps - done) * elapsed_s / (done - already))}"
