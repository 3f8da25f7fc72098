"""New weights on their way from the trainer to an engine that has weights of its own.

With several ranks, rank 0 alone loads them into servers that all of them sample from. What became of it is
known on every rank before any of them samples again.
"""

from collections.abc import Sequence
from functools import partial

from transformers import PreTrainedModel

from aipo.engines.base import AdapterSink, EngineError, SharedSink, WeightSink
from aipo.training.lora import has_lora
from aipo.training.model import save_plain
from aipo.training.ranks import Ranks


async def hand_over(sink: WeightSink, ranks: Ranks, model: PreTrainedModel, version: int) -> Sequence[str]:
    """Load the model's weights into the sink; on all ranks at once, nothing is in flight.

    A policy's adapters go as they are where the sink takes them, else merged into the whole weights. Returns
    what is to be said of servers that go without. Raises `EngineError`, the same on all ranks.
    """
    alone = has_lora(model) and isinstance(sink, AdapterSink) and sink.takes_adapters
    write = model.save_pretrained if alone else partial(save_plain, model)
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
