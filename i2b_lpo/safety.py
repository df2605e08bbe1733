"""What comes from outside: names that become paths, secrets in settings, files that were changed.

No torch here, so that settings and pages can use it.

>>> redact({"policy": "https://me:hunter2@host/model", "steps": 60})
{'policy': 'https://[redacted]@host/model', 'steps': 60}
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from i2b_lpo.storage import staged

__all__ = ["check_sums", "check_weights", "file_sum", "inside", "redact", "replaced", "write_sums"]

SUMS = "sha256.json"
REDACTED = "[redacted]"

# --- names and secrets ----------------------------------------------------------------------------


def inside(root: str | Path, name: str) -> Path:
    """The path of `name` in the folder `root`, with symbolic links resolved.

    For every name that comes from data or settings and becomes a file.

    Raises:
        ValueError: it is no name, or leads out of `root`.
    """
    try:
        folder = Path(root).resolve()
        path = (folder / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # NUL, too long, a ring of links
        raise ValueError(f"{name!r} is no file name ({error}); give another.") from error
    if path == folder or not path.is_relative_to(folder):
        raise ValueError(f"{name!r} leads out of the folder {root}; give a name inside it.")
    return path


_SECRET = re.compile(
    r"""
    (?<=://) [^/?\#\s]+ (?=@)                             # user:password@ of an address
    | (?<![A-Za-z0-9]) (?:
        hf_[A-Za-z0-9]{20,}                               # Hugging Face
      | (?:gh[pousr]_ | github_pat_ | glpat-) [\w-]{20,}  # GitHub, GitLab
      | sk-(?:\w{1,12}-){0,3}[A-Za-z0-9]{20,}[\w-]*       # OpenAI, Anthropic
      | xox[abprs]-[A-Za-z0-9-]{10,}                      # Slack
      | (?:AKIA | ASIA)[A-Z0-9]{16}                       # AWS key id
      | AIza[\w-]{35}                                     # Google
      | eyJ[\w-]{10,}\.eyJ[\w-]+\.[\w-]+                  # JSON web token
    )
    | (?<=[Bb]earer\ ) [\w.~+/=-]{16,}
    | (?P<name>
          [?&;] [\w.%-]*? (?i:                            # in the query of an address
            token | secret | password | passwd | key | keyid | sig | signature | credential | auth)
        | (?<![A-Za-z0-9]) (?i:(?:aws_)?secret_?(?:access_)?key | api_?key | password | passwd)
      ) \s?=\s?["']? [^&\#\s"']+
    """,
    re.VERBOSE,
)
_SECRET_FIELDS = {
    "access_key",
    "api_key",
    "authorization",
    "hf_token",
    "password",
    "secret",
    "token",
}


def redact(value: Any) -> Any:
    """A copy with secrets replaced by ``[redacted]``, for all that is written or shown.

    Recognised in any text: access tokens of Hugging Face, GitHub, GitLab, OpenAI, Anthropic, Slack,
    AWS, Google and JSON web tokens by their form; ``user:password@`` in an address; values of
    ``?token=``, ``&signature=``, ``&key=`` and the like; ``password=…``, ``api_key=…``,
    ``AWS_SECRET_ACCESS_KEY=…``. In a mapping also every text under a name such as ``password``. A
    secret of no such form can't be told from a name: keep it out of settings.

    Args:
        value: text, number, or mappings, lists and tuples of them.
    """
    if isinstance(value, str):
        return _SECRET.sub(lambda m: f"{m['name']}={REDACTED}" if m["name"] else REDACTED, value)
    if isinstance(value, Mapping):
        return {
            redact(k): REDACTED
            if isinstance(v, str) and v and str(k).lower() in _SECRET_FIELDS
            else redact(v)
            for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(map(redact, value))
    return value


# --- folders of weights ---------------------------------------------------------------------------


@contextmanager
def replaced(folder: str | Path, *, mark: str) -> Iterator[Path]:
    """A new folder to write to, which takes the place of `folder` at the end, whole or not at all.

    It gets the sums of the files written. What else lay in `folder` is kept, except weights.

    Args:
        folder: where it will be.
        mark: the file that tells an earlier folder of the same kind, which may be replaced.

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
                    f"{folder} holds other files and nothing that was saved there before; choose "
                    "a new folder."
                )
            yield part
            write_sums(part, _files(part))
            for name, path in kept.items():
                if not (part / name).exists() and ".safetensors" not in name:
                    (shutil.copytree if path.is_dir() else shutil.copy2)(path, part / name)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"Can't write {folder} ({error}); what was there before is intact. Make room, or "
            "choose another place, and save again."
        ) from error


def write_sums(folder: Path, files: Iterable[str]) -> None:
    """Write the `sha256.json` that `check_sums` compares with."""
    sums = {file: file_sum(folder / file) for file in sorted(files)}
    (folder / SUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


def check_sums(folder: Path, *, bundled: bool = False) -> None:
    """Compare every file named in `sha256.json` with its sum, before anything is loaded.

    Args:
        folder: where they lie; one without `sha256.json` passes, unless it is bundled.
        bundled: it belongs to the package.

    Raises:
        ValueError: a file is missing or another one; the message says what to do.
    """
    path = folder / SUMS
    if not path.is_file():
        if bundled:
            raise ValueError(f"The bundled file {path} is missing; install the package again.")
        return
    again = "install the package again" if bundled else f"copy the folder again, or delete {SUMS}"
    try:
        sums = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path} can't be read; {again}.") from error
    there = set(_files(folder))
    for file, expected in sums.items():
        # Only what lies in the folder is opened, whatever else a name may lead to.
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
        # By the listing, so that no name can lead elsewhere (../x.safetensors).
        if missing := sorted(map(str, named - there)):
            raise ValueError(
                f"{folder / index} names {missing[0]!r}, which is no file of this folder; copy "
                "the folder again, with all its parts."
            )
        return
    if pickled := sorted(n for n in there if n.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl"))):
        raise ValueError(
            f"{folder} holds its weights as pickle ({pickled[0]}), which can run code when read; "
            "convert them to safetensors where you trust them: transformers' save_pretrained does."
        )
    raise ValueError(f"{folder} holds no weights (model.safetensors); copy the folder again.")


def _files(folder: Path) -> list[str]:
    return [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]


def file_sum(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
