"""Rows of different lengths as rectangles: padding, marked spans, batches of a bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["left_pad", "mark", "micro_batches", "right_pad"]

Item = TypeVar("Item")


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Left-padded ids (B, T) and their attention mask (B, T) of 0 and 1."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id)
    for row, out in zip(rows, ids, strict=True):
        out[width - len(row) :] = torch.tensor(row)
    return ids, mark([(width - len(row), width) for row in rows], width)


def right_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Right-padded ids (B, T) and their attention mask (B, T) of 0 and 1."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id)
    for row, out in zip(rows, ids, strict=True):
        out[: len(row)] = torch.tensor(row)
    return ids, mark([(0, len(row)) for row in rows], width)


def mark(spans: Sequence[tuple[int, int]], width: int) -> Tensor:
    """1 from each row's first column to before its end, else 0: (B, width).

    >>> mark([(1, 3), (0, 1)], 3)
    tensor([[0, 1, 1],
            [1, 0, 0]])
    """
    columns = torch.arange(width)
    first, end = torch.tensor(spans).T[..., None]
    marked: Tensor = (first <= columns) & (columns < end)
    return marked.long()


def micro_batches(
    items: Iterable[Item], tokens: int, length: Callable[[Item], int]
) -> list[list[Item]]:
    """Split items, shortest first, into batches of at most `tokens` padded tokens each.

    A longer item gets its own batch.

    >>> micro_batches(["aaaa", "b", "cc"], 4, len)
    [['b', 'cc'], ['aaaa']]
    """
    batches: list[list[Item]] = []
    for item in sorted(items, key=length):  # so each item is the longest of its batch so far
        if batches and (len(batches[-1]) + 1) * length(item) <= tokens:
            batches[-1].append(item)
        else:
            batches.append([item])
    return batches
