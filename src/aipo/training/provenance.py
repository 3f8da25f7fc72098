"""Which code and which libraries wrote a checkpoint.

The fingerprint changes with any line of the package, with git and without. Other code is reported, not
forbidden.
"""

import platform
import subprocess
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("torch", "transformers", "accelerate", "safetensors", "numpy", "tokenizers")
PACKAGE = Path(__file__).parents[1]
GIT_S = 10


@cache
def code_revision() -> dict[str, str]:
    """Return the package's version, a fingerprint of its source, and the git revision ('' outside of git)."""
    digest = sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(str(path.relative_to(PACKAGE)).encode() + b"\0" + path.read_bytes() + b"\0")
    return {"version": version("aipo"), "source": digest.hexdigest()[:16], "git": _git()}


@cache
def library_versions() -> dict[str, str]:
    """Return the version of python and of each library that numbers go through."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def differences(saved: dict[str, str], now: dict[str, str]) -> list[str]:
    """Return `name: old -> new` for each entry that differs.

    >>> differences({"torch": "2.12", "numpy": "2.4"}, {"torch": "2.13", "numpy": "2.4"})
    ['torch: 2.12 -> 2.13']
    """
    names = sorted(saved.keys() | now.keys())
    return [
        f"{name}: {saved.get(name, '?')} -> {now.get(name, '?')}"
        for name in names
        if saved.get(name) != now.get(name)
    ]


def _git() -> str:
    """Return the revision that this package is tracked in; one that was installed is tracked nowhere."""
    try:
        for arguments in (
            ["ls-files", "--error-unmatch", "__init__.py"],
            ["rev-parse", "--short=12", "HEAD"],
        ):
            found = subprocess.run(
                ["git", *arguments], capture_output=True, text=True, timeout=GIT_S, cwd=PACKAGE, check=True
            )
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()
