"""Files and folders written atomically: staged next to their place, flushed to disk, then renamed.

A kill or a full disk at any moment leaves the old one or the new one, never half of one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["inside", "staged", "write_text"]


def inside(root: str | Path, name: str) -> Path:
    """The path of `name` in the folder `root`, with symbolic links resolved.

    Use it for every file name that comes from data or settings.

    Raises:
        ValueError: it isn't a name, or leads out of `root`.
    """
    try:
        folder = Path(root).resolve()
        path = (folder / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # NUL, too long, a ring of links
        raise ValueError(f"{name!r} is not a file name ({error}); give another.") from error
    if path == folder or not path.is_relative_to(folder):
        raise ValueError(f"{name!r} leads out of the folder {root}; give a name inside it.")
    return path


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A new, empty folder that replaces `folder` at the end of the block.

    If the block raises, the new folder is removed and `folder` stays as it was.
    """
    part, old = (folder.with_name(f".{folder.name}.{what}") for what in ("part", "old"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    if old.exists() and not folder.exists():  # killed between the two renames below
        old.rename(folder)
    for left_over in (part, old):
        shutil.rmtree(left_over, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        for path in sorted(part.rglob("*")):
            _flush(path)
        _flush(part)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if folder.exists():  # a folder can't be renamed onto one that holds files
        folder.rename(old)
    part.rename(folder)
    _flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically: a reader sees the old text or the new one."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _flush(path.parent)


def _flush(path: Path) -> None:
    """Have the system write a file, or a folder's list of names, to the disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders, and keeps their lists itself
        return
    file = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
