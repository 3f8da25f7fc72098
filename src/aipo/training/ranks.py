"""Several processes that train one policy: their shares of the work, what they exchange, how they end.

Every rank makes the same exchanges in the same order. A rank that is gone or silent is an error on all the
others within `run.rank_timeout_s`, never an endless wait. With one process each method is the identity and
nothing is started. torchrun or `accelerate launch` starts the processes; accelerate handles gradients (DDP,
FSDP).
"""

import atexit
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
from accelerate import PartialState
from torch.nn.parallel import DistributedDataParallel

from aipo.config.settings import Settings
from aipo.training.device import the_device
from aipo.training.events import LostRankError, StopRunError

Item = TypeVar("Item")


class Ranks:
    """This process among those of the run."""

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None, timeout_s: float = 0.0) -> None:
        """`group` is torch's, of CPU tensors, with this timeout."""
        self.rank, self.size = rank, size
        self._group, self._timeout_s = group, timeout_s
        self.waiting: Callable[[], AbstractContextManager[object]] = nullcontext
        """Entered around each exchange, for the watchdog's list."""

    @property
    def several(self) -> bool:
        """Whether there is anybody to talk to."""
        return self.size > 1

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes files, evaluates and speaks to the user."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this rank's part of what all have: every `size`-th item.

        >>> Ranks(1, 2).share("abcde")
        'bd'
        """
        return items[self.rank :: self.size]

    def gather_interleaved(self, own: Sequence[Item]) -> list[Item]:
        """Return what became of all items, in the order before `share`, given what became of one's own."""
        shares = self.all_gather(list(own))
        return [shares[i % self.size][i // self.size] for i in range(sum(map(len, shares)))]

    def all_gather(self, own: Item) -> list[Item]:
        """Return the values of all ranks, in the order of ranks. Raises `LostRankError`."""
        if not self.several:
            return [own]
        found: list[Any] = [None] * self.size
        try:
            with self.waiting():
                torch.distributed.all_gather_object(found, own, group=self._group)
        except RuntimeError as error:  # gloo has no other kind, whatever happened
            raise self._lost(error) from error
        return found

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """Let what torch says of a lost rank within this block, as in a backward pass, be `LostRankError`."""
        try:
            yield
        except RuntimeError as error:
            told = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
            if not self.several or isinstance(error, StopRunError) or not told:
                raise
            raise self._lost(error) from error

    def _lost(self, error: RuntimeError) -> LostRankError:
        return LostRankError(
            f"rank {self.rank}: another rank has ended, or was silent for more than run.rank_timeout_s = "
            f"{self._timeout_s:g} ({error}). The same command continues from the newest checkpoint"
        )

    def summed(self, own: Mapping[str, float], largest: frozenset[str] = frozenset()) -> dict[str, float]:
        """Return the sum over ranks of each number, in the order of ranks; of the `largest` the maximum."""
        total: dict[str, float] = {}
        for of_rank in self.all_gather(dict(own)):
            for name, value in of_rank.items():
                before = total.get(name, 0.0)
                total[name] = max(before, value) if name in largest else before + value
        return total

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let an error within this block, a stop or bad input, be raised by all ranks at its end."""
        if not self.several:
            yield
            return
        own: Exception | None = None
        try:
            yield
        except LostRankError:
            raise
        except (StopRunError, ValueError) as error:
            own = error
        raised = [told for told in self.all_gather((type(own), str(own)) if own else None) if told]
        if own:
            raise own
        if raised:
            raise _same_error(*raised[0])

    def first(self, do: Callable[[], object]) -> None:
        """Let rank 0 do something while the others wait; its errors are those of all."""
        with self.together():
            if self.is_main:
                do()

    def from_main(self, do: Callable[[], Item]) -> Item:
        """Let rank 0 make something while the others wait; return it on all. Its errors are those of all."""
        made: list[Item] = []
        with self.together():
            if self.is_main:
                made.append(do())
        return self.all_gather(made)[0][0]

    def in_turn(self, do: Callable[[], Item]) -> Item:
        """Do something on rank 0, and when it is done on all the others; return each one's own result."""
        result: list[Item] = []
        for turn in (True, False):
            with self.together():
                if self.is_main is turn:
                    result.append(do())
        return result[0]


ALONE = Ranks()
"""The one process of a run that was started as one."""


def join(settings: Settings, engine_allows: bool = True) -> Ranks:
    """Meet the other processes that torchrun has started, if it has; before the policy is loaded.

    `engine_allows`: whether each of them can sample its share (`EngineSpec.on_several_ranks`).
    Raises `ValueError` for settings with which only one process can run.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return ALONE
    if not engine_allows:
        raise ValueError(
            f"engine.name = {settings.engine.name!r} cannot be sampled from by several ranks (its entry says "
            "neither `in_process` nor `shared`); take another engine, or start one process"
        )
    device = the_device(settings.run.device)
    if device not in ("cpu", "cuda"):
        raise ValueError(
            f"run.device = {device!r} with several ranks; make it 'cuda', which is one GPU for each, or 'cpu'"
        )
    limit = timedelta(seconds=settings.run.rank_timeout_s)
    state = PartialState(cpu=device == "cpu", timeout=limit)
    group = torch.distributed.new_group(backend="gloo", timeout=limit)
    return Ranks(state.process_index, state.num_processes, group, settings.run.rank_timeout_s)


def end_process(exit_code: int) -> NoReturn:
    """End this one of several processes at once, after what was registered for the end has run.

    Not by python's own finalisation: a thread of gloo that lets go of an exchange's tensors meanwhile takes
    the lock of an interpreter that is going, and aborts a run that had done all (pytorch/pytorch#190489).
    `destroy_process_group` waits for those threads only where nothing else holds the group; FSDP's caches do.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(exit_code)


def disable_buffer_broadcast(model: torch.nn.Module) -> None:
    """Keep DDP from sending buffers in each forward pass: they never change, and passes without a gradient
    would have to be as many on all ranks."""
    if isinstance(model, DistributedDataParallel):
        model.broadcast_buffers = False


def _same_error(kind: type[Exception], message: str) -> Exception:
    try:
        return kind(message)
    except TypeError:  # an error with other arguments, as UnicodeDecodeError
        return (ValueError if issubclass(kind, ValueError) else StopRunError)(message)
