"""The three splits of a task, and how an endless task deals its questions to them."""

from __future__ import annotations

import zlib

__all__ = ["SPLITS", "check_split", "split_of"]

SPLITS = ("train", "validation", "test")
"""Learn on the first, make every choice on the second, read the third once."""


def check_split(split: str) -> None:
    """Refuse a name that is no split, with a ValueError that lists the three."""
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}; choose one of {', '.join(SPLITS)}.")


def split_of(identity: str) -> str:
    """The split of a question by what makes it the same one: eight of ten are train.

    >>> [split_of(f"question {n}") for n in range(5)]
    ['test', 'train', 'train', 'train', 'train']
    """
    bucket = zlib.crc32(identity.encode()) % 10
    return "train" if bucket > 1 else SPLITS[1 + bucket]
