"""Settings in files and on the command line: `--config run.toml` and `--set section.name=value`.

A setting has one dotted name everywhere: `grpo.micro_tokens` is `RunConfig.grpo.micro_tokens`, the
key `micro_tokens` under `[grpo]` in a file, and `--set grpo.micro_tokens=2048`. Later ones
override earlier ones::

    preset  <  --config  <  named options (--steps, --method, …)  <  --set

TOML has no null: a setting that may be None is `inf` in a file. Nothing here needs torch.

>>> compose(RunConfig(), named={"steps": 5}, sets=["grpo.micro_tokens=200"]).grpo.micro_tokens
200
"""

from __future__ import annotations

import math
import shlex
import tomllib
import types
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import tomli_w

import i2b_lpo
from i2b_lpo.config.runs import RunConfig
from i2b_lpo.config.sections import flat
from i2b_lpo.infra.files import write_text
from i2b_lpo.infra.secrets import REDACTED, redact

__all__ = ["RUN", "compose", "names", "options", "read_run", "refuse_old", "to_toml", "write_run"]

RUN = "run.toml"
"""The file of a run's folder that repeats it."""
OLD = "config.json"  # what a version before 0.1 wrote in its place
UNTOLD = "0.1"  # the last version that didn't write its own number

Settings = TypeVar("Settings", bound=Any)

# --- names and values -----------------------------------------------------------------------------


def names(kind: type) -> dict[str, Any]:
    """The dotted name of every setting of a class → its type."""
    hints = get_type_hints(kind)
    found: dict[str, Any] = {}
    for field in fields(kind):
        hint = hints[field.name]
        if is_dataclass(hint):
            found |= {f"{field.name}.{name}": part for name, part in names(hint).items()}  # type: ignore[arg-type]
        else:
            found[field.name] = hint
    return found


def _sections(kind: type) -> set[str]:
    return {name.rpartition(".")[0] for name in names(kind)} - {""}


def _known(name: str, kind: type, where: str) -> Any:
    """The type of a setting; ValueError lists the names that are near, or all there are."""
    known = names(kind)
    if name in known:
        return known[name]
    inside = [other for other in known if other.startswith(f"{name}.")]
    if inside:
        raise ValueError(f"{where}: {name} is a section; name one of {', '.join(inside)}.")
    shown = redact(name if len(name) <= 60 else f"{name[:60]}…")
    tail = name.rpartition(".")[2]
    near = [other for other in known if other.rpartition(".")[2] == tail]
    near += [
        other for other in get_close_matches(name, {*known, *_sections(kind)}) if other not in near
    ]
    if near:
        raise ValueError(f"{where}: there is no setting {shown!r}; did you mean {_or(near)}?")
    raise ValueError(f"{where}: there is no setting {shown!r}; choose one of {', '.join(known)}.")


def _or(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _typed(name: str, value: Any, hint: Any, where: str) -> Any:
    """A value of a file as its setting's type."""
    kind, optional = _kind(hint)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and number and not math.isnan(value):
        try:
            value = float(value)
        except OverflowError:
            value = None
        if value is not None:
            return None if optional and value == math.inf else value
    elif kind is not float and type(value) is kind:
        return value
    shown = redact(str(value)) if len(str(value)) <= 60 else f"{str(value)[:60]}…"
    raise ValueError(f"{where}: {name} is {shown!r}; give {_WORDS[kind]}.")


def _parsed(text: str, hint: Any) -> Any:
    """The text behind `--set name=`, read as the setting's type; as it stands if that fails."""
    kind, _ = _kind(hint)
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        return text


def _kind(hint: Any) -> tuple[type, bool]:
    """The plain type behind a hint, and whether None is allowed."""
    if get_origin(hint) in (Union, types.UnionType):
        (kind,) = (part for part in get_args(hint) if part is not type(None))
        return kind, True
    return hint, False


def changed(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """A copy with other values, by their dotted names, all at once.

    Raises:
        ValueError: the values don't go together.
    """
    parts: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        head, dot, rest = name.partition(".")
        if dot:
            sections.setdefault(head, {})[rest] = value
        else:
            parts[head] = value
    for head, inside in sections.items():
        parts[head] = changed(getattr(settings, head), inside)
    return replace(settings, **parts)


def options(settings: Any, base: Any) -> list[str]:
    """The options that make `settings` of `base`, as a shell takes them."""
    before, after = flat(base), flat(settings)
    shown = {k: str(v).lower() if isinstance(v, bool) else v for k, v in after.items()}
    return [
        f"--set {shlex.quote(redact(f'{name}={shown[name]}'))}"
        for name in after
        if after[name] != before[name]
    ]


# --- files ----------------------------------------------------------------------------------------


def to_toml(settings: Any) -> str:
    """All settings as TOML, secrets replaced."""

    def plain(value: Any) -> Any:
        if is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
        return math.inf if value is None else value

    return tomli_w.dumps(redact(plain(settings)))


def write_run(settings: Any, folder: Path, command: str) -> None:
    """Write `run.toml` into a folder: what reproduces the command."""
    said = f"# Repeat it: i2b-lpo {command} --config {RUN} --output DIR\n"
    version = tomli_w.dumps({"version": i2b_lpo.__version__})
    write_text(folder / RUN, said + version + to_toml(settings))


def _read(path: Path, kind: type) -> dict[str, Any]:
    """The values of a file by their dotted names."""
    shown = redact(str(path))
    if path.is_dir():
        raise ValueError(f"{shown} is a folder; give the file of settings in it, {path / RUN}.")
    if path.suffix.lower() == ".json":
        raise ValueError(f"{shown} is JSON; settings are read from TOML files such as {RUN}.")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"Can't read {shown} ({error.strerror}); give a {RUN}.") from error
    except (RecursionError, ValueError) as error:  # no UTF-8, no TOML
        raise ValueError(f"{shown} is no TOML ({error}); mend it there.") from error
    data.pop("version", None)  # whoever repeats a run may do so by another version
    found: dict[str, Any] = {}

    def collect(table: Mapping[str, Any], prefix: str) -> None:
        for key, value in table.items():
            if isinstance(value, Mapping) and prefix + key in _sections(kind):
                collect(value, f"{prefix}{key}.")
            else:
                name = prefix + key
                found[name] = _typed(name, value, _known(name, kind, shown), shown)

    collect(data, "")
    return found


def read_run(folder: Path) -> RunConfig:
    """The settings of a run, from its folder.

    Raises:
        ValueError: there are none, they can't be read, or an earlier version wrote them.
    """
    refuse_old(folder)
    return compose(RunConfig(), file=folder / RUN, hidden=True)


def refuse_old(folder: Path) -> None:
    """Refuse the folder of a run that another version began: its settings have other names."""
    try:
        data = tomllib.loads((folder / RUN).read_text(encoding="utf-8"))
        version = str(data.get("version", UNTOLD))
    except FileNotFoundError:
        if not (folder / OLD).is_file():
            return
        version = UNTOLD
    except (OSError, ValueError):
        return  # whoever reads it says what is wrong
    ours = i2b_lpo.__version__
    if version.split(".")[:2] != ours.split(".")[:2]:
        raise ValueError(
            f"{folder} holds a run of version {version} of i2b_lpo, whose settings have other "
            f"names than those of {ours}; start again in another folder."
        )


# --- all sources together -------------------------------------------------------------------------


def compose(
    base: Settings,
    *,
    file: Path | None = None,
    named: Mapping[str, Any] | None = None,
    method: str | None = None,
    with_method: Callable[[Any, str], Any] | None = None,
    sets: Iterable[str] = (),
    hidden: bool = False,
) -> Settings:
    """The settings of a command from all that were given; later ones count.

    Args:
        base: the preset, or the defaults.
        file: of `--config`; what it doesn't name stays as in `base`.
        method: of `--method`, the first of the named options.
        with_method: sets what a method owns; for `method`, and for a file that names one.
        named: dotted name → value of the others.
        sets: the texts of `--set`, `name=value`.
        hidden: whether a value may be a replaced secret.

    Raises:
        ValueError: an unknown name, a value of another type or out of range, one that changes
            nothing in this run, or a replaced secret; one sentence.
    """
    kind, settings = type(base), base
    values: dict[str, Any] = {}
    if file is not None:
        values = _read(file, kind)
        try:
            if with_method is not None and "method" in values:
                settings = with_method(settings, values["method"])
            settings = changed(settings, values)
        except ValueError as error:
            raise ValueError(f"{redact(str(file))}: {error}") from error
    if method is not None and with_method is not None:
        before = flat(settings)
        settings = with_method(settings, method)
        lost = [k for k in flat(settings) if k in values and flat(settings)[k] != before[k]]
        if lost:
            was = ", ".join(f"{k} {before[k]!r} → {flat(settings)[k]!r}" for k in lost)
            warnings.warn(
                f"--method {method} sets anew what {file} says ({was}); --set comes after it.",
                stacklevel=3,
            )
    named = dict(named or {})
    settings = changed(settings, named)
    given: dict[str, Any] = {}
    for text in sets:
        name, sign, value = text.partition("=")
        name = name.strip()
        if not sign:
            raise ValueError(f"--set {redact(text)}: write it like --set {redact(name)}=VALUE.")
        hint = _known(name, kind, "--set")
        if name == "method":
            raise ValueError(
                f"--set {text}: give --method {value.strip()} instead, which also sets what the "
                "method owns."
            )
        given[name] = _typed(name, _parsed(value.strip(), hint), hint, "--set")
    settings = changed(settings, given)
    _refuse_idle(settings, [*named, *given])
    if not hidden:
        _refuse_hidden(settings)
    return settings


def _refuse_idle(settings: Any, given: Iterable[str]) -> None:
    """Refuse a setting that was asked for and would change nothing."""
    idle = settings.idle() if hasattr(settings, "idle") else {}
    for name in given:
        if name in idle:
            hint = ""
            if isinstance(settings, RunConfig) and not settings.branch.branches:
                hint = ", or add --method i2b-lpo"
            raise ValueError(f"{name} changes nothing here: {idle[name]}; leave it out{hint}.")


def _refuse_hidden(settings: Any) -> None:
    for name, value in flat(settings).items():
        if isinstance(value, str) and REDACTED in value:
            raise ValueError(
                f"{name} is {value!r}: a secret isn't written down; give it again by --set "
                f"{name}=…, or as an environment variable."
            )
