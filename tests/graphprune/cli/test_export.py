"""``graphprune export``: files for other runtimes, from slim models and from any other source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import graphprune
from tests.graphprune.cli.conftest import SOURCE

Cli = Callable[..., Any]


def test_a_slim_model_is_exported_and_exported_again(cli: Cli, folder: Path) -> None:
    """A program of any batch stays one of any batch when it is exported again."""
    cli("prune", SOURCE, "--input", "1x1x8x8", "--target", "macs=50%", "-o", "slim.safetensors")
    ran = cli("export", "slim.safetensors", "-o", "slim.pt2")
    assert ran.code == 0 and "Written to slim.pt2. It was run at batches 1, 2, 3" in ran.out
    data = cli("export", "slim.pt2", "-o", "again.pt2", "--json").data
    assert data["dynamic"] and data["batches"] == [1, 2, 3] and data["error"] < 1e-5
    assert not cli("export", "slim.pt2", "-o", "static.pt2", "--static", "--json").data["dynamic"]
    slim = graphprune.load("slim.safetensors").eval()
    for name, batch in (("slim.pt2", 4), ("again.pt2", 5), ("static.pt2", 2)):
        x = torch.randn(batch, 1, 8, 8)
        torch.testing.assert_close(torch.export.load(name).module()(x), slim(x))


def test_a_program_of_one_size_stays_one(cli: Cli, folder: Path) -> None:
    """Its checks of its inputs hold for the sizes of its example alone."""
    cli("export", SOURCE, "--input", "2x1x8x8", "-o", "static.pt2", "--static")
    ran = cli("export", "static.pt2", "-o", "again.pt2")
    assert ran.code == 2 and "--static" in ran.err and not Path("again.pt2").exists()


def test_a_folder_is_written_by_the_name_of_its_format(cli: Cli, folder: Path) -> None:
    ran = cli("export", SOURCE, "--input", "1x1x8x8", "-o", "cnn", "--format", "fx-folder")
    assert ran.code == 0 and "class SmallCNN" in Path("cnn/module.py").read_text()


def test_unknown_endings_and_inputs_are_refused(cli: Cli, folder: Path) -> None:
    for out, says in (("m.tflite", ".onnx"), ("x/m.pt2", "does not exist")):
        ran = cli("export", SOURCE, "--input", "1x1x8x8", "-o", out)
        assert ran.code == 2 and says in ran.err
    assert list(folder.iterdir()) == []


def test_other_axes_than_the_batch_may_have_any_size(cli: Cli, folder: Path) -> None:
    source = "torchvision:mobilenet_v3_small(num_classes=4, width_mult=0.25)"
    assert "float32[2x3x128x128]" in cli("export", source, "--input", "1x3x64x64", "-o", "m.pt2", "--dynamic", "x:2,3").out
    assert torch.export.load("m.pt2").module()(torch.randn(3, 3, 40, 56)).shape == (3, 4)
    ran = cli("export", source, "--input", "1x3x32x32", "-o", "small.pt2", "--dynamic", "x:2,3")
    assert ran.code == 1 and "An example of other sizes may help" in ran.err and not Path("small.pt2").exists()
    for options, says in ((("--dynamic", "x:a"), "Write it as x:2,3"), (("--dynamic", "x:2", "--static"), "Give one of them")):
        ran = cli("export", source, "--input", "1x3x32x32", "-o", "m.pt2", *options)
        assert ran.code == 2 and says in ran.err


def test_a_folder_that_exists_stays(cli: Cli, folder: Path) -> None:
    Path("cnn").mkdir()
    Path("cnn/mine.py").touch()
    ran = cli("export", SOURCE, "--input", "1x1x8x8", "-o", "cnn", "--format", "fx-folder")
    assert ran.code == 2 and "Cannot write the folder cnn: it exists." in ran.err
