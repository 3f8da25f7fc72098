"""Started by torchrun from tests/e2e/test_ranks.py: rank 0 ends while a thread of gloo holds an exchange.

The exchange becomes whole while an object that python's finalisation tears down takes its time. Without
`end_process` in the last line gloo's thread aborts the process, as long as torch has its issue 190489.
"""

import time

import torch

from aipo.config.loader import load_settings
from aipo.training.ranks import end_process, join


class Slow:
    """Takes four seconds to go."""

    def __del__(self, sleep=time.sleep) -> None:  # type: ignore[no-untyped-def]
        sleep(4)


slow = Slow()

if __name__ == "__main__":
    ranks = join(load_settings(None, ["run.rank_timeout_s=60"]))
    ranks.all_gather(None)
    if not ranks.is_main:
        time.sleep(2)
    torch.distributed.all_reduce(torch.zeros(1), async_op=True)
    print("all done", flush=True)
    end_process(0)
