"""An update beside rollouts: in a thread, so that the event loop goes on reading what agents say.

Nothing samples from the weights meanwhile, and a stop waits for the end of it.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


class Aside:
    """Runs one thing at a time."""

    def __init__(self) -> None:
        self.busy = False
        """Whether a thread is changing the weights: no checkpoint can be made of them."""

    async def run(self, work: Callable[[], Result]) -> Result:
        """Return what `work` returns. Where the caller is cancelled, that takes effect when it has ended."""
        self.busy = True
        running = asyncio.get_running_loop().run_in_executor(None, work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])
            raise
        finally:
            self.busy = False
