"""A key-value cache of slots: each row of a batch has its own length, and keeps its place while it waits.

A row attends to exactly its own `length` cached positions and, causally, to the tokens being fed.

Works for attention layers, grouped-query and sliding-window ones included. Does not work for recurrent layers
(Mamba, linear attention), whose state cannot be rewound to a position, nor for chunked attention, for which
there is no mask here: `SlotCache` refuses such a model.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig
from transformers.cache_utils import CacheLayerMixin

ATTENTION_LAYERS = {"full_attention", "sliding_attention"}


class CacheFilled(Exception):
    """Ends a forward pass that only fills the cache, as soon as its last layer has written."""


BLOCK_TOKENS = 128
"""Columns are added in multiples of this."""
KEPT_BYTES = 2**26
"""What `free` leaves alone: giving back less is not worth asking for it again."""


class _Window:
    """Which rows and columns the current forward pass reads and writes, and how many there is memory for."""

    shape: tuple[int, int] = (0, 0)
    rows: slice = slice(0, 0)
    row_index: Tensor
    column_index: Tensor
    width: int = 0
    last: "_SlotLayer | None" = None
    """The layer with whose keys and values the pass has done its work; None: it is wanted to the end."""


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, (rows, columns, heads, head size), both growing with what is used."""

    is_sliding = False

    def __init__(self, window: _Window, capacity: int, dtype: torch.dtype) -> None:
        super().__init__()
        self._window, self._capacity, self._dtype = window, capacity, dtype

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        def empty(like: Tensor) -> Tensor:
            shape = (*self._window.shape, like.shape[1], like.shape[3])
            return torch.zeros(shape, dtype=self._dtype, device=like.device)

        self.keys, self.values = empty(key_states), empty(value_states)
        self.is_initialized = True

    def grow(self) -> None:
        """Make room for the window's shape; what is held stays where it is."""
        if self.keys is None or self.values is None:
            return
        self.keys, self.values = self._grown(self.keys), self._grown(self.values)

    def _grown(self, states: Tensor) -> Tensor:
        grown = states.new_zeros(*self._window.shape, *states.shape[2:])
        grown[: states.shape[0], : states.shape[1]] = states
        return grown

    def free(self) -> None:
        """Give the memory back, with all that is held."""
        self.keys = self.values = None
        self.is_initialized = False

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write (n, heads, fed, size) at each row's own columns; return (n, heads, width, size) views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        w = self._window
        # As attention rounds them: in mixed precision keys come in float32 from their rotation.
        self.keys[w.row_index, w.column_index] = key_states.transpose(1, 2).to(self._dtype)
        self.values[w.row_index, w.column_index] = value_states.transpose(1, 2).to(self._dtype)
        if self is w.last:
            raise CacheFilled
        return (
            self.keys[w.rows, : w.width].transpose(1, 2),
            self.values[w.rows, : w.width].transpose(1, 2),
        )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._window.width, 0

    def get_seq_length(self) -> int:
        return self._window.width

    def get_max_length(self) -> int:
        return self._capacity


class SlotCache:
    """`slots` rows of up to `capacity` tokens for one model; its memory grows with what is in use."""

    def __init__(
        self, config: PretrainedConfig, slots: int, capacity: int, dtype: torch.dtype = torch.float32
    ) -> None:
        """`dtype`: what the model computes in. Raises `ValueError` for layers of another kind."""
        text: Any = config.get_text_config(decoder=True)
        window: int | None = getattr(text, "sliding_window", None)
        self._sliding_window = window if getattr(text, "use_sliding_window", True) else None
        # Mistral and its like name no layer types: with a window, every layer slides.
        kind = "full_attention" if self._sliding_window is None else "sliding_attention"
        layer_types = getattr(text, "layer_types", None) or [kind] * text.num_hidden_layers
        if other := set(layer_types) - ATTENTION_LAYERS:
            raise ValueError(
                f"policy.model: layers of type {sorted(other)} keep a recurrent state or need another mask, "
                "which the in-process engine cannot give them; sample from a vLLM server instead "
                "(engine.name = 'vllm', docs/engines.md), or use a model with full or sliding-window "
                "attention layers only"
            )
        self.capacity, self._slots = capacity, slots
        self._window = _Window()
        self._layers = [_SlotLayer(self._window, capacity, dtype) for _ in layer_types]
        self.cache = Cache(layers=list(self._layers))
        self._layer_types = set(layer_types)
        self._config, self._dtype = text, dtype

    def fill_only(self, wanted: bool) -> None:
        """Say whether the next passes raise `CacheFilled` once they have written all keys and values."""
        self._window.last = self._layers[-1] if wanted else None

    @property
    def bytes(self) -> int:
        """Memory that keys and values take now."""
        return sum(states.nbytes for states in self._states())

    def free(self) -> None:
        """Give the memory back, if it is much; for when no row is in use, as during an update."""
        if self.bytes > KEPT_BYTES:
            self._window.shape = (0, 0)
            for layer in self._layers:
                layer.free()

    @torch.inference_mode()
    def _reserve(self, rows: int, columns: int) -> None:
        """Have memory for some rows and columns: a half more than there was, in blocks, up to the limits."""
        had_rows, had_columns = self._window.shape
        if rows <= had_rows and columns <= had_columns:
            return
        if rows > had_rows:
            rows = max(rows, had_rows * 3 // 2)
        if columns > had_columns:
            columns = -(-max(columns, had_columns * 3 // 2) // BLOCK_TOKENS) * BLOCK_TOKENS
        rows, columns = max(rows, had_rows), max(columns, had_columns)
        self._window.shape = min(rows, self._slots), min(columns, self.capacity)
        for layer in self._layers:
            layer.grow()

    def open(
        self, rows: slice, held: list[int], fed: int, device: torch.device
    ) -> tuple[Tensor, Tensor | dict[str, Tensor]]:
        """Prepare a forward pass of `fed` tokens for each of `rows`, which hold `held` tokens already.

        Returns position ids (n, fed) and attention masks (n, 1, fed, width) as the model's attention wants
        them: True where attended, or added to the scores where it is `eager`.
        """
        w = self._window
        positions = torch.tensor(held, device=device).unsqueeze(1)
        if fed > 1:
            # Padding of a shorter row may run past the end; what it writes there is never attended to.
            positions = (positions + torch.arange(fed, device=device)).clamp(max=self.capacity - 1)
        w.rows = rows
        w.row_index = torch.arange(rows.start, rows.stop, device=device).unsqueeze(1)
        w.column_index = positions
        w.width = min(max(held) + fed, self.capacity)
        self._reserve(rows.stop, w.width)
        columns = torch.arange(w.width, device=device)
        mask = columns <= positions.unsqueeze(-1)
        return positions, self._masks(mask, columns, positions)

    def _masks(self, causal: Tensor, columns: Tensor, positions: Tensor) -> Tensor | dict[str, Tensor]:
        full = self._mask(causal)
        if self._sliding_window is None or self._layer_types == {"full_attention"}:
            return full
        near = columns > positions.unsqueeze(-1) - self._sliding_window
        sliding = self._mask(causal & near)
        if "full_attention" not in self._layer_types:
            return sliding
        return {"full_attention": full, "sliding_attention": sliding}

    def _mask(self, attended: Tensor) -> Tensor:
        if self._config._attn_implementation != "eager":
            return attended.unsqueeze(1)
        hidden = torch.zeros(attended.shape, dtype=self._dtype, device=attended.device)
        return hidden.masked_fill(~attended, torch.finfo(self._dtype).min).unsqueeze(1)

    @torch.inference_mode()  # as the forward passes are, whose memory this is
    def swap(self, a: int, b: int, length: int) -> None:
        """Exchange the first `length` positions of two rows."""
        self._reserve(max(a, b) + 1, length)
        for states in self._states():
            kept = states[a, :length].clone()
            states[a, :length] = states[b, :length]
            states[b, :length] = kept

    @torch.inference_mode()
    def copy(self, sources: list[int], targets: list[int], length: int) -> None:
        """Copy the first `length` positions of row `sources[i]` to row `targets[i]`, all at once."""
        self._reserve(max(*sources, *targets) + 1, length)
        for states in self._states():
            states[targets, :length] = states[sources, :length]

    def _states(self) -> Iterator[Tensor]:
        for layer in self._layers:
            for states in (layer.keys, layer.values):
                if states is not None:
                    yield states
