"""What a machine has: versions, devices, disk, memory, and what could keep generated code in.

Owns looking, without changing anything. Must not know recipes.
Invariant: nothing here fails by itself; a finding FAILED says that what was asked for is not there.
"""

import ctypes
import platform
import shutil
import sys
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

GIB = 2**30
LEAST_DISK_BYTES = GIB
_LANDLOCK_CREATE_RULESET = 444  # the same number on every architecture of Linux
_LANDLOCK_VERSION_FLAG = 1


class Health(StrEnum):
    """How a finding is."""

    OK = "ok"
    LOOK = "look"
    """Works, but someone should know."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table."""

    what: str
    health: Health
    found: str
    fix: str = ""
    """Shown where it failed; empty where `found` says it already."""


def versions() -> list[Finding]:
    """Return the versions of Python and of what runs depend on most."""
    names = ("aipo", "torch", "transformers", "accelerate", "math-verify")
    found = ", ".join(f"{name} {_version(name)}" for name in names)
    python = f"Python {platform.python_version()} on {platform.platform()}"
    return [Finding("system", Health.OK, python), Finding("versions", Health.OK, found)]


def graphics(device: str) -> Finding:
    """Return what torch can compute on, and whether that is what is asked for."""
    there = ["cpu"]
    if torch.cuda.is_available():
        there += [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        there.append("mps")
    kinds = {name.partition(":")[0] for name in there}
    health = Health.OK if device.partition(":")[0] in kinds else Health.FAILED
    fix = f"run.device = {device!r}, but torch sees {', '.join(there)}; set run.device = 'cpu'"
    return Finding("devices", health, ", ".join(there), fix)


def disk(folder: Path, needed_bytes: int = LEAST_DISK_BYTES, what: str = "free disk") -> Finding:
    """Return what is free where a run would write."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    found = f"{free / GIB:.1f} GiB free at {place}, {needed_bytes / GIB:.2f} needed"
    fix = f"{found}: make room, or set run.output to another disk or train.keep_checkpoints lower"
    return Finding(what, Health.OK if free >= needed_bytes else Health.FAILED, found, fix)


def memory(needed_bytes: int = 0, what: str = "memory", device: str = "cpu") -> Finding:
    """Return the memory that is available: the machine's, or that of a GPU."""
    on_gpu = device.startswith("cuda") and torch.cuda.is_available()
    available = torch.cuda.mem_get_info(device)[0] if on_gpu else _available_bytes()
    if available is None:
        return Finding(what, Health.LOOK, "unknown on this system")
    found = f"{available / GIB:.1f} GiB available" + (
        f", {needed_bytes / GIB:.2f} needed" if needed_bytes else ""
    )
    fix = f"{found}: use a smaller policy or a machine with more memory"
    return Finding(what, Health.OK if available >= needed_bytes else Health.FAILED, found, fix)


def isolation() -> list[Finding]:
    """Return what there is to run generated code in; nothing here fails.

    Whether it holds is tried by the task of a recipe that needs it (`grading/sandbox/detect.py`).
    """
    wrap = shutil.which("bwrap")
    landlock = _landlock_version()
    seccomp = _has_seccomp()
    parts = [f"bubblewrap {wrap}" if wrap else "no bubblewrap"]
    parts.append(f"Landlock version {landlock}" if landlock > 0 else "no Landlock")
    parts.append("seccomp" if seccomp else "no seccomp")
    health = Health.OK if wrap and seccomp else Health.LOOK
    return [Finding("sandbox", health, ", ".join(parts))]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _available_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _landlock_version() -> int:
    """Ask the kernel; at most 0 where there is none."""
    if sys.platform != "linux":
        return 0
    call = ctypes.CDLL(None, use_errno=True).syscall
    return int(call(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_VERSION_FLAG))


def _has_seccomp() -> bool:
    try:
        return "Seccomp:" in Path("/proc/self/status").read_text()
    except OSError:
        return False
