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
    """A program of torch.export is captured with the checks of its inputs, which hold for the sizes of its example alone."""
    cli("prune", SOURCE, "--input", "1x1x8x8", "--target", "macs=50%", "-o", "slim.safetensors")
    ran = cli("export", "slim.safetensors", "-o", "slim.pt2")
    assert ran.code == 0 and "Written to slim.pt2. It was run at batches 1, 2, 3" in ran.out
    ran = cli("export", "slim.pt2", "-o", "again.pt2")
    assert ran.code == 2 and "--static" in ran.err and not Path("again.pt2").exists()
    data = cli("export", "slim.pt2", "-o", "again.pt2", "--static", "--json").data
    assert not data["dynamic"]
    slim = graphprune.load("slim.safetensors").eval()
    for name, batch in (("slim.pt2", 4), ("again.pt2", 2)):
        x = torch.randn(batch, 1, 8, 8)
        torch.testing.assert_close(torch.export.load(name).module()(x), slim(x))


def test_unknown_endings_and_inputs_are_refused(cli: Cli, folder: Path) -> None:
    for out, says in (("m.tflite", ".onnx"), ("x/m.pt2", "does not exist")):
        ran = cli("export", SOURCE, "--input", "1x1x8x8", "-o", out)
        assert ran.code == 2 and says in ran.err
    assert list(folder.iterdir()) == []
