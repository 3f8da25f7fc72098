"""New weights on their way from the trainer to an engine that has weights of its own.

With several ranks, rank 0 alone loads them into servers that all of them sample from. What became of it is
known on every rank before any of them samples again.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from aipo.engines.base import EngineError, SharedSink, WeightSink
from aipo.training.ranks import Ranks


async def hand_over(
    sink: WeightSink, ranks: Ranks, write: Callable[[Path], object], version: int
) -> Sequence[str]:
    """Load the weights that `write` puts into a folder; on all ranks at once, nothing is in flight.

    Returns what is to be said of servers that go without. Raises `EngineError`, the same on all ranks.
    """
    if not isinstance(sink, SharedSink):  # every rank has one of its own
        await sink.load_weights(write, version)
        return ()
    error: str | None = None
    if ranks.is_main:
        try:
            await sink.load_weights(write, version)
        except EngineError as refused:
            error = str(refused)
    error, stamp, lost = ranks.all_gather((error, sink.stamp, tuple(sink.lost)))[0]
    if error is not None:
        raise EngineError(error)
    if not ranks.is_main:
        sink.follow(stamp)
    return lost
