"""What a machine has: versions, devices, disk, memory, and what could keep generated code in.

Looking changes nothing, and nothing here fails by itself: a finding FAILED says that what was asked for is
not there.
"""

import platform
import shutil
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from aipo.config.settings import SandboxSettings
from aipo.grading.sandbox.base import Backend
from aipo.grading.sandbox.detect import examine

GIB = 2**30
LEAST_DISK_BYTES = GIB


class Health(StrEnum):
    """How a finding is."""

    OK = "ok"
    LOOK = "look"
    """Works, but someone should know."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the table."""

    what: str
    found: str
    health: Health = Health.OK
    fix: str = ""
    """Shown where it failed; empty where `found` says it already."""


def versions() -> list[Finding]:
    """Return the versions of Python and of what runs depend on most."""
    names = ("aipo", "torch", "transformers", "accelerate", "math-verify")
    found = ", ".join(f"{name} {_version(name)}" for name in names)
    python = f"Python {platform.python_version()} on {platform.platform()}"
    return [
        Finding(what="system", found=python),
        Finding(what="versions", found=found),
    ]


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
    return Finding(what="devices", health=health, found=", ".join(there), fix=fix)


def disk(folder: Path, needed_bytes: int = LEAST_DISK_BYTES, what: str = "free disk") -> Finding:
    """Return what is free where a run would write."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    found = f"{free / GIB:.1f} GiB free at {place}, {needed_bytes / GIB:.2f} needed"
    fix = f"{found}: make room, or set run.output to another disk or train.keep_checkpoints lower"
    return Finding(
        what=what, health=Health.OK if free >= needed_bytes else Health.FAILED, found=found, fix=fix
    )


def memory() -> Finding:
    """Return the memory that the machine has left; what a recipe needs of it is the run's own finding."""
    return Finding(what="memory", found=f"{psutil.virtual_memory().available / GIB:.1f} GiB available")


def isolation(settings: SandboxSettings) -> list[Finding]:
    """Return which sandboxes keep generated code in, each tried with a probe program; nothing here fails.

    SandboxFusion is tried where `sandbox.url` names a server.
    """
    asked = (settings.url, settings.interpreter, settings.library_paths)
    tried = [
        examine(backend, *asked)
        for backend in Backend
        if settings.url or backend is not Backend.SANDBOXFUSION
    ]
    return [
        Finding(
            what=f"sandbox {each.backend}", health=Health.OK if each.works else Health.LOOK, found=each.note
        )
        for each in tried
    ]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
