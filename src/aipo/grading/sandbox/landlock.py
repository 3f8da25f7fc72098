"""Landlock: a process that takes its own rights away, where namespaces are forbidden. Needs no privileges.

Nothing of this machine can be written but /dev/null and one folder of the run's own (`scratch`), in which it
begins and which `tempfile` finds: `Limits.file_mb` in all, a share of it for each file, no links out of it.
/tmp and /dev/shm, where the locks of multiprocessing would be, stay closed.

What namespaces would add: existence, size and owner of this machine's files can be asked for by name
(Landlock does not govern stat), and the host's name and kernel are seen. Signals, sockets, fork and changes
of files' modes, which Landlock does not govern or only from some kernel on, are denied by seccomp.
"""

import ctypes
import os
from collections.abc import Sequence

from aipo.grading.sandbox import interpreter, seccomp
from aipo.grading.sandbox.base import Backend, Limits, Program, Run, SandboxError
from aipo.grading.sandbox.bubblewrap import next_uid
from aipo.grading.sandbox.process import BOOTSTRAP, PYTHON_FLAGS, Isolation, supervise
from aipo.grading.sandbox.scratch import remove_abandoned

_CREATE_RULESET, _VERSION = 444, 1


def kernel_abi() -> int:
    """Return the version of Landlock that this kernel has; 0 when it has none or does not enable it."""
    libc = ctypes.CDLL(None, use_errno=True)
    return max(0, int(libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)))


class Landlock:
    """Programs run by a process under Landlock.

    Raises:
        SandboxError: the kernel has no Landlock, this machine is not x86-64, or no Python can be read.
    """

    backend = Backend.LANDLOCK

    def __init__(self, python: str = "", libraries: Sequence[str] = ()) -> None:
        """Take the Python inside ('': a usable one) and folders that programs may import from."""
        field = "sandbox.backend = 'landlock'"
        try:
            self._filter = seccomp.build()
        except NotImplementedError as error:
            raise SandboxError(f"{field}: {error}") from error
        if not (abi := kernel_abi()):
            raise SandboxError(
                f"{field}: this kernel has no Landlock (since Linux 5.13, and `landlock` must stand in"
                " /sys/kernel/security/lsm); install bubblewrap or set sandbox.url"
            )
        # Root's runs become another user, who must be able to read the interpreter.
        self._python = interpreter.find(python, for_everyone=os.getuid() == 0)
        remove_abandoned()
        self._libraries = tuple(libraries)
        self._readable = (*self._python.paths, *self._python.devices, *self._libraries)
        self.description = (
            f"landlock (ABI {abi}) + seccomp + rlimits, Python {self._python.version}"
            f" ({self._python.executable})"
        )

    def run(self, program: Program, limits: Limits) -> Run:
        """Run a program to its end."""

        def command(payload: int, status: int, copy: int) -> Sequence[str]:
            return [self._python.executable, *PYTHON_FLAGS, "-c", BOOTSTRAP, str(payload), str(status)]

        isolation = Isolation(
            filter=self._filter,
            uid=next_uid(),
            readable=self._readable,
            die_with_parent=True,
            library_paths=self._libraries,
        )
        return supervise(command, program, limits, isolation)
