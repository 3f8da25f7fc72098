"""The folder that a program under Landlock may write to: its own, bounded, and gone with the run.

There is no file system whose size the kernel would bound, so the supervisor looks at it while the program
runs, and a single file is small: what a program has unlinked and still holds open cannot be seen, only
counted. A folder that a killed grader left behind is removed by the next one that starts.
"""

import fcntl
import os
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

PREFIX = "aipo-scratch-"
MOST_ENTRIES = 1_000
"""Files and folders together."""
_ABANDONED_S = 60.0
"""A younger folder may belong to a grader that has not locked it yet."""


class Scratch:
    """One run's folder. Raises `OSError` where none can be made."""

    def __init__(self, uid: int, most_bytes: int) -> None:
        """Make it for a user, 0 being this one; its files may have `most_bytes` together."""
        self.path = tempfile.mkdtemp(prefix=PREFIX)
        self._most_bytes = most_bytes
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if uid:
            os.fchown(self._lock, uid, uid)

    def is_full(self) -> bool:
        """Return whether it holds more than it may; looks at no more than `MOST_ENTRIES`."""
        size, seen, folders = 0, 0, [self.path]
        while folders:
            try:
                with os.scandir(folders.pop()) as entries:
                    for entry in entries:
                        seen += 1
                        size += entry.stat(follow_symlinks=False).st_blocks * 512
                        if seen > MOST_ENTRIES or size > self._most_bytes:
                            return True
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(entry.path)
            except FileNotFoundError:  # removed meanwhile
                continue
            except OSError:  # a path so deep that it cannot be named
                return True
        return False

    def remove(self) -> None:
        """Remove it with all that it holds; nobody may use it any more."""
        _remove(self.path)
        os.close(self._lock)


def remove_abandoned() -> None:
    """Remove folders that nobody holds."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_ctime < _ABANDONED_S:
                continue
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(str(folder))
            finally:
                os.close(held)


def _remove(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError:  # not empty; folders may be nested deeper than Python's own removal can follow
        subprocess.run(["/bin/rm", "-rf", "--", path], env={}, check=False, stderr=subprocess.DEVNULL)
