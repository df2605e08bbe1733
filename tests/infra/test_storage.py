"""Files that are whole or not there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from i2b_lpo.infra.files import staged, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_staged_folder_appears_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with staged(folder) as part:
        (part / "inner").mkdir()
        (part / "inner" / "a").write_text("1")
        assert not folder.exists()
    assert (folder / "inner" / "a").read_text() == "1"
    assert names(folder.parent) == ["run"]


def test_a_staged_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for content in "12":
        with staged(folder) as part:
            assert names(part) == []
            (part / content).write_text(content)
    assert names(folder) == ["2"] and names(tmp_path) == ["run"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_what_was_there_stays_if_the_block_raises(tmp_path: Path, error: BaseException) -> None:
    folder, file = tmp_path / "run", tmp_path / "text"
    with staged(folder) as part:
        (part / "old").write_text("old")
    write_text(file, "old")
    with pytest.raises(type(error)), staged(folder) as part:
        (part / "new").write_text("new")
        raise error
    assert names(folder) == ["old"] and names(tmp_path) == ["run", "text"]


def test_a_full_disk_is_seen_before_anything_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, file = tmp_path / "run", tmp_path / "text"
    with staged(folder) as part:
        (part / "old").write_text("old")
    write_text(file, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(file, "new")
    with pytest.raises(OSError, match="No space"), staged(folder) as part:
        (part / "new").write_text("new")
    assert file.read_text() == "old" and names(folder) == ["old"]
    assert names(tmp_path) == ["run", "text"]


def test_left_overs_of_a_kill_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / ".run.part").mkdir()
    (tmp_path / ".run.part" / "half").write_text("half")
    (tmp_path / ".run.old").mkdir()
    (tmp_path / ".run.old" / "whole").write_text("whole")  # killed between two renames
    with pytest.raises(ValueError, match="stop"), staged(tmp_path / "run") as part:
        assert names(part) == []
        raise ValueError("stop")
    assert names(tmp_path) == ["run"] and names(tmp_path / "run") == ["whole"]


def test_every_file_reaches_the_disk_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real, rename = os.fsync, Path.rename

    def flushed(file: int) -> None:
        known = {path.stat().st_ino: path.name for path in (tmp_path, *tmp_path.rglob("*"))}
        order.append(known[os.fstat(file).st_ino])
        real(file)

    def renamed(self: Path, target: Path) -> Path:
        order.append(f"rename {self.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "rename", renamed)
    with staged(tmp_path / "run") as part:
        (part / "a").write_text("1")
        (part / "b").write_text("2")
    assert order == ["a", "b", ".run.part", "rename .run.part", tmp_path.name]


@pytest.mark.parametrize("text", ["", "a\nb\r\nc\u2028d", "é 漢 \x00"])
def test_text_is_written_as_it_is(tmp_path: Path, text: str) -> None:
    write_text(tmp_path / "file", text)
    assert (tmp_path / "file").read_bytes() == text.encode()
