"""Weights on their way to a policy server, as files that this process and the server see.

A folder is handed on only when all of it is written, and is gone when it has been read.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from aipo.engines.base import EngineError

MEMORY_FOLDER = Path("/dev/shm")


@contextmanager
def weight_files(write: Callable[[Path], object], parent: Path | None) -> Iterator[Path]:
    """Within the block there is a folder with what `write` wrote: in `parent`; where that is None, in memory.

    Raises `EngineError` where it cannot be written.
    """
    parent = parent or (MEMORY_FOLDER if MEMORY_FOLDER.is_dir() else None)
    try:
        folder = Path(tempfile.mkdtemp(prefix="aipo-weights-", dir=parent))
    except OSError as error:
        raise EngineError(f"engine.weights_folder = {str(parent)!r} cannot be used: {error}") from error
    try:
        yield _whole(write, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _whole(write: Callable[[Path], object], folder: Path) -> Path:
    partial = folder / "partial"
    try:
        write(partial)
        return partial.rename(folder / "whole")
    except (OSError, SafetensorError) as error:
        raise EngineError(f"the policy's weights cannot be written to {folder}: {error}") from error
