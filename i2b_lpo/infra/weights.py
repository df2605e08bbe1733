"""Folders of weights: only safetensors, with their SHA-256 sums, replaced atomically."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from i2b_lpo.infra.files import staged

__all__ = ["check_sums", "check_weights", "file_sum", "replaced", "write_sums"]

SUMS = "sha256.json"


@contextmanager
def replaced(folder: str | Path, *, mark: str) -> Iterator[Path]:
    """A new folder to write to, which atomically replaces `folder` at the end.

    It gets the sums of the files written. Other files in `folder` are kept, except weights.

    Args:
        folder: where it will be.
        mark: the file that identifies an earlier folder of the same kind, which may be replaced.

    Raises:
        ValueError: `folder` holds something else.
        OSError: it can't be written, e.g. the disk is full.
    """
    folder = Path(folder).expanduser().resolve()
    try:
        with staged(folder) as part:
            kept = {path.name: path for path in folder.iterdir()} if folder.exists() else {}
            if kept and mark not in kept:
                raise ValueError(
                    f"{folder} holds files that weren't saved here before; choose a new folder."
                )
            yield part
            write_sums(part, _files(part))
            for name, path in kept.items():
                if not (part / name).exists() and ".safetensors" not in name:
                    (shutil.copytree if path.is_dir() else shutil.copy2)(path, part / name)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"Can't write {folder} ({error}); what was there before is intact. Free some space, or "
            "choose another place, and save again."
        ) from error


def write_sums(folder: Path, files: Iterable[str]) -> None:
    """Write the `sha256.json` that `check_sums` compares with."""
    sums = {file: file_sum(folder / file) for file in sorted(files)}
    (folder / SUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


def check_sums(folder: Path, *, bundled: bool = False) -> None:
    """Compare every file named in `sha256.json` with its sum, before anything is loaded.

    Args:
        folder: where they are; one without `sha256.json` passes, unless it is bundled.
        bundled: whether it belongs to the package.

    Raises:
        ValueError: a file is missing or has changed; the message says what to do.
    """
    path = folder / SUMS
    if not path.is_file():
        if bundled:
            raise ValueError(f"The bundled file {path} is missing; reinstall the package.")
        return
    again = "reinstall the package" if bundled else f"copy the folder again, or delete {SUMS}"
    try:
        sums = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path} can't be read; {again}.") from error
    there = set(_files(folder))
    for file, expected in sums.items():
        # Only files in the folder are opened, wherever else a name may lead.
        found = file_sum(folder / file) if file in there else "no file"
        if found == expected:
            continue
        if bundled:
            raise ValueError(
                f"The bundled file {folder / file} is damaged ({found[:12]} is not "
                f"{str(expected)[:12]}); {again}."
            )
        what = "not the file that was saved: it was cut off, swapped or edited"
        raise ValueError(
            f"{folder / file} is {what if file in there else 'missing'}; {again} if the change is "
            "on purpose."
        )


def check_weights(folder: Path) -> None:
    """Refuse a folder whose weights are not all in safetensors files of its own.

    Raises:
        ValueError: weights are missing, pickled, or named by the index but not in the folder.
    """
    there = {path.name for path in folder.iterdir()}
    index = "model.safetensors.index.json"
    if "model.safetensors" in there:
        return
    if index in there:
        try:
            named = set(
                json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values()
            )
        except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / index} can't be read; copy the folder again.") from error
        # Take names from the listing, so that none can lead elsewhere (../x.safetensors).
        if missing := sorted(map(str, named - there)):
            raise ValueError(
                f"{folder / index} names {missing[0]!r}, which is not in this folder; copy "
                "the folder again, with all its parts."
            )
        return
    if pickled := sorted(n for n in there if n.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl"))):
        raise ValueError(
            f"{folder} holds its weights as pickle ({pickled[0]}), which can run code when read; "
            "convert them to safetensors if you trust them: transformers' save_pretrained does."
        )
    raise ValueError(f"{folder} holds no weights (model.safetensors); copy the folder again.")


def _files(folder: Path) -> list[str]:
    return [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]


def file_sum(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
