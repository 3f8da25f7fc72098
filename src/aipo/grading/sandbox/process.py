"""One supervised run of a local back end: start, watch, kill, and say how it ended.

When `supervise` returns, nobody holds the run's output any more: no process of it is left.

Nothing is written to this machine's disk: program and input are sealed memory files, output comes through
pipes.
"""

import fcntl
import marshal
import math
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aipo.grading.sandbox.base import Limits, Outcome, Program, Run
from aipo.grading.sandbox.scratch import Scratch
from aipo.grading.sandbox.seccomp import OWN_PID

BOOTSTRAP = Path(__file__).with_name("bootstrap.py").read_text(encoding="utf-8")
PYTHON_FLAGS = ("-P", "-s", "-S", "-B", "-X", "utf8")
# A fixed hash seed: the same program has the same verdict. Nothing of the caller's environment enters.
ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "HOME": "/tmp",
    "PATH": "/usr/bin:/bin",
    # Each thread would reserve 64 MB of address space of its own, which is what is limited.
    "MALLOC_ARENA_MAX": "2",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
START_S = 30.0
"""Deadline until the program begins; the program's own deadline counts from there."""
_STDERR_BYTES = 4096
_CHUNK = 1 << 16
_STANDSTILL_FACTOR = 10
"""A run that has not ended after this many times its limits is given up, whatever this machine does."""
_SAMPLE_S = 0.5
"""How often CPU time is looked at: bwrap leaves before its child is reaped, and takes the sum with it."""
_SCRATCH_SAMPLE_S = 0.05
"""How often a scratch folder is looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """What the bootstrap of one run is to do."""

    filter: bytes
    uid: int = 0
    """Become this user first; 0: stay."""
    readable: tuple[str, ...] = ()
    """Landlock: what may be read, and that there is a folder to write to; empty: no Landlock."""
    die_with_parent: bool = False
    library_paths: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class _Watch:
    """What is seen of a process while it runs."""

    process: subprocess.Popen[bytes]
    limits: Limits
    started: float
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    ready: bool = False
    ended: bool = False
    stopped: Outcome | None = None
    cpu_s: float = 0.0
    ran_s: float = 0.0
    """As `cpu_s`, and since the program began: as the scheduler counts it."""
    kept_waiting_s: float = 0.0
    scratch: Scratch | None = None
    before_s: tuple[float, float] = (0.0, 0.0)
    """What both were when the program began."""

    def look(self) -> None:
        """See what the process has used up to now."""
        ran_s, waited_s = _scheduled(self.process.pid)
        self.cpu_s = max(self.cpu_s, _cpu_of_tree(self.process.pid))
        self.ran_s = max(self.ran_s, ran_s - self.before_s[0])
        self.kept_waiting_s = max(self.kept_waiting_s, waited_s - self.before_s[1])

    @property
    def sample_s(self) -> float:
        """How often to look."""
        return _SCRATCH_SAMPLE_S if self.scratch else _SAMPLE_S

    def slept_s(self) -> float:
        """Return the wall time in which the program did nothing."""
        return max(0.0, time.monotonic() - self.started - self.ran_s - self.kept_waiting_s)

    def left_s(self) -> float:
        """Return the time that is left, if the program sleeps."""
        if not self.ready:
            return self.started + START_S - time.monotonic()
        most = _STANDSTILL_FACTOR * (self.limits.wall_s + self.limits.cpu_s)
        return min(self.limits.wall_s - self.slept_s(), self.started + most - time.monotonic())


def supervise(
    command: Callable[[int, int, int], Sequence[str]],
    program: Program,
    limits: Limits,
    isolation: Isolation,
) -> Run:
    """Run `command(payload, status, input once more)`, all three descriptors, to its end. Blocks."""
    asked = time.monotonic()
    opened: list[int] = []
    scratch: Scratch | None = None
    try:
        if isolation.readable:
            scratch = Scratch(isolation.uid, limits.file_mb << 20)
        payload = _memory_file(_payload(program, limits, isolation), opened)
        stdin, copy = (_memory_file(program.stdin.encode("utf-8", "replace"), opened) for _ in range(2))
        status, status_end = os.pipe()
        opened += [status, status_end]
        process = subprocess.Popen(
            command(payload, status_end, copy),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(payload, status_end, copy),
            env=ENVIRONMENT,
            cwd=scratch.path if scratch else "/",
            start_new_session=True,
        )
        opened.remove(status_end)
        os.close(status_end)
        watch = _Watch(process=process, limits=limits, started=asked, scratch=scratch)
        try:
            _watch(watch, status)
        finally:
            _end(watch)
    except OSError as error:
        return Run(outcome=Outcome.SANDBOX_ERROR, detail=f"{type(error).__name__}: {error}")
    finally:
        for descriptor in opened:
            os.close(descriptor)
        if scratch:
            scratch.remove()
    return _judge(watch, time.monotonic() - asked)


def _payload(program: Program, limits: Limits, isolation: Isolation) -> bytes:
    megabyte = 1 << 20
    box = {
        "source": program.source,
        "uid": isolation.uid,
        "parent": os.getpid() if isolation.die_with_parent else 0,
        "readable": list(isolation.readable),
        "filter": isolation.filter,
        "own_pid": OWN_PID,
        "library_paths": list(isolation.library_paths),
        "limits": {
            "RLIMIT_AS": limits.memory_mb * megabyte,
            "RLIMIT_CPU": math.ceil(limits.cpu_s),
            # In a scratch folder what is open may be unlinked, and then counts for nobody.
            "RLIMIT_FSIZE": limits.file_mb * megabyte // (limits.open_files if isolation.readable else 1),
            "RLIMIT_NOFILE": limits.open_files,
            # As another user than root one is counted with all of one's own processes.
            "RLIMIT_NPROC": limits.threads + (0 if isolation.uid else _own_tasks()),
            # As judges do: recursion through C needs stack. Only what is used of it counts as memory.
            "RLIMIT_STACK": limits.memory_mb * megabyte // 2,
            "RLIMIT_CORE": 0,
            "RLIMIT_MEMLOCK": 0,
        },
    }
    return marshal.dumps(box, 2)


def _own_tasks() -> int:
    """Return the number of threads of this user."""
    count, uid = 0, os.getuid()
    for entry in os.scandir("/proc"):
        try:
            if entry.name.isdecimal() and entry.stat().st_uid == uid:
                count += os.stat(f"{entry.path}/task").st_nlink - 2
        except OSError:  # it ended meanwhile
            continue
    return count


def _memory_file(content: bytes, opened: list[int]) -> int:
    """Return a descriptor, at its start, of an anonymous file that nobody can change."""
    descriptor = os.memfd_create("aipo", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    opened.append(descriptor)
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def _watch(watch: _Watch, status: int) -> None:
    """Read until the process has ended and its pipes are empty, or a limit is passed."""
    assert watch.process.stdout is not None and watch.process.stderr is not None
    out, error = watch.process.stdout.fileno(), watch.process.stderr.fileno()
    over = os.pidfd_open(watch.process.pid)
    poll = select.poll()
    waiting, sampled = {out, error, status, over}, time.monotonic()
    try:
        for descriptor in waiting:
            poll.register(descriptor, select.POLLIN)
        while waiting:
            if watch.left_s() <= 0 or time.monotonic() - sampled > watch.sample_s:
                sampled = time.monotonic()
                watch.look()
                if watch.scratch and watch.scratch.is_full():
                    watch.stopped = Outcome.OUTPUT_LIMIT
                    return
            if (left_s := watch.left_s()) <= 0:
                watch.stopped = Outcome.WALL_LIMIT
                return
            for descriptor, _ in poll.poll(1000 * min(left_s, watch.sample_s)):
                if descriptor == over:
                    watch.ended = True
                elif _read(watch, descriptor, out, status):
                    continue
                poll.unregister(descriptor)
                waiting.discard(descriptor)
            if len(watch.stdout) > watch.limits.output_bytes:
                watch.stopped = Outcome.OUTPUT_LIMIT
                return
    finally:
        os.close(over)


def _read(watch: _Watch, descriptor: int, out: int, status: int) -> bool:
    """Take what is there; False at the end of the pipe."""
    data = os.read(descriptor, _CHUNK)
    if descriptor == out:
        watch.stdout += data
    elif descriptor == status and data:
        watch.ready, watch.started = True, time.monotonic()
        watch.before_s = _scheduled(watch.process.pid)
    elif len(watch.stderr) < _STDERR_BYTES:
        watch.stderr += data
    return bool(data)


def _end(watch: _Watch) -> None:
    """Kill what is left, wait until the last holder of the output is gone, and reap."""
    process = watch.process
    watch.look()  # one that has ended is still there to be looked at, but not bwrap's child
    if not watch.ended:
        # Not `process.kill()`, which reaps a process that has just ended, and with it what it used.
        os.kill(process.pid, signal.SIGKILL)
    assert process.stdout is not None and process.stderr is not None
    for pipe in (process.stdout, process.stderr):
        while os.read(pipe.fileno(), _CHUNK):
            pass
        pipe.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    watch.cpu_s = max(watch.cpu_s, usage.ru_utime + usage.ru_stime)


def _cpu_of_tree(pid: int) -> float:
    """Return the CPU seconds of a process and its descendants so far; those that cannot be read count as
    0."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0.0
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(_cpu_of_tree(int(child)) for child in children)


def _scheduled(pid: int) -> tuple[float, float]:
    """Return the seconds that a process and its descendants ran, and those that they waited for a processor.

    Without the kernel's schedstat both are 0: then the whole wall clock counts as sleep.
    """
    ran_s = waited_s = 0.0
    try:
        for task in os.scandir(f"/proc/{pid}/task"):
            ran, waited, *_ = Path(f"{task.path}/schedstat").read_text().split()
            ran_s, waited_s = ran_s + int(ran) / 1e9, waited_s + int(waited) / 1e9
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            below = _scheduled(int(child))
            ran_s, waited_s = ran_s + below[0], waited_s + below[1]
    except (OSError, ValueError):  # it ended meanwhile
        pass
    return ran_s, waited_s


def _judge(watch: _Watch, wall_s: float) -> Run:
    def ended(outcome: Outcome, status: int = 0, detail: str = "") -> Run:
        return Run(
            outcome=outcome,
            stdout=bytes(watch.stdout),
            status=status,
            wall_s=wall_s,
            cpu_s=watch.cpu_s,
            slept_s=max(0.0, watch.slept_s() - max(0.0, watch.cpu_s - watch.ran_s)) if watch.ready else 0.0,
            kept_waiting_s=watch.kept_waiting_s,
            detail=detail,
        )

    said = bytes(watch.stderr).decode("utf-8", "replace").strip().rpartition("\n")[2][:300]
    if not watch.ready:
        when = (
            "the program did not begin in time" if watch.stopped else f"exit code {watch.process.returncode}"
        )
        return ended(Outcome.SANDBOX_ERROR, detail=f"{when}: {said}")
    if watch.stopped is not None:
        return ended(watch.stopped)
    code = watch.process.returncode
    number = -code if code < 0 else code - 128 if code > 128 else 0
    if number == signal.SIGXCPU or (
        number == signal.SIGKILL and watch.cpu_s >= watch.limits.cpu_s - 2 * _SAMPLE_S
    ):
        return ended(Outcome.CPU_LIMIT)
    if code == -signal.SIGKILL:
        # Neither we nor the program: it cannot send this signal, not even to itself.
        return ended(Outcome.SANDBOX_ERROR, detail="the sandbox was killed from outside")
    return ended(Outcome.SIGNALLED, number) if number else ended(Outcome.EXITED, code)


def run_trusted(command: Sequence[str], timeout_s: float = START_S) -> str:
    """Return what a trusted command prints; raises OSError or subprocess.SubprocessError."""
    return subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout_s, check=True
    ).stdout
