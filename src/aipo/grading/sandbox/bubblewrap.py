"""Bubblewrap: a sandbox of namespaces, inside which seccomp and rlimits apply.

Inside there is a Python and its standard library without any package, the system's shared libraries and four
devices (null, urandom, zero, stdin), all read-only, an empty /tmp and a small empty /dev/shm; no /proc, no
/etc, no network, no other process; bwrap itself gets an empty environment, since its own is readable where
/proc is.

As root bwrap makes no user namespace: the bootstrap becomes a user of its own (of `UIDS`), with no right to
anything. As another user everything happens in a user namespace; where those are forbidden (many containers),
bwrap cannot work.
"""

import itertools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from aipo.grading.sandbox import interpreter, seccomp
from aipo.grading.sandbox.base import Backend, Limits, Program, Run, SandboxError
from aipo.grading.sandbox.process import BOOTSTRAP, PYTHON_FLAGS, Isolation, supervise

UIDS = range(61_184, 65_520)
"""Users that no distribution gives to anybody for long; each run of root's takes the next one."""
_NOBODY = "65534"
_SHARED_BYTES = 1 << 20
_counter = itertools.count(os.getpid())


def next_uid() -> int:
    """Return the user for a run of root's, another one for each; 0, which is to stay, for anybody else's."""
    return 0 if os.getuid() else UIDS[next(_counter) % len(UIDS)]


class Bubblewrap:
    """Programs run by bwrap.

    Raises:
        SandboxError: bwrap is not installed, or this machine is not x86-64 Linux. That it works here is not
        known yet.
    """

    backend = Backend.BUBBLEWRAP

    def __init__(
        self, python: str = "", libraries: Sequence[str] = (), own_namespace: bool | None = None
    ) -> None:
        """Take the Python inside ('': a usable one) and folders that programs may import from."""
        found = shutil.which("bwrap")
        if found is None:
            raise SandboxError(
                "sandbox.backend = 'bubblewrap': bwrap is not installed; apt-get install bubblewrap"
            )
        try:
            self._filter = seccomp.build()
        except NotImplementedError as error:
            raise SandboxError(f"sandbox.backend = 'bubblewrap': {error}") from error
        self._bwrap = found
        self._own_namespace = bool(os.getuid()) if own_namespace is None else own_namespace
        self._python = interpreter.find(python, for_everyone=False)
        self._libraries = tuple(libraries)
        as_whom = "in a user namespace" if self._own_namespace else "as a user without rights"
        self.description = (
            f"bubblewrap + seccomp + rlimits, {as_whom}, Python {self._python.version}"
            f" ({self._python.executable})"
        )

    def run(self, program: Program, limits: Limits) -> Run:
        """Run a program to its end."""
        uid = 0 if self._own_namespace else next_uid()
        arguments = self._arguments(limits)

        def command(payload: int, status: int, copy: int) -> Sequence[str]:
            start = [self._python.executable, *PYTHON_FLAGS, "-c", BOOTSTRAP, str(payload), str(status)]
            # There is no /proc, where /dev/stdin would lead.
            stdin = ["--perms", "0444", "--ro-bind-data", str(copy), "/dev/stdin", "--remount-ro", "/"]
            return [self._bwrap, *arguments, *stdin, "--chdir", "/tmp", *start]

        isolation = Isolation(filter=self._filter, uid=uid, library_paths=self._libraries)
        return supervise(command, program, limits, isolation)

    def _arguments(self, limits: Limits) -> list[str]:
        arguments = [
            "--unshare-ipc",
            "--unshare-pid",
            "--unshare-net",
            "--unshare-uts",
            "--unshare-cgroup-try",
        ]
        arguments += ["--die-with-parent", "--new-session", "--cap-drop", "ALL"]
        if self._own_namespace:
            arguments += ["--unshare-user", "--uid", _NOBODY, "--gid", _NOBODY]
        else:
            arguments += [
                "--cap-add",
                "CAP_SETUID",
                "--cap-add",
                "CAP_SETGID",
            ]  # gone with the change of user
        # For the locks of multiprocessing.
        arguments += ["--perms", "1777", "--size", str(_SHARED_BYTES), "--tmpfs", "/dev/shm"]
        # Before what is bound into it: a Python may stand under /tmp too.
        arguments += ["--perms", "1777", "--size", str(limits.file_mb << 20), "--tmpfs", "/tmp"]
        mounted = (*self._python.paths, *self._libraries)
        # bwrap would give a folder above them the mode of this machine's, so 0700 for /root.
        for folder in sorted(
            {str(above) for path in (*mounted, *self._python.devices) for above in Path(path).parents} - {"/"}
        ):
            arguments += ["--perms", "0755", "--dir", folder]
        for path in self._python.paths:
            arguments += ["--ro-bind", path, path]
        for path in self._python.packages:
            arguments += ["--tmpfs", path, "--remount-ro", path]
        for path in self._libraries:
            arguments += ["--ro-bind", path, path]
        for link in ("/lib", "/lib64"):
            if os.path.islink(link):
                arguments += ["--symlink", os.readlink(link), link]
        for device in self._python.devices:
            arguments += ["--dev-bind", device, device]
        return arguments
