"""Sandboxes by themselves: what they deny, whose fault an end is, what is detected, and refusing without
any."""

import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aipo.core.types import Verdict
from aipo.grading.code_check import check
from aipo.grading.code_tests import assert_tests
from aipo.grading.sandbox import bubblewrap, detect, landlock, process, seccomp
from aipo.grading.sandbox.base import (
    Backend,
    Limits,
    Outcome,
    Program,
    Run,
    Sandbox,
    SandboxError,
)
from aipo.grading.sandbox.detect import examine, open_sandbox, probe
from aipo.grading.sandbox.fusion import SandboxFusion
from support.fusion_twin import FusionTwin

LIMITS = Limits(cpu_s=1.0, wall_s=6.0, memory_mb=256)
TESTS = assert_tests(["assert f(1) == 1"])


def local(choice: str) -> Sandbox:
    try:
        return open_sandbox(choice)
    except SandboxError as error:
        assert "not isolated" not in str(error)  # that is no reason to skip
        print(reason := f"skipped: {error}")
        pytest.skip(reason)


@pytest.fixture(scope="module", params=["bubblewrap", "landlock"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    return local(request.param)


# Calls by their x86-64 numbers, with arguments of no effect: every one must fail, with any arguments.
DENIED = {
    "fork": 57, "vfork": 58, "execve": 59, "clone3": 435, "execveat": 322, "kill": 62, "tkill": 200,
    "socket": 41, "bind": 49, "connect": 42, "ptrace": 101, "process_vm_readv": 310,
    "process_vm_writev": 311, "pidfd_open": 434, "pidfd_getfd": 438, "mount": 165, "umount2": 166,
    "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308, "setuid": 105, "setresuid": 117,
    "setgroups": 116, "capset": 126, "prctl": 157, "seccomp": 317, "bpf": 321, "perf_event_open": 298,
    "userfaultfd": 323, "keyctl": 250, "add_key": 248, "io_uring_setup": 425, "memfd_create": 319,
    "memfd_secret": 447, "shmget": 29, "msgget": 68, "semget": 64, "mq_open": 240, "timer_create": 222,
    "chmod": 90, "fchmodat": 268, "chown": 92, "setxattr": 188, "utimensat": 280, "truncate": 76,
    "mknod": 133, "open_by_handle_at": 304, "sched_setscheduler": 144, "setpriority": 141,
    "ioprio_set": 251, "setrlimit": 160, "syslog": 103, "reboot": 169, "init_module": 175,
    "personality": 135, "modify_ldt": 154, "vmsplice": 278, "tee": 276, "inotify_init1": 294,
    "fanotify_init": 300, "setsid": 112, "setpgid": 109, "acct": 163, "quotactl": 179, "swapon": 167,
    "sethostname": 170, "clock_settime": 227, "landlock_create_ruleset": 444, "mount_setattr": 442,
    "beyond every table": 1000,
}  # fmt: skip


def test_calls_that_no_program_needs_are_denied(sandbox: Sandbox) -> None:
    source = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for name, number in {DENIED!r}.items():
    ctypes.set_errno(0)
    if libc.syscall(number, 0, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != 38:
        print(name, ctypes.get_errno())
CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x20000
for flags in (17, CLONE_NEWUSER | 17, CLONE_NEWNS | 17):  # a process, also in new namespaces
    if libc.syscall(56, flags, 0, 0, 0, 0) != -1: print("clone", flags)
for command in (8, 10, 15, 1031, 1033):  # F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETPIPE_SZ, F_ADD_SEALS
    if libc.fcntl(0, command, 9) != -1: print("fcntl", command)
for request in (0x5412, 0x541D, 0x8901):  # TIOCSTI, TIOCCONS, FIOSETOWN
    if libc.ioctl(0, request, 0) != -1: print("ioctl", hex(request))
import os
for pid in (1, os.getppid(), os.getpid()):
    for number in (9, 15, 19):
        if libc.syscall(234, pid, pid, number) != -1: print("tgkill", pid, number)
if libc.syscall(234, os.getppid(), os.getppid(), 6) != -1: print("tgkill abort of another")
pair = (ctypes.c_int * 2)()
# datagrams, raw, packets; the internet's two, netlink
for family, kind in ((1, 2), (1, 3), (1, 5), (2, 1), (10, 1), (16, 3), (1 << 32 | 1, 1)):
    if libc.syscall(53, ctypes.c_long(family), kind, 0, pair) != -1: print("socketpair", family, kind)
if libc.syscall(53, 1, 1, 0, pair) != 0: print("no pair of streams")
address = ctypes.create_string_buffer(b"\\x01\\x00/dev/log")
for flags, to in ((1, None), (0x40, None), (0, address), (0x4000, address)):  # out of band; to somebody else
    if libc.syscall(44, pair[0], b"x", 1, flags, to, 10 if to else 0) != -1: print("sendto", flags, to)
if libc.syscall(45, pair[1], address, 1, 1, None, None) != -1: print("recvfrom out of band")
sent = libc.syscall(44, pair[0], b"x", 1, 0, None, 0)
if sent != 1 or libc.syscall(45, pair[1], address, 1, 0, None, None) != 1:
    print("a pair of streams does not work")
print("tried", {len(DENIED)})
"""
    run = sandbox.run(Program(source), LIMITS)
    assert (run.outcome, run.stdout.decode()) == (Outcome.EXITED, f"tried {len(DENIED)}\n")


ALLOW = 0x7FFF0000


def verdict_of_filter(number: int, arguments: tuple[int, ...] = (), arch: int = 0xC000003E) -> int:
    """Run the filter on one call, as the kernel does."""
    code = list(struct.iter_unpack("=HBBI", seccomp.build()))
    data = struct.pack("=IIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    loaded = at = 0
    while True:
        operation, if_true, if_false, value = code[at]
        at += 1
        if operation == 0x06:
            return int(value)
        if operation == 0x20:
            (loaded,) = struct.unpack_from("=I", data, value)
        else:
            holds = {0x15: loaded == value, 0x25: loaded > value, 0x45: bool(loaded & value)}[operation]
            at += if_true if holds else if_false


def test_the_filter_allows_what_is_listed_and_nothing_else() -> None:
    listed = set(seccomp.ALLOWED.values())
    assert {n for n in range(2000) if verdict_of_filter(n) == ALLOW} == listed | {72, 302, 44, 45}
    assert verdict_of_filter(0, arch=0x40000003) == verdict_of_filter(0x40000000) == 0x80000000  # i386, x32
    own = seccomp.OWN_PID
    assert verdict_of_filter(234, (own, own, 6)) == ALLOW
    for number, arguments in (
        (234, (own, own, 9)),
        (234, (1, 1, 6)),
        (56, (17,)),
        (56, (0x10000000,)),
        (72, (0, 10)),
        (72, (0, 8)),
        (16, (0, 0x5412)),
        (302, (0, 0, 1)),
        (302, (0, 0, 1 << 32)),
        (302, (5, 3, 1)),
        (53, (1, 2)),
        (53, (2, 1)),
        (53, (1 | 1 << 32, 1)),
        (44, (3, 0, 0, 1)),
        (44, (3, 0, 0, 0, 1 << 40)),
        (45, (3, 0, 0, 1)),
    ):
        assert verdict_of_filter(number, arguments) != ALLOW, (number, arguments)
    assert verdict_of_filter(56, (0x3D0F00,)) == ALLOW  # a thread
    assert verdict_of_filter(53, (1, 0x80001)) == verdict_of_filter(44, (3, 0, 1, 0x4000)) == ALLOW
    assert verdict_of_filter(302, (0, 3, 1)) == ALLOW  # its own stack


def test_what_a_program_sees_is_an_interpreter_and_nothing_else(sandbox: Sandbox) -> None:
    source = """
import os, sys
def names(path):
    try: return sorted(os.listdir(path))
    except OSError: return None
def text(path):
    try: return open(path).read(10)
    except OSError: return None
print(sorted(set(os.environ) - {'PWD', 'AIPO_MARK'}), names("/etc"), names("/home"), names("/proc"),
      names("/tmp"), names("/work"), text("/etc/passwd"),
      text("/proc/self/status"), os.getuid() == 0, sys.argv)
"""
    run = sandbox.run(Program(source), LIMITS)
    names = sorted(process.ENVIRONMENT.keys() - {"AIPO_MARK"})
    mine = "[]" if sandbox.backend is Backend.BUBBLEWRAP else "None"  # Landlock gives no /tmp
    assert run.stdout.decode().strip() == f"{names} None None None {mine} None None None False ['program.py']"


def test_no_installed_package_can_be_read(sandbox: Sandbox) -> None:
    source = """
import os, sys, glob
found = [p for s in sys.path for p in (s, os.path.dirname(s)) if p]
patterns = ("/*-packages", "/python3*/*-packages")
for folder in {f for p in found for pattern in patterns for f in glob.glob(p + pattern)}:
    for root, _, names in os.walk(folder):
        for name in names:
            try: open(os.path.join(root, name)).read(1); print(root, name)
            except OSError: pass
print("looked")
"""
    assert sandbox.run(Program(source), LIMITS).stdout == b"looked\n"


def test_a_program_may_write_below_tmp_with_bubblewrap_only_up_to_its_limit() -> None:
    source = """
for name in ("one", "two"):
    try:
        with open(name, "wb") as file:
            for k in range(64): file.write(b"x" * (1 << 20)); file.flush()
    except OSError as error: print("full after", k)
"""
    run = local("bubblewrap").run(Program(source), Limits(file_mb=3))
    assert run.stdout == b"full after 3\nfull after 0\n"


@pytest.mark.parametrize(
    ("source", "outcome", "status"),
    [
        ("print('x', end='')", Outcome.EXITED, 0),
        ("import sys; sys.exit(3)", Outcome.EXITED, 3),
        ("import os; os.abort()", Outcome.SIGNALLED, signal.SIGABRT),
        ("while True: pass", Outcome.CPU_LIMIT, 0),
        ("import time; time.sleep(60)", Outcome.WALL_LIMIT, 0),
        ("print('x' * (1 << 22))", Outcome.OUTPUT_LIMIT, 0),
    ],
)
def test_how_a_run_ended(sandbox: Sandbox, source: str, outcome: Outcome, status: int) -> None:
    run = sandbox.run(Program(source), LIMITS)
    assert (run.outcome, run.status) == (outcome, status), run
    assert run.wall_s < 30


def test_a_sandbox_that_is_killed_from_outside_is_ungraded(sandbox: Sandbox) -> None:
    """A worker that dies: the bwrap process, or with Landlock the program's own."""
    before = set(children())
    got: list[Run] = []
    thread = threading.Thread(
        target=lambda: got.append(sandbox.run(Program("import time; time.sleep(60)"), Limits()))
    )
    thread.start()
    while not (started := set(children()) - before):
        time.sleep(0.02)
    time.sleep(0.5)
    os.kill(started.pop(), signal.SIGKILL)
    thread.join()
    assert (got[0].outcome, got[0].detail) == (Outcome.SANDBOX_ERROR, "the sandbox was killed from outside")
    assert check("", TESTS, Limits(), lambda program, limits: got[0]).verdict is Verdict.UNGRADED


def children() -> list[int]:
    tasks = Path("/proc/self/task").glob("*/children")
    return [int(pid) for task in tasks for pid in task.read_text().split()]


def test_nothing_survives_a_grader_that_is_killed(sandbox: Sandbox) -> None:
    script = f"""
from aipo.grading.sandbox import process
from aipo.grading.sandbox.base import *
from aipo.grading.sandbox.detect import open_sandbox
process.ENVIRONMENT["AIPO_MARK"] = "orphan-{os.getpid()}"
sandbox = open_sandbox("{sandbox.backend.value}")
print("ready", flush=True)
sandbox.run(Program("import time; time.sleep(60)"), Limits(wall_s=60))
"""
    grader = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert grader.stdout is not None and grader.stdout.readline() == b"ready\n"
    mark = f"AIPO_MARK=orphan-{os.getpid()}".encode()
    deadline = time.monotonic() + 30
    while not marked(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    assert marked(mark)
    grader.kill()
    grader.wait()
    grader.stdout.close()
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert marked(mark) == []


def marked(mark: bytes) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes():
                found.append(folder.name)
        except OSError:
            continue
    return found


# --- detection -------------------------


def test_each_back_end_is_found_out_by_a_probe_and_described() -> None:
    found = [examine(backend) for backend in Backend]
    assert [item.works for item in found] == [item.sandbox is not None for item in found]
    assert all(item.note for item in found) and not found[-1].works


def test_without_any_sandbox_code_is_refused_with_field_value_and_fix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bubblewrap.shutil, "which", lambda name: None)
    monkeypatch.setattr(landlock, "kernel_abi", lambda: 0)
    with pytest.raises(SandboxError, match=r"sandbox.backend = 'auto'.*apt-get install bubblewrap"):
        open_sandbox()


def test_what_was_asked_for_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap.shutil, "which", lambda name: None)
    with pytest.raises(SandboxError, match="sandbox.backend = 'bubblewrap'.*bwrap is not installed"):
        open_sandbox("bubblewrap")
    with pytest.raises(SandboxError, match="no sandbox works"):
        open_sandbox(url="http://127.0.0.1:9")  # auto with a URL is SandboxFusion only


def test_another_machine_than_x86_64_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp.platform, "machine", lambda: "aarch64")
    with pytest.raises(SandboxError, match="aarch64"):
        open_sandbox()


class Leaky:
    """Runs programs without isolating them."""

    backend, description = Backend.LANDLOCK, "leaky"

    def run(self, program: Program, limits: Limits) -> Run:
        done = subprocess.run(
            [sys.executable, "-c", program.source],
            input=program.stdin.encode(),
            capture_output=True,
            timeout=60,
        )
        return Run(outcome=Outcome.EXITED, stdout=done.stdout, status=done.returncode)


def test_a_back_end_that_does_not_isolate_is_not_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not isolated: fork, network, reading" in probe(Leaky())
    monkeypatch.setattr(detect, "Landlock", lambda *asked: Leaky())
    assert not examine(Backend.LANDLOCK).works
    with pytest.raises(SandboxError, match="not isolated"):
        open_sandbox("landlock")


def test_limits_and_interpreters_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sandbox.cpu_s = 0.*must be positive"):
        Limits(cpu_s=0)
    for path in ("/nonexistent/python", "/bin/false"):
        with pytest.raises(SandboxError, match=f"sandbox.interpreter = '{path}'"):
            landlock.Landlock(path)


# --- SandboxFusion -------------------------


@pytest.fixture
def twin() -> Iterator[FusionTwin]:
    made = FusionTwin(local("auto"), LIMITS)
    yield made
    made.close()


def test_programs_run_by_a_server_are_graded_here(twin: FusionTwin) -> None:
    sandbox = open_sandbox(url=twin.url)
    assert twin.url in sandbox.description
    assert sandbox.run(Program("print(int(input()) + 1)", "41"), LIMITS).stdout == b"42\n"
    tests = assert_tests(["assert f(1) == 'gold-1'"])
    assert check("f = lambda n: 'gold-' + str(n)", tests, LIMITS, sandbox.run).verdict is Verdict.CORRECT
    assert check("f = lambda n: n", tests, LIMITS, sandbox.run).verdict is Verdict.INCORRECT
    assert not any("gold-1" in str(request) for request in twin.requests)


@pytest.mark.parametrize("how", ["http 500", "SandboxError", "garbage", "drops"])
def test_a_broken_server_is_ungraded(twin: FusionTwin, how: str) -> None:
    sandbox = SandboxFusion(twin.url)
    twin.misbehave = how
    given = check("f = lambda n: 1", TESTS, LIMITS, sandbox.run)
    assert (given.verdict, given.reason.split(":")[0]) == (Verdict.UNGRADED, "sandbox")


def test_a_server_that_is_not_there_is_ungraded_and_bad_urls_are_refused() -> None:
    sandbox = SandboxFusion("http://127.0.0.1:9")
    assert check("", TESTS, LIMITS, sandbox.run).verdict is Verdict.UNGRADED
    for url in ("", "localhost:8080", "file:///tmp"):
        with pytest.raises(SandboxError, match=f"sandbox.url = '{url}'"):
            SandboxFusion(url)


def test_a_server_that_hangs_is_ungraded_in_time(twin: FusionTwin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aipo.grading.sandbox.fusion._GRACE_S", 1.0)
    twin.misbehave = "hangs"
    start = time.monotonic()
    run = SandboxFusion(twin.url).run(Program(""), Limits(wall_s=1.0))
    assert run.outcome is Outcome.SANDBOX_ERROR
    assert time.monotonic() - start < 20
