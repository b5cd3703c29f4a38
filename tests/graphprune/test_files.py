"""Files appear whole or not at all."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from graphprune.errors import UsageError
from graphprune.files import LARGEST_TEXT, atomic_write, check_archive, check_writable, read_text


def test_content_appears_under_the_name_only_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with atomic_write(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old" and temporary.parent == tmp_path
    assert target.read_text() == "new" and list(tmp_path.iterdir()) == [target]


def test_failure_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="stop"), atomic_write(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("stop")
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_the_umask_decides_who_may_read(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a.txt") as temporary:
            temporary.write_text("x")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_missing_folder_and_folder_as_file_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the folder .*gone does not exist"):
        check_writable(tmp_path / "gone" / "a.txt")
    with pytest.raises(UsageError, match="it is a folder"):
        check_writable(tmp_path)
    with pytest.raises(UsageError, match="does not exist"), atomic_write(tmp_path / "gone" / "a.txt"):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []


def test_read_only_folder_and_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """os.access is replaced, since root may write everywhere."""
    target = tmp_path / "a.txt"
    target.write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
        with pytest.raises(UsageError, match="is not writable"):
            check_writable(target)
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: Path(path) != target)
        with pytest.raises(UsageError, match="read-only"):
            check_writable(target)
    check_writable(target)


def test_what_is_no_text_of_a_usual_size_is_not_read(tmp_path: Path) -> None:
    """A device and a pipe never end, and a sparse file is as large as it likes."""
    (tmp_path / "zero").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin").write_bytes(b"\xff")
    with (tmp_path / "large").open("wb") as stream:
        stream.truncate(LARGEST_TEXT + 1)
    for name, message in {"zero": "no file", "pipe": "no file", "latin": "no text", "large": "MiB", "gone": "No such file"}.items():
        with pytest.raises(UsageError, match=message):
            read_text(tmp_path / name, "plan", UsageError)
    (tmp_path / "a").write_text("\u00e4")
    assert read_text(tmp_path / "a", "plan", UsageError) == "\u00e4"


def test_an_archive_that_expands_many_times_over_is_refused(tmp_path: Path) -> None:
    for name, size in (("fine.zip", 2**20), ("bomb.zip", 300 * 2**20)):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr("a", bytes(size))
    check_archive(tmp_path / "fine.zip")
    check_archive(tmp_path / "fine.zip.gone")
    with pytest.raises(UsageError, match=r"expand to 0\.3 GB"):
        check_archive(tmp_path / "bomb.zip")
