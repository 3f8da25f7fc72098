"""Freed memory stays with the process: the kernel is not asked for it again. Processes of their own."""

import os
import platform
import subprocess
import sys

import pytest

MICRO_BATCHES = """
import resource, sys, torch
from aipo.assembly.parts import tune_malloc
kept = tune_malloc() if sys.argv[1] == "kept" else None
def micro_batch():
    return sum(float(tensor[0]) for tensor in [torch.ones(2**20) for _ in range(40)])  # 160 MiB
micro_batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    micro_batch()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, **environment: str) -> tuple[str, int]:
    """Return what `tune_malloc` said, and the page faults of ten micro-batches after the first."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    command = [sys.executable, "-c", MICRO_BATCHES, how]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=120, env=plain | environment
    )
    said, number = done.stdout.split()
    return said, int(number)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no mallopt")
class TestHeap:
    def test_the_next_micro_batch_takes_what_the_last_one_freed(self) -> None:
        said, kept = faults("kept")
        _, given_back = faults("given back")
        assert said == "True"
        assert 5 * kept < given_back, (kept, given_back)

    def test_what_a_user_has_set_stays(self) -> None:
        said, given_back = faults("kept", MALLOC_TRIM_THRESHOLD_="131072")
        assert said == "False" and given_back > 0
