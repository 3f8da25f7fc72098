"""Which sandboxes this machine has, found out by running a probe program in each.

A back end is only ever handed out after its probe printed what it should and failed to do what it must not;
the one that was asked for is never replaced by another.
"""

import json
import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aipo.grading.sandbox.base import Backend, Limits, Outcome, Program, Sandbox, SandboxError
from aipo.grading.sandbox.bubblewrap import Bubblewrap
from aipo.grading.sandbox.fusion import SandboxFusion
from aipo.grading.sandbox.landlock import Landlock

FIX = "apt-get install bubblewrap, use a kernel with Landlock, or set sandbox.url to a SandboxFusion server"

# Computes something, then tries what no program may: each name that is printed is a hole.
_PROBE = """
import json, os, sys
holes = []
def attempt(name, action):
    try:
        action()
    except Exception:
        return
    holes.append(name)
def fork():
    if os.fork() == 0:
        os._exit(0)
def connect():
    import socket
    socket.create_connection(("127.0.0.1", PORT), 1).close()
attempt("fork", fork)
attempt("network", connect)
attempt("reading files of this machine", lambda: open(SECRET).read())
attempt("writing files of this machine", lambda: open(SECRET, "r+").write("x"))
attempt("signals", lambda: os.kill(PID, 0))
if "AIPO_PROBE" in os.environ:
    holes.append("environment")
print(json.dumps([sum(map(int, sys.stdin.read().split())), holes]))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """What was found out about one back end here."""

    backend: Backend
    works: bool
    note: str
    """Its description, or what failed and the fix."""
    sandbox: Sandbox | None = None


def examine(
    backend: Backend, url: str = "", interpreter: str = "", library_paths: Sequence[str] = ()
) -> Examined:
    """Try a back end by running the probe in it; at most a minute. For the arguments see `open_sandbox`."""
    ways: dict[Backend, list[Callable[[], Sandbox]]] = {
        Backend.BUBBLEWRAP: [lambda: Bubblewrap(interpreter, library_paths)],
        Backend.LANDLOCK: [lambda: Landlock(interpreter, library_paths)],
        Backend.SANDBOXFUSION: [lambda: SandboxFusion(url)],
    }
    if not os.getuid():  # root without rights for a new file system may still make a user namespace
        ways[Backend.BUBBLEWRAP].append(lambda: Bubblewrap(interpreter, library_paths, own_namespace=True))
    failures = []
    for way in ways[backend]:
        try:
            sandbox = way()
        except SandboxError as error:
            failures.append(str(error))
            break
        problem = probe(sandbox)
        if not problem:
            return Examined(backend=backend, works=True, note=sandbox.description, sandbox=sandbox)
        failures.append(f"{sandbox.description}: {problem}")
    return Examined(backend=backend, works=False, note="; ".join(failures))


def probe(sandbox: Sandbox) -> str:
    """Return what is wrong with a back end, '' when a program runs in it and can do nothing that it must not.

    Of SandboxFusion only that programs run is asked: what it isolates is its container's matter.
    """
    limits = Limits(cpu_s=10.0, wall_s=20.0)
    with tempfile.NamedTemporaryFile("w") as secret, socket.create_server(("127.0.0.1", 0)) as server:
        secret.write("secret")
        secret.flush()
        os.chmod(secret.name, 0o666)  # so that only the sandbox stands before it
        constants = {"PORT": server.getsockname()[1], "SECRET": secret.name, "PID": os.getpid()}
        header = "".join(f"{name} = {value!r}\n" for name, value in constants.items())
        run = sandbox.run(Program(header + _PROBE, "20 22\n"), limits)
    if run.outcome is not Outcome.EXITED or run.status:
        return f"the probe did not run ({run.outcome.value} {run.status}: {run.detail})"
    try:
        answer, holes = json.loads(run.stdout)
    except (ValueError, TypeError):
        return f"the probe printed {run.stdout[:80]!r}"
    if answer != 42:
        return f"the probe computed {answer!r}"
    if sandbox.backend is Backend.SANDBOXFUSION:
        return ""
    return f"not isolated: {', '.join(holes)}" if holes else ""


def open_sandbox(
    backend: str = "auto", url: str = "", interpreter: str = "", library_paths: Sequence[str] = ()
) -> Sandbox:
    """Return the back end that is asked for, after it was seen to work.

    `auto` is SandboxFusion where a URL is set, and nothing else then; otherwise bubblewrap, and Landlock
    where bubblewrap does not work. Which it became stands in its `description`, which every report prints.

    Args:
        backend: `auto` or a `Backend`.
        url: SandboxFusion's address, such as http://127.0.0.1:8080.
        interpreter: The Python inside a local sandbox; '': this one, or /usr/bin/python3 where this one
            cannot be read.
        library_paths: Folders with packages that programs may import, read-only; without any, the standard
            library alone.

    Raises:
        SandboxError: it does not work here; the message says why and what to do.
    """
    if backend != "auto":
        wanted = [Backend(backend)]
    else:
        wanted = [Backend.SANDBOXFUSION] if url else [Backend.BUBBLEWRAP, Backend.LANDLOCK]
    failed = []
    for each in wanted:
        found = examine(each, url, interpreter, library_paths)
        if found.sandbox is not None:
            return found.sandbox
        failed.append(f"{each.value}: {found.note}")
    raise SandboxError(
        f"sandbox.backend = {str(backend)!r}: no sandbox works, so no program can be graded"
        f" ({'; '.join(failed)}); {FIX}"
    )
