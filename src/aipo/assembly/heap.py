"""The C library's heap of this process.

Owns how long freed memory is kept. Must not know what stands in it. Invariant: what a user has set by
glibc's own variables (`MALLOC_TRIM_THRESHOLD_` and its like) stays as it is.
"""

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_TRIM_FROM_BYTES = 2**31 - 1
_MMAP_FROM_BYTES = 32 * 2**20  # glibc takes no more


def tune_malloc() -> bool:
    """Have glibc keep what is freed for what comes next; say whether it does.

    On a CPU each micro-batch frees its activations and the next one asks for as many. By itself glibc gives
    them back to the kernel in between, which hands out zeroed pages again: 4 to 7 % of a step's time
    (`benchmarks/step.py`). Tensors above 32 MiB still come and go by themselves. Degenerate case: another C
    library, nothing happens.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    set_trim = mallopt(_M_TRIM_THRESHOLD, _TRIM_FROM_BYTES)
    set_mmap = mallopt(_M_MMAP_THRESHOLD, _MMAP_FROM_BYTES)
    return bool(set_trim and set_mmap)
