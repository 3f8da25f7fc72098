"""Runs a command and ends it with whoever asked: `python -m aipo.engines.keeper PARENT_PID COMMAND ...`.

When the parent dies, by whatever signal, the whole process group of the command is killed: no server outlives
its run. Linux only (PR_SET_PDEATHSIG); elsewhere a killed run leaves its server behind. Nothing of ours is
imported.
"""

import ctypes
import os
import signal
import subprocess
import sys
from types import FrameType

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Run the command; return its exit status."""
    parent = int(sys.argv[1])  # an argument and not os.getppid(): it may have died before this line
    signal.signal(signal.SIGTERM, _end_group)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        return 1  # it died before it could be watched
    return subprocess.run(sys.argv[2:], stdin=subprocess.DEVNULL, check=False).returncode


def _end_group(number: int, frame: FrameType | None) -> None:
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
