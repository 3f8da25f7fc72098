"""The Python that runs inside a local sandbox, and which files of this machine it needs.

What is listed is an interpreter, its standard library and the system's shared libraries, nothing else of this
machine.
"""

import json
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from aipo.grading.sandbox.base import SandboxError
from aipo.grading.sandbox.process import PYTHON_FLAGS, run_trusted

_SYSTEM = "/usr/bin/python3"
_ASK = (
    "import json, sys, sysconfig; print(json.dumps([sys.version.split()[0], sys.base_prefix,"
    "sysconfig.get_path('stdlib'), sysconfig.get_path('platstdlib')]))"
)
_PACKAGES = tuple(
    f"{above}{name}" for above in ("", "python3*/") for name in ("site-packages", "dist-packages")
)
_DEVICES = ("/dev/null", "/dev/urandom", "/dev/zero")


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python and the paths that it reads."""

    executable: str
    version: str
    paths: tuple[str, ...]
    """Read-only inside: the executable, the standard library, shared libraries."""

    @property
    def packages(self) -> tuple[str, ...]:
        """Return the folders below `paths` that hold installed packages, which no program is to see."""
        found = [
            str(folder)
            for path in self.paths
            for pattern in _PACKAGES
            for folder in Path(path).glob(pattern)
            if folder.is_dir()
        ]
        return tuple(_outermost(sorted(found)))

    @property
    def devices(self) -> tuple[str, ...]:
        """Return the harmless devices that exist here."""
        return tuple(path for path in _DEVICES if os.path.exists(path))


def find(asked: str, for_everyone: bool) -> Interpreter:
    """Return the interpreter for a sandbox: `asked`, or this one, or the system's.

    With `for_everyone` it must be readable by any user: the sandbox will run as another one.

    Raises:
        SandboxError: there is none; the message names what was tried.
    """
    own = getattr(sys, "_base_executable", "") or sys.executable
    tried = []
    for candidate in (asked,) if asked else (own, _SYSTEM):
        try:
            found = _inspect(os.path.realpath(candidate))
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            tried.append(f"{candidate}: {error}")
            continue
        hidden = [path for path in found.paths if for_everyone and not _open_to_all(path)]
        if not hidden:
            return found
        tried.append(f"{candidate}: {hidden[0]} cannot be read by other users")
    raise SandboxError(
        f"sandbox.interpreter = {asked!r}: no usable Python ({'; '.join(tried)}); set it to a"
        " Python from 3.11 on that every user can read, such as /usr/bin/python3"
    )


def _inspect(executable: str) -> Interpreter:
    version, prefix, *libraries = json.loads(run_trusted([executable, *PYTHON_FLAGS, "-c", _ASK]))
    if tuple(map(int, version.split(".")[:2])) < (3, 11):
        raise ValueError(f"Python {version} is older than 3.11")
    shared = [] if prefix in ("/usr", "/usr/local") else [f"{prefix}/lib"]
    if prefix == "/usr/local":
        shared = [str(path) for path in Path("/usr/local/lib").glob("libpython3*.so*")]
    paths = [executable, *libraries, *shared, *_system_libraries()]
    present = dict.fromkeys(os.path.normpath(path) for path in paths if os.path.exists(path))
    return Interpreter(executable, version, tuple(_outermost(list(present))))


def _system_libraries() -> list[str]:
    folders = [path for path in ("/usr/lib/x86_64-linux-gnu", "/usr/lib64") if os.path.isdir(path)]
    folders += [path for path in ("/lib", "/lib64") if os.path.isdir(path) and not os.path.islink(path)]
    has_c = any(os.path.exists(f"{folder}/libc.so.6") for folder in folders)
    return folders if has_c else [*folders, "/usr/lib"]


def _outermost(paths: list[str]) -> list[str]:
    return [
        path for path in paths if not any(path.startswith(f"{other}/") for other in paths if other != path)
    ]


def _open_to_all(path: str) -> bool:
    parts = [Path(path), *Path(path).parents]
    return all(stat.S_IMODE(os.stat(part).st_mode) & stat.S_IXOTH for part in parts)
