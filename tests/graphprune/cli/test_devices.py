"""``--device``: the model and its data go there, and a device that is not here is refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from graphprune.cli.loading import Request
from graphprune.cli.output import Output

MODEL = ("graphprune.cli.digits:small_cnn", "--input", "1x1x8x8")
COMMANDS = {
    "prune": (*MODEL, "-o", "slim.safetensors"),
    "score": MODEL,
    "sensitivity": (*MODEL, "--data", "test.npz", "-o", "points.json"),
    "sweep": (*MODEL, "-o", "points.json"),
    "profile": (*MODEL, "-o", "table.json"),
    "compare": (*MODEL[:1], *MODEL),
    "run": ("iterative", *MODEL[:1], "--data", "digits", "-o", "run"),
}


def test_the_model_the_inputs_and_the_images_go_to_the_device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device passes for one that computes."""
    monkeypatch.setattr("graphprune.cli.loading.check_device", lambda device: None)
    np.savez(folder / "test.npz", x=np.zeros((3, 1, 8, 8), np.float32), y=np.zeros(3, np.int64))
    request = Request(MODEL[0], device="meta", data=folder / "test.npz", mean="0.5")
    job = request.open(Output(quiet=True))
    assert job.images is not None
    (batch,) = job.images.batches(torch.float32)
    tensors = [*job.source.model.parameters(), *job.source.model.buffers(), *job.inputs.args, *batch]
    assert {tensor.device.type for tensor in tensors} == {"meta"} and job.device == "meta"


@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_gpu_cuda_is_refused(command: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device here" in refused(command, *COMMANDS[command], "--device", "cuda")


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"run"}))
def test_devices_of_other_names_are_refused(command: str, refused: Callable[..., str]) -> None:
    assert "There is no device 'tpu'; choose cpu or cuda." in refused(command, *COMMANDS[command], "--device", "tpu")
