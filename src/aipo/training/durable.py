"""Files that are there after a power cut: written aside, flushed to the disk, renamed.

Under its final name a file or folder is whole, and its name is on the disk as well as its bytes. A rename is
on the disk only when the folder that holds the name is (man 2 fsync).
"""

import fcntl
import os
from pathlib import Path
from typing import IO


def write_whole(path: Path, text: str) -> None:
    """Replace a file by `text`, whole or not at all. Raises `OSError`; the old file then is as it was."""
    aside = path.with_suffix(".partial")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Wait until everything in a folder is on the disk, its own names last."""
    for path in sorted(folder.rglob("*"), key=lambda path: -len(path.parts)):
        sync(path)
    sync(folder)


def hold_lock(path: Path) -> IO[str] | None:
    """Return a file's lock, held until it is closed or the process ends; None if it is taken."""
    lock = path.open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock
