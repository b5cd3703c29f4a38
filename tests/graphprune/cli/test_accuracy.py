"""Accuracy on a file of images: which arrays are read, how they are scaled, and that the model is left as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from graphprune.cli.accuracy import top1
from graphprune.cli.output import Output
from graphprune.sources.images import Images, load_images


class Brightest(nn.Module):
    """Scores a class by the sum of its channel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum((2, 3))


def _images(count: int) -> tuple[np.ndarray, np.ndarray]:
    y = np.arange(count) % 3
    x = np.zeros((count, 3, 2, 2), dtype=np.uint8)
    x[np.arange(count), y] = 255
    return x, y


def _top1(model: nn.Module, images: Images) -> float:
    with Output(quiet=True) as output:
        return top1(model, images, output)


def test_every_image_counts_once_whatever_the_batches(tmp_path: Path) -> None:
    x, y = _images(1000)
    y[:7] = (y[:7] + 1) % 3
    np.savez(tmp_path / "d.npz", x=x, y=y)
    assert _top1(Brightest(), load_images(tmp_path / "d.npz")) == 993 / 1000


def test_test_images_come_before_others(tmp_path: Path) -> None:
    x, y = _images(6)
    np.savez(tmp_path / "d.npz", x=x, y=(y + 1) % 3, x_test=x, y_test=y)
    assert _top1(Brightest(), load_images(tmp_path / "d.npz")) == 1.0


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
def test_floating_point_images_are_taken_as_they_are(tmp_path: Path, dtype: str) -> None:
    x, y = _images(6)
    np.savez(tmp_path / "d.npz", x=x.astype(dtype), y=y.astype(np.uint8))
    images = load_images(tmp_path / "d.npz")
    ((batch, labels),) = images.batches(torch.float32)
    assert batch.dtype == torch.float32 and float(batch.max()) == 255.0
    assert labels.dtype == torch.int64 and labels.tolist() == y.tolist()


def test_bytes_are_divided_by_255_and_scaled_by_channel(tmp_path: Path) -> None:
    x, y = _images(3)
    np.savez(tmp_path / "d.npz", x=x, y=y)
    ((batch, _),) = load_images(tmp_path / "d.npz", "0.5,0.25,0", "0.5,1,2").batches(torch.float64)
    assert batch[0, :, 0, 0].tolist() == [1.0, -0.25, 0.0]
    assert batch[1, :, 0, 0].tolist() == [-1.0, 0.75, 0.0]
    assert batch[2, :, 0, 0].tolist() == [-1.0, -0.25, 0.5]


def test_the_model_is_measured_in_eval_mode_and_left_as_it_was() -> None:
    """Batch statistics would make the result depend on the batch, and running ones would change."""
    x, y = _images(9)
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(norm, nn.Sequential(Brightest()).eval()).train()
    modes = [module.training for module in model.modules()]
    assert _top1(model, Images(x, y)) == 1.0
    assert [module.training for module in model.modules()] == modes
    assert norm.running_mean is not None and norm.running_mean.tolist() == [0, 0, 0]
