"""Runs in processes of their own, several at a time, each resumable.

Owns processes, logs and progress. Must not know what a run computes beyond its folder.
Invariant: a job that is finished is not run again; a job that fails stops all, and its log is shown.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aipo.cli.console import console, duration
from aipo.config.loader import diff_settings, dump_settings, load_settings
from aipo.config.settings import Settings
from aipo.train.journal import METRICS

POLL_S = 0.5
REPORT_EVERY_S = 10.0
LOG_LINES_SHOWN = 15


class JobFailedError(ValueError):
    """A run failed; the message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Job:
    """One `aipo VERB` on settings of its own."""

    title: str
    verb: str
    settings: Settings
    finished: Callable[[], bool]
    steps: int = 0
    """Training steps; 0 for a job that reports none."""
    options: tuple[str, ...] = ()

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


def run_jobs(jobs: Sequence[Job], at_once: int, what: str) -> None:
    """Run jobs, `at_once` at a time, until all are finished.

    Stops its children on Ctrl-C. Raises `JobFailedError`, also for a job that was begun with other settings,
    finished or not.
    """
    for job in jobs:
        _refuse_other_settings(job)
    waiting = [job for job in jobs if not job.finished()]
    if not waiting:
        return
    begun = reported = time.monotonic()
    running: dict[str, tuple[Job, subprocess.Popen[bytes]]] = {}
    total, already = len(waiting), sum(job.steps_done() for job in waiting)
    # Long ones first, so that none is left alone at the end.
    queue = sorted(waiting, key=lambda job: -job.expected_length)
    try:
        while queue or running:
            while queue and len(running) < at_once:
                job = queue.pop(0)
                running[job.title] = (job, _start(job))
            time.sleep(POLL_S)
            for title, (job, process) in list(running.items()):
                if process.poll() is not None:
                    del running[title]
                    _check(job, process.returncode)
            if time.monotonic() - reported > REPORT_EVERY_S:
                reported = time.monotonic()
                done = total - len(queue) - len(running)
                remaining = _remaining(waiting, already, reported - begun)
                console.print(
                    f"{what}: {done}/{total} runs done  {_states(running)}  {remaining}", markup=False
                )
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait(timeout=30)
    console.print(f"{what}: {total}/{total} runs done in {duration(time.monotonic() - begun)}", markup=False)


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


def _start(job: Job) -> "subprocess.Popen[bytes]":
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    recipe = _recipe(job)
    recipe.write_text(dump_settings(job.settings))
    command = [sys.executable, "-m", "aipo", job.verb, str(recipe), *job.options]
    environment = os.environ | {"OMP_NUM_THREADS": str(job.settings.run.threads)}
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
