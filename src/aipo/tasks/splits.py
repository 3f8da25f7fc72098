"""Disjoint splits: what is held out from training, and how.

No two splits share a question, compared by its text.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from aipo.tasks.base import Split
from aipo.tasks.files import question_key

HELD_OUT_SHARE = 0.05
"""Share of the training rows that becomes the validation split when none is given."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Disjoint(Generic[T]):
    """Rows by split, and how many were dropped because a held-out split has them too."""

    rows: Mapping[Split, list[T]]
    dropped: int


def disjoint(loaded: Mapping[Split, Sequence[T]], text: Callable[[T], str]) -> Disjoint[T]:
    """Drop from train what validation or test hold, and from validation what test holds.

    Without a validation split, 5 % of the training rows become it, chosen by a hash of the question's text:
    the same rows in every run, whatever their order.
    """
    test = list(loaded.get(Split.TEST, ()))
    validation = _without(loaded.get(Split.VALIDATION, ()), test, text)
    train = _without(loaded.get(Split.TRAIN, ()), [*validation, *test], text)
    dropped = sum(map(len, loaded.values())) - len(train) - len(validation) - len(test)
    if Split.VALIDATION not in loaded:
        validation = [row for row in train if _hash_share(text(row)) < HELD_OUT_SHARE]
        train = _without(train, validation, text)
    return Disjoint({Split.TRAIN: train, Split.VALIDATION: validation, Split.TEST: test}, dropped)


def _without(rows: Iterable[T], held_out: Iterable[T], text: Callable[[T], str]) -> list[T]:
    taken = {question_key(text(row)) for row in held_out}
    return [row for row in rows if question_key(text(row)) not in taken]


def _hash_share(text: str) -> float:
    """Return a number in [0, 1) that depends on the question alone."""
    digest = hashlib.sha256(question_key(text).encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
