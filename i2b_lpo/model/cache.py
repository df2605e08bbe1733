"""Keys and values: cache layers with spare room, and rows that outlive their batch.

A fork continues from its rollout's own keys and values, so those of a decoded row are kept
(`KeyValues`) when it leaves the batch, and joined again into the batch of all branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from i2b_lpo.method.psa import Injection

__all__ = ["KeyValues", "RoomyLayer", "gather", "new_cache", "take_rows"]


class RoomyLayer(DynamicLayer):
    """A cache layer with spare room: a step writes one column and copies nothing."""

    ROOM = 64  # columns added when the room is used up
    _buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append new columns; returns all keys and values."""
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self._has_room(end):
            if not start:
                self.lazy_initialization(key_states, value_states)
            batch, heads, _, size = key_states.shape
            shape = (batch, heads, end + self.ROOM, size)
            self._buffers = key_states.new_empty(shape), value_states.new_empty(shape)
            if start and self.keys is not None and self.values is not None:
                self._buffers[0][:, :, :start] = self.keys
                self._buffers[1][:, :, :start] = self.values
        assert self._buffers is not None
        keys, values = self._buffers
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only keep the rows `indices`."""
        if self._buffers is None or not self._has_room(end := self.get_seq_length()):
            super().batch_select_indices(indices)
            return
        # The spare room is selected too, so that the next step needs no new buffer.
        keys, values = (buffer[indices] for buffer in self._buffers)
        self._buffers = keys, values
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]

    def _has_room(self, end: int) -> bool:
        # Repeating rows replaces `keys` with a fresh tensor: then the buffer is stale.
        return (
            self._buffers is not None
            and self.keys is not None
            and self.keys.data_ptr() == self._buffers[0].data_ptr()
            and self.keys.shape[0] == self._buffers[0].shape[0]
            and end <= self._buffers[0].shape[-2]
        )


@dataclass(frozen=True)
class KeyValues:
    """What one row of a batch has read, without padding: keys and values, (L, kv_heads, T, d)."""

    keys: Tensor
    values: Tensor

    def __len__(self) -> int:
        return self.keys.shape[2]

    def crop(self, tokens: int) -> KeyValues:
        """The first `tokens` tokens, as a view."""
        if tokens > len(self):
            raise ValueError(f"A row has read {len(self)} tokens; it can't give {tokens}.")
        return KeyValues(self.keys[:, :, :tokens], self.values[:, :, :tokens])


def new_cache() -> Cache:
    """An empty cache of roomy layers."""
    return Cache(layer_class_to_replicate=RoomyLayer)


def take_rows(cache: Cache, rows: Sequence[int], mask: Tensor) -> list[KeyValues]:
    """Copy rows out of a cache; `mask` (B, C) is True on the columns that are tokens."""
    taken = []
    for row in rows:
        columns = mask[row].nonzero()[:, 0]
        states = [
            torch.stack([getattr(layer, name)[row][:, columns] for layer in cache.layers])
            for name in ("keys", "values")
        ]
        taken.append(KeyValues(*states))
    return taken


def gather(
    rows: Sequence[KeyValues], copies: int = 1, injection: Injection | None = None
) -> tuple[Cache, Tensor]:
    """One left-padded cache of `rows`, each `copies` times, rows of one source as neighbours.

    With an injection that has keys, column 0 is z's slot: one latent per row of the result.

    Returns:
        The cache, and the mask (B, C) of its columns without the slot; 1 on tokens, 0 on padding.

    Raises:
        ValueError: there isn't one latent for each row of the result.
    """
    if injection is not None:
        injection.check_rows(len(rows) * copies)
    width = max(map(len, rows))
    slot = int(injection is not None and injection.keys is not None)
    first = rows[0].keys
    mask = torch.zeros(len(rows), width, dtype=torch.long, device=first.device)
    for at, row in enumerate(rows):
        mask[at, width - len(row) :] = 1
    cache = new_cache()
    for index in range(first.shape[0]):
        layer = RoomyLayer()  # type: ignore[no-untyped-call]
        both = []
        for name in ("keys", "values"):
            states = first.new_zeros(len(rows), first.shape[1], slot + width, first.shape[3])
            for at, row in enumerate(rows):
                states[at, :, slot + width - len(row) :] = getattr(row, name)[index]
            states = states.repeat_interleave(copies, 0)
            projected = None if injection is None else getattr(injection, name)
            if projected is not None:
                states[:, :, 0] = projected[index]
            both.append(states)
        layer.update(*both)
        cache.layers.append(layer)
    return cache, mask.repeat_interleave(copies, 0)
