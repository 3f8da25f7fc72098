"""Attacks on the code grader: none is CORRECT, none leaves a trace, in each sandbox that this machine has."""

import asyncio
import contextlib
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from aipo.core.types import Verdict
from aipo.grading import Grade
from aipo.grading.code import CodePool, grade_program
from aipo.grading.code_tests import CodeTests, StdinCase, StdinTests, assert_tests
from aipo.grading.sandbox import process
from aipo.grading.sandbox.base import Backend, Limits, Outcome, Program, Run, Sandbox
from aipo.grading.sandbox.detect import Examined, examine
from aipo.grading.sandbox.fusion import SandboxFusion
from support.code_attacks import ESCAPE, FORGERY, HARM, MARK, PRINTS
from support.fusion_twin import FusionTwin

LIMITS = Limits(cpu_s=0.5, wall_s=2.0, memory_mb=256, file_mb=4, output_bytes=1 << 18)
FOLDERS = [Path(name) for name in ("/tmp", "/dev/shm", "/var/tmp", "/") if Path(name).is_dir()]


@cache
def finding(backend: Backend) -> Examined:
    return examine(backend)


@pytest.fixture(scope="module", params=list(Backend), ids=lambda backend: backend.value)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """Each back end; SandboxFusion is a twin whose container is a local one."""
    backend: Backend = request.param
    local = [item for item in (finding(Backend.BUBBLEWRAP), finding(Backend.LANDLOCK)) if item.works]
    found = finding(backend)
    if backend is Backend.SANDBOXFUSION and local and local[0].sandbox:
        twin = FusionTwin(local[0].sandbox, LIMITS)
        yield SandboxFusion(twin.url)
        twin.close()
    elif found.sandbox is not None:
        yield found.sandbox
    else:
        assert "not isolated" not in found.note  # that is no reason to skip
        print(reason := f"skipped: {backend.value} does not work here: {found.note}")
        pytest.skip(reason)


@dataclass
class Host:
    """What an attack may find of this machine, and what it must leave as it is."""

    secret: str
    folder: Path
    file: Path
    port: int
    socket: Path
    victim: subprocess.Popen[bytes]
    connections: list[str]
    mark: str

    @property
    def name(self) -> str:
        """Return what stands in the name of whatever an attack leaves; other tests run at the same time."""
        return f"{MARK}-{self.mark[-8:]}"

    def fill(self, attack: str) -> str:
        for name, value in {
            "FILE": self.file,
            "FOLDER": self.folder,
            "PORT": self.port,
            "SOCKET": self.socket,
            "PID": self.victim.pid,
            "PARENT": os.getpid(),
            "MARK": self.name,
        }.items():
            attack = attack.replace(f"@{name}@", str(value))
        return attack

    def state(self) -> dict[str, object]:
        """Return everything that no attack may change."""
        about = self.file.stat()
        return {
            "text": self.file.read_text(),
            "file": (about.st_mode, about.st_uid, about.st_mtime, about.st_nlink),
            "xattr": os.listxattr(self.file),
            "folder": sorted(path.name for path in self.folder.iterdir()),
            "marked": sorted(str(path) for folder in FOLDERS for path in folder.glob(f"*{self.name}*")),
            "victim": (self.victim.poll(), Path(f"/proc/{self.victim.pid}/limits").read_text()),
            "connections": list(self.connections),
            "ipc": [line for line in ipc() if "41495050" in line or str(0x41495050) in line],
        }

    def processes(self) -> list[str]:
        """Return the processes that run in a sandbox of this test."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (
                    self.mark.encode() in (folder / "environ").read_bytes()
                    and int(folder.name) != os.getpid()
                ):
                    found.append((folder / "stat").read_text()[:60])
        return found


def ipc() -> list[str]:
    tables = (Path("/proc/sysvipc/shm"), Path("/proc/sysvipc/msg"))
    return [line for table in tables if table.exists() for line in table.read_text().splitlines()]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    secret = f"secret-{secrets.token_hex(16)}"
    mark = f"AIPO_MARK_{secrets.token_hex(8)}"
    monkeypatch.setenv("AIPO_SECRET", secret)
    monkeypatch.setitem(process.ENVIRONMENT, "AIPO_MARK", mark)
    # A folder that every user may use, so that nothing but the sandbox stands before it; not below /tmp, over
    # which bubblewrap mounts its own.
    folder = Path(f"/var/tmp/host-{secrets.token_hex(8)}")
    folder.mkdir()
    folder.chmod(0o777)
    file = folder / "answers.txt"
    file.write_text(secret)
    file.chmod(0o666)
    tcp, unix = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
    unix.bind(str(folder / "socket"))
    (folder / "socket").chmod(0o777)
    unix.listen()
    connections: list[str] = []

    def serve(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = server.accept()[0]
                connections.append("one")
                connection.sendall(secret.encode())
                connection.close()

    for server in (tcp, unix):
        threading.Thread(target=serve, args=(server,), daemon=True).start()
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)", secret])
    port = tcp.getsockname()[1]
    yield Host(secret, folder, file, port, folder / "socket", victim, connections, mark)
    victim.kill()
    victim.wait()
    for server in (tcp, unix):
        server.shutdown(socket.SHUT_RDWR)
        server.close()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def grade(sandbox: Sandbox, program: str, tests: CodeTests) -> Grade:
    pool = CodePool(sandbox, limits=LIMITS)
    try:
        return asyncio.run(grade_program(program, tests, pool))
    finally:
        pool.close()


def calls(host: Host) -> CodeTests:
    return assert_tests([f"assert f(1) == {host.secret!r}", f"assert f(2) == {host.secret!r}"])


def assert_no_trace(host: Host, before: dict[str, object]) -> None:
    deadline = time.monotonic() + 5
    while host.processes() and time.monotonic() < deadline:
        time.sleep(0.05)  # a namespace is torn down by the kernel in its own time
    assert host.processes() == []
    assert host.state() == before


ATTACKS = FORGERY | ESCAPE | HARM


def test_there_are_enough_attacks() -> None:
    assert len(ATTACKS) + len(PRINTS) >= 50


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_incorrect_and_leaves_no_trace(sandbox: Sandbox, host: Host, name: str) -> None:
    before = host.state()
    given = grade(sandbox, host.fill(ATTACKS[name]), calls(host))
    assert_no_trace(host, before)
    assert given.verdict is Verdict.INCORRECT, given


@pytest.mark.parametrize("name", PRINTS)
def test_a_program_that_prints_its_attack_is_incorrect(sandbox: Sandbox, host: Host, name: str) -> None:
    before = host.state()
    tests = StdinTests((StdinCase("1\n2\n", "3\n"), StdinCase("2\n2\n", "4\n")))
    given = grade(sandbox, PRINTS[name], tests)
    assert_no_trace(host, before)
    assert given.verdict is Verdict.INCORRECT, given


def test_an_honest_program_is_correct_in_the_same_surroundings(sandbox: Sandbox, host: Host) -> None:
    assert grade(sandbox, f"f = lambda n: {host.secret!r}", calls(host)) == Grade(Verdict.CORRECT, "passed")


class Unprotected:
    """No sandbox at all, to see that the attacks are real. Only for those that do no harm."""

    backend = Backend.BUBBLEWRAP
    description = "none"

    def run(self, program: Program, limits: Limits) -> Run:
        done = subprocess.run(
            [sys.executable, "-c", program.source], input=b"", capture_output=True, timeout=60
        )
        return Run(outcome=Outcome.EXITED, stdout=done.stdout, status=done.returncode)


@pytest.mark.parametrize(
    "name", ["environment", "host_file", "host_file_by_link", "proc", "tcp", "unix_socket"]
)
def test_without_a_sandbox_the_escapes_would_be_correct(host: Host, name: str) -> None:
    given = grade(Unprotected(), host.fill(ESCAPE[name]), calls(host))
    for left in Path("/tmp").glob(f"{host.name}-link"):
        left.unlink()
    assert given.verdict is Verdict.CORRECT, given
