"""Calibration data by name: files, folders and callables, drawn alike on every machine, and what is refused."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from graphprune.errors import UsageError
from graphprune.ir.program import Inputs
from graphprune.sources import load_calibration

RGB = Inputs((torch.zeros(1, 3, 8, 8),))


def _file(path: Path) -> Path:
    x = np.arange(40 * 3 * 4, dtype=np.float32).reshape(40, 3, 2, 2)
    np.savez(path, x_train=x, y_train=np.repeat(np.arange(4), 10))
    return path


def _folder(path: Path) -> Path:
    for label, colour in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
        (path / label).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (20, 16), colour).save(path / label / f"{number}.png")
    return path


def test_a_sorted_file_is_drawn_from_all_over(tmp_path: Path) -> None:
    data = load_calibration(str(_file(tmp_path / "d.npz")), samples=12, seed=0)
    labels = torch.cat([batch.target for batch in data])
    assert len(labels) == 12 and len(labels.unique()) == 4
    again = torch.cat([batch.target for batch in load_calibration(str(tmp_path / "d.npz"), samples=12, seed=0)])
    assert torch.equal(labels, again)
    x = torch.cat([batch.inputs.args[0] for batch in load_calibration(str(tmp_path / "d.npz"), samples=12, seed=1)])
    assert not torch.equal(x, torch.cat([batch.inputs.args[0] for batch in data]))


def test_test_images_are_never_calibrated_on(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x_test=np.zeros((2, 3, 2, 2), np.float32), y_test=np.zeros(2, np.int64))
    with pytest.raises(UsageError, match=r"neither x_train and y_train nor x and y"):
        load_calibration(str(tmp_path / "d.npz"))


def test_a_folder_of_images_is_resized_scaled_and_labelled(tmp_path: Path) -> None:
    data = load_calibration(str(_folder(tmp_path / "images")), like=RGB, mean="0.5,0.5,0.5", std="0.5")
    (batch,) = data
    assert batch.inputs.args[0].shape == (6, 3, 8, 8) and batch.target.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(batch.inputs.args[0][0, :, 0, 0], torch.tensor([-1.0, -1.0, 1.0]))
    assert [b.size for b in load_calibration(str(tmp_path / "images"), like=RGB, samples=4)] == [4]


def test_folders_that_hold_no_such_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no images sorted into a folder for each class"):
        load_calibration(str(tmp_path / "empty"), like=RGB)
    with pytest.raises(UsageError, match=r"takes one batch of RGB images"):
        load_calibration(str(_folder(tmp_path / "images")), like=Inputs((torch.zeros(1, 8),)))


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    _folder(tmp_path / "images")
    (tmp_path / "images" / "red" / "1.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"1\.png cannot be read as an image"):
        list(load_calibration(str(tmp_path / "images"), like=RGB))


def test_a_callable_makes_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_batches.py").write_text(
        "import torch\ndef some(n=2):\n    return [(torch.zeros(n, 3), torch.zeros(n).long())]\ndef none():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert [batch.size for batch in load_calibration("my_batches:some(n=5)", samples=4)] == [4]
    with pytest.raises(UsageError, match=r"my_batches:none returned int, which is no iterable"):
        load_calibration("my_batches:none")
    with pytest.raises(UsageError, match=r"has no 'sone'"):
        load_calibration("my_batches:sone")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UsageError, match=r"no data file nothing\.npz"):
        load_calibration("nothing.npz")


def test_a_member_that_is_no_array_is_refused(tmp_path: Path) -> None:
    """numpy hands out the bytes of such a one."""
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x", b"1")
        archive.writestr("y", b"1")
    with pytest.raises(UsageError, match="not an npz file of plain arrays"):
        load_calibration(str(tmp_path / "d.npz"))


def test_a_pipe_among_the_pictures_is_not_waited_for(tmp_path: Path) -> None:
    path = _folder(tmp_path / "d") / "red" / "0.png"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UsageError, match="it is no file"):
        list(load_calibration(str(tmp_path / "d"), like=RGB))
