"""Sampling from a Hugging Face causal LM in this process, many rollouts at once.

A row that waits for an agent keeps its cached keys and values, and never stops the others.

Rows that decode occupy the first slots, rows that wait for their next request the ones behind them. Inserted
tokens are fed one a pass beside the rows that decode, or, when there are many of them, in one pass of their
own.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aipo.core.types import StopReason
from aipo.engines.base import Completion, EngineError, GenerationRequest, Sampling, taken_away
from aipo.engines.precision import CastWeights, compute_dtype
from aipo.engines.sampling import Uniforms, draw
from aipo.engines.slots import CacheFilled, SlotCache
from aipo.engines.stops import StopFinder, end_ids

LOCKSTEP_TOKENS = 16
"""At most this many inserted tokens are fed beside decoding rows; more get a forward pass of their own."""
PREFILL_TOKENS = 16_384
"""Padded tokens of one such pass."""


@dataclass(eq=False, slots=True, kw_only=True)
class _Row:
    """One session: a rollout's place in the cache."""

    session: str
    ids: list[int] = field(default_factory=list)
    cached: int = 0
    """How many of `ids` have their keys and values in the cache."""
    # Of the request being served; meaningless while the row waits.
    start: int = 0
    log_probs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    request: GenerationRequest | None = None
    future: "asyncio.Future[Completion] | None" = None
    uniforms: Uniforms = field(default_factory=lambda: Uniforms(0, 0))
    sampling: Sampling = field(default_factory=Sampling)
    banned: Sequence[int] = ()
    taken: tuple[int, ...] = ()

    @property
    def pending(self) -> int:
        return len(self.ids) - self.cached


_Asked = tuple[GenerationRequest, "asyncio.Future[Completion]"]


class TransformersEngine:
    """`aipo.engines.base.Engine` around a model that the trainer goes on updating in place."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, slots: int, capacity: int
    ) -> None:
        """`capacity` is the longest rollout in tokens. Raises `ValueError` for a model that cannot pause."""
        self._model, self._tokenizer = model, tokenizer
        self._weights = CastWeights(model)
        self._cache = SlotCache(model.config, slots, capacity, compute_dtype(model))
        self._slots = slots
        self._rows: list[_Row] = []
        self._active = 0
        self._index: dict[str, int] = {}
        self._new: deque[_Asked] = deque()
        self._resumed: deque[_Asked] = deque()
        self._runner: asyncio.Task[None] | None = None
        self._stops = StopFinder(tokenizer)
        self._end_ids = end_ids(model, tokenizer)
        self._paused = self._recompute = False
        self._version: int | None = None
        self.forwarded_tokens = 0
        """Tokens put through the model so far, padding excluded."""

    async def generate(self, request: GenerationRequest) -> Completion:
        """Sample a continuation; see `Engine`. Raises `EngineError` when there is no room or no prefix."""
        room = self._cache.capacity - len(request.prefix_ids)
        if not request.prefix_ids or request.max_new_tokens < 1 or room < request.max_new_tokens:
            raise EngineError(
                f"session {request.session}: {len(request.prefix_ids)} prefix tokens and "
                f"{request.max_new_tokens} new ones do not fit {self._cache.capacity}"
            )
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        (self._resumed if request.session in self._index else self._new).append((request, future))
        self._wake()
        return await future

    async def release(self, session: str) -> None:
        """Give a session's slot back."""
        position = self._index.get(session)
        if position is None:
            return
        if position < self._active:
            position = self._park(position)
        last = self._rows.pop()
        del self._index[session]
        if last.session != session:  # the last row moves into the gap; what it overwrites is forgotten
            self._cache.copy([len(self._rows)], [position], last.cached)
            self._rows[position] = last
            self._index[last.session] = position
        self._wake()

    @property
    def cache_bytes(self) -> int:
        """Memory that keys and values take now."""
        return self._cache.bytes

    def free(self) -> None:
        """Give the memory of the cache back between two steps; does nothing while a session is open."""
        if not self._rows:
            self._cache.free()
            self._weights.free()

    def pause(self) -> None:
        """Sample nothing until `resume`; see `Pausable`. Call it in the event loop: no pass is under way."""
        self._paused = True
        for row in self._rows:
            row.cached = 0
        self._cache.free()
        self._weights.free()

    def resume(self, version: int) -> None:
        """Go on with the weights as they are now: what rows hold is computed again by these, so that each
        token is drawn from exactly what they make of its beginning."""
        self._paused, self._recompute, self._version = False, True, version
        self._wake()

    def _wake(self) -> None:
        if self._runner is None or self._runner.done():
            self._runner = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            self._weights.refresh()
            while self._has_work():
                with torch.inference_mode():  # never across an await: it holds for the whole thread
                    self._admit()
                    self._decode()
                await asyncio.sleep(0)  # lets finished rollouts consult and ask for more
        except Exception as error:
            self._fail(error)

    def _has_work(self) -> bool:
        waiting = self._resumed or self._active or (self._new and len(self._rows) < self._slots)
        return bool(waiting) and not self._paused

    def _fail(self, error: Exception) -> None:
        """Answer everyone who waits; a broken forward pass must not become a hang."""
        asked = [*self._new, *self._resumed]
        futures = [row.future for row in self._rows[: self._active]] + [future for _, future in asked]
        self._new.clear()
        self._resumed.clear()
        self._rows.clear()
        self._index.clear()
        self._active = 0
        for future in futures:
            if future is not None and not future.done():
                future.set_exception(EngineError(f"the policy's forward pass failed: {error!r}"))

    # admission

    def _admit(self) -> None:
        first_new = self._active
        if self._recompute:
            self._weights.refresh()
            first_new, self._recompute = 0, False
        while self._resumed:
            request, future = self._resumed.popleft()
            if not future.cancelled():
                self._activate(request, future)
        while self._new and len(self._rows) < self._slots:
            request, future = self._new.popleft()
            if not future.cancelled():
                self._index[request.session] = len(self._rows)
                self._rows.append(_Row(session=request.session))
                self._activate(request, future)
        self._prefill(first_new)

    def _activate(self, request: GenerationRequest, future: "asyncio.Future[Completion]") -> None:
        row = self._rows[self._index[request.session]]
        prefix = list(request.prefix_ids)
        if prefix[: row.cached] != row.ids[: row.cached] or row.cached >= len(prefix):
            row.cached = 0  # not a continuation of what this session holds: begin anew
        row.ids, row.start, row.log_probs, row.versions = prefix, len(prefix), [], []
        row.request, row.future, row.sampling = request, future, request.sampling
        row.taken = taken_away(request.banned_sequences)
        row.uniforms = Uniforms(request.seed, len(prefix))
        self._swap(self._index[request.session], self._active)
        self._active += 1

    def _prefill(self, first_new: int) -> None:
        """Feed all but the last pending token of rows that have many; equal beginnings are computed once."""
        rows = self._rows[first_new : self._active]
        long = [row for row in rows if row.pending > LOCKSTEP_TOKENS or row.cached == 0]
        beginnings: dict[tuple[int, ...], _Row] = {}
        for row in long:
            if not row.cached and tuple(row.ids) not in beginnings:
                beginnings[tuple(row.ids)] = self._holder(row.ids) or row
        copies = {row.session: beginnings[tuple(row.ids)] for row in long if not row.cached}
        copies = {session: owner for session, owner in copies.items() if owner.session != session}
        owners = sorted((row for row in long if row.session not in copies), key=lambda row: row.pending)
        for offset, row in enumerate(owners):
            self._swap(self._index[row.session], first_new + offset)
        self._prefill_rows(first_new, owners)
        self._copy_beginnings(copies)

    def _holder(self, ids: list[int]) -> _Row | None:
        """Return a row that has all but the last of `ids` in the cache: a sibling admitted earlier."""
        fed = len(ids) - 1
        held = (row for row in self._rows if row.cached >= fed > 0 and row.ids[:fed] == ids[:fed])
        return next(held, None)

    def _prefill_rows(self, position: int, owners: list[_Row]) -> None:
        while owners:
            size = 1
            while size < len(owners) and owners[size].pending * (size + 1) <= PREFILL_TOKENS:
                size += 1
            chunk, owners = owners[:size], owners[size:]
            if fed := max(row.pending for row in chunk) - 1:
                inputs = [row.ids[row.cached : -1] for row in chunk]
                padded = [ids + [0] * (fed - len(ids)) for ids in inputs]
                self._fill(position, padded)
                for row, ids in zip(chunk, inputs, strict=True):
                    row.cached += len(ids)
                    self.forwarded_tokens += len(ids)
            position += size

    def _copy_beginnings(self, copies: dict[str, _Row]) -> None:
        by_length: dict[int, list[tuple[int, int]]] = {}
        for session, owner in copies.items():
            row = self._rows[self._index[session]]
            row.cached = len(row.ids) - 1
            by_length.setdefault(row.cached, []).append((self._index[owner.session], self._index[session]))
        for length, pairs in by_length.items():
            self._cache.copy([a for a, _ in pairs], [b for _, b in pairs], length)

    # decoding

    def _fill(self, position: int, inputs: list[list[int]]) -> None:
        """Compute keys and values only: nothing is sampled behind these tokens."""
        self._cache.fill_only(True)
        try:
            self._forward(position, inputs)
        except CacheFilled:
            pass  # what the last layer would make of them is never read
        finally:
            self._cache.fill_only(False)

    def _forward(self, position: int, inputs: list[list[int]]) -> torch.Tensor:
        """Run the model over rows from `position` on; logits (n, fed, vocabulary)."""
        rows = slice(position, position + len(inputs))
        device = self._model.device
        held = [row.cached for row in self._rows[rows]]
        positions, masks = self._cache.open(rows, held, len(inputs[0]), device)
        output = self._weights.forward(
            input_ids=torch.tensor(inputs, device=device),
            attention_mask=masks,
            position_ids=positions,
            past_key_values=self._cache.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits
        return logits

    def _decode(self) -> None:
        """Feed one token of every active row, and sample for those that have no more to feed."""
        if not self._active:
            return
        active = self._rows[: self._active]
        logits = self._forward(0, [[row.ids[row.cached]] for row in active])[:, -1]
        self.forwarded_tokens += len(active)
        sampling = []
        for i, row in enumerate(active):
            row.cached += 1
            if row.pending == 0:
                sampling.append(i)
        if not sampling:
            return
        drawn = [active[i] for i in sampling]
        for row in drawn:
            row.banned = _banned_now(row)
        if len(sampling) < len(active):
            logits = logits[sampling]
        tokens, log_probs = draw(logits, drawn)
        for row, token, log_prob in zip(drawn, tokens, log_probs, strict=True):
            row.ids.append(token)
            row.log_probs.append(log_prob)
            if self._version is not None:
                row.versions.append(self._version)
            self._finish_if_done(row)

    def _finish_if_done(self, row: _Row) -> None:
        request, future = row.request, row.future
        assert request is not None and future is not None
        new = len(row.log_probs)
        if row.ids[-1] in self._end_ids:
            stop = StopReason.END
        elif self._stops.completed(row.ids, row.start, request.stop):
            stop = StopReason.STOP_STRING
        elif new >= request.max_new_tokens or future.cancelled():
            stop = StopReason.LENGTH
        else:
            return
        self._park(self._index[row.session])
        if not future.done():
            changed = len(set(row.versions)) > 1
            future.set_result(
                Completion(
                    ids=tuple(row.ids[row.start :]),
                    log_probs=tuple(row.log_probs),
                    stop=stop,
                    weights_version=min(row.versions, default=None),
                    versions=tuple(row.versions) if changed else (),
                )
            )

    # places

    def _park(self, position: int) -> int:
        """Move an active row behind the active ones; return its new position."""
        self._active -= 1
        self._swap(position, self._active)
        return self._active

    def _swap(self, a: int, b: int) -> None:
        if a == b:
            return
        rows = self._rows
        self._cache.swap(a, b, max(rows[a].cached, rows[b].cached))
        rows[a], rows[b] = rows[b], rows[a]
        self._index[rows[a].session], self._index[rows[b].session] = a, b


def _banned_now(row: _Row) -> Sequence[int]:
    assert row.request is not None
    sequences = row.request.banned_sequences
    if not sequences:
        return ()
    return [s[-1] for s in sequences if len(s) == 1 or tuple(row.ids[-len(s) + 1 :]) == s[:-1]]
