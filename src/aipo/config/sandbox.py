"""The settings of the sandbox in which programs are graded.

Owns names, types, bounds and defaults. Must not know back ends: whether one works is found out
when a task with programs is built. Invariant: no value stands for "without a sandbox".
"""

from typing import Literal

from pydantic import Field

from aipo.config.problems import Section


class SandboxSettings(Section):
    """Where programs run that a policy wrote, and what one run may use (docs/grading.md)."""

    backend: Literal["auto", "bubblewrap", "landlock", "sandboxfusion"] = Field(
        "auto", description="`auto`: SandboxFusion when a URL is set, else bubblewrap, else Landlock."
    )
    url: str = Field("", description="A SandboxFusion server, such as http://127.0.0.1:8080.")
    interpreter: str = Field("", description="The Python inside; '': this one, or /usr/bin/python3.")
    library_paths: tuple[str, ...] = Field(
        (), description="Folders with packages that programs may import; none: the standard library alone."
    )
    cpu_s: float = Field(6.0, gt=0, description="CPU time of one run; passing it is INCORRECT.")
    wall_s: float = Field(20.0, gt=0, description="Wall time of one run.")
    memory_mb: int = Field(1024, ge=1, description="Memory of one run.")
