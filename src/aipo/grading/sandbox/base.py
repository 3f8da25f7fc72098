"""The words of the sandbox: programs, limits, outcomes, and what a back end is.

A run's outcome says whose doing its end was: the program's or the sandbox's. Tests, expected values and
verdicts are not known here.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Backend(StrEnum):
    """What stands between an untrusted program and this machine."""

    BUBBLEWRAP = "bubblewrap"
    """Namespaces by bwrap, then seccomp and rlimits."""
    LANDLOCK = "landlock"
    """Landlock, seccomp and rlimits in the process itself: needs no privileges and no namespaces."""
    SANDBOXFUSION = "sandboxfusion"
    """A SandboxFusion server; its container is the wall."""


class Outcome(StrEnum):
    """How a run ended."""

    EXITED = "exited"
    """The program ended by itself; the exit code is whatever it wished."""
    SIGNALLED = "signalled"
    """A signal that the program brought upon itself: a segmentation fault, an abort."""
    CPU_LIMIT = "cpu_limit"
    WALL_LIMIT = "wall_limit"
    OUTPUT_LIMIT = "output_limit"
    SANDBOX_ERROR = "sandbox_error"
    """The program did not run, or was killed from outside: nothing is known of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one run may use. `cpu_s` is the limit that counts; `wall_s` is for programs that wait.

    Of the wall clock counts what a program sleeps, neither what it computes nor what a busy machine keeps it
    waiting. SandboxFusion cannot tell them apart: there both limits together are the deadline.
    """

    cpu_s: float = 6.0
    wall_s: float = 20.0
    memory_mb: int = 1024
    """Address space of the process; since it cannot fork, of the run."""
    file_mb: int = 64
    """What a program may write in all; one file of it with bubblewrap, its share of `open_files` with
    Landlock."""
    threads: int = 64
    open_files: int = 64
    output_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not (value := getattr(self, name)) > 0:
                raise ValueError(f"sandbox.{name} = {value!r}: must be positive")


@dataclass(frozen=True, slots=True)
class Program:
    """An untrusted Python program and its standard input."""

    source: str
    stdin: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How a run ended, and what the program wrote to its standard output up to then."""

    outcome: Outcome
    stdout: bytes = b""
    status: int = 0
    """The exit code of EXITED, the signal of SIGNALLED."""
    wall_s: float = 0.0
    cpu_s: float = 0.0
    slept_s: float = 0.0
    """Wall time in which the program neither computed nor waited for its turn."""
    kept_waiting_s: float = 0.0
    """Time in which it could have computed and this machine let others; what was seen of it."""
    detail: str = ""
    """For SANDBOX_ERROR: what failed."""


class Sandbox(Protocol):
    """A back end that has been seen to work."""

    backend: Backend
    description: str
    """One line for reports: which back end, in which mode, with which interpreter."""

    def run(self, program: Program, limits: Limits) -> Run:
        """Run a program to its end. Blocks; safe from several threads; never raises for what a program
        does."""
        ...


class SandboxError(RuntimeError):
    """There is no sandbox; the message names the field, its value and the fix."""
