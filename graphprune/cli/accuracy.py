"""Top-1 accuracy of a classifier on a file of labelled images."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from graphprune.cli.output import Output
from graphprune.errors import UsageError

_NAMES = (("x_test", "y_test"), ("x", "y"))
_BATCH = 128


@dataclass(frozen=True)
class Images:
    """Labelled images.

    x: shape (images, ...), as stored; uint8 or floating point. y: int64, shape (images,). mean, std: per channel (axis 1),
    applied after bytes are divided by 255. name: of the file, for messages.
    """

    x: np.ndarray[Any, Any]
    y: np.ndarray[Any, Any]
    name: str = "the images"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return tuple(self.x.shape[1:])

    def batches(self, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
        """Scaled images of shape (batch, ...) and labels of shape (batch,)."""
        for start in range(0, len(self.y), _BATCH):
            x = torch.from_numpy(self.x[start : start + _BATCH])
            x = x.to(dtype) / 255 if x.dtype == torch.uint8 else x.to(dtype)
            for values, scale in ((self.mean, torch.sub), (self.std, torch.div)):
                if values is not None:
                    x = scale(x, torch.tensor(values, dtype=dtype).view(-1, *[1] * (x.dim() - 2)))
            yield x, torch.from_numpy(self.y[start : start + _BATCH])


def load_images(path: Path, mean: str | None = None, std: str | None = None) -> Images:
    """Read ``x_test`` and ``y_test`` (or ``x`` and ``y``) of an npz file. mean, std: numbers joined by commas, one per channel.

    Raises UsageError, naming the file and what is wrong, for arrays that are no labelled images.
    """
    x, y = _read(path)
    if x.ndim < 2 or y.ndim != 1 or len(x) != len(y) or not len(x):
        raise UsageError(
            f"{path} holds images {list(x.shape)} and labels {list(y.shape)}. Store images (n, ...) and labels (n,), n over 0."
        )
    if y.dtype.kind not in "ui":
        raise UsageError(f"The labels in {path} are {y.dtype}. Store class numbers as integers, counted from 0.")
    if x.dtype != np.uint8 and (x.dtype.kind != "f" or x.dtype.itemsize > 8):
        raise UsageError(f"The images in {path} are {x.dtype}. Store uint8 (divided by 255 here), or float16, 32 or 64.")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise UsageError(f"The images in {path} hold NaN or infinite values. Store finite ones.")
    scales = [_per_channel(option, text, x.shape) for option, text in (("--mean", mean), ("--std", std))]
    if scales[1] is not None and 0.0 in scales[1]:
        raise UsageError(f"--std {std} holds a zero, which images cannot be divided by. Give positive numbers.")
    native = x.astype(x.dtype.newbyteorder("="), copy=False)  # torch knows no other byte order
    return Images(native, y.astype(np.int64), str(path), scales[0], scales[1])


def _read(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    if not path.is_file():
        raise UsageError(f"There is no data file {path}. Check the path.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = next((pair for pair in _NAMES if set(pair) <= set(arrays.files)), None)
            if names is None:
                have = ", ".join(arrays.files) or "nothing"
                raise UsageError(f"{path} holds {have}, but neither x_test and y_test nor x and y. Rename its arrays.")
            return arrays[names[0]], arrays[names[1]]
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} is not an npz file of plain arrays, or is damaged. Write it with numpy.savez.") from error


def _per_channel(option: str, text: str | None, shape: tuple[int, ...]) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{option} {text!r} is not numbers joined by commas, such as 0.485,0.456,0.406.") from error
    if len(values) not in (1, shape[1]):
        raise UsageError(
            f"{option} has {len(values)} values, but the images have {shape[1]} channels. Give one value for each, or one."
        )
    return values


def top1(model: nn.Module, images: Images, output: Output, text: str = "Measuring the accuracy") -> float:
    """Share of the images whose largest output is at their label, in eval mode; the model's mode is restored.

    Raises UsageError when the model does not take the images, is no classifier of them, or has no such labels.
    """
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    dtype = torch.get_default_dtype() if parameter is None else parameter.dtype
    right = 0
    with _evaluating(model), torch.no_grad(), output.task(text, total=len(images.y)) as task:
        for x, y in images.batches(dtype):
            scores = _outputs(model, x, images)
            _check_labels(scores, y, images)
            right += int((scores.argmax(1) == y).sum())
            task.advance(len(y))
    return right / len(images.y)


def _outputs(model: nn.Module, x: Tensor, images: Images) -> Tensor:
    try:
        scores = model(x)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise UsageError(
            f"The model does not take the images {list(images.shape)} of {images.name}: {_first_line(error)}. "
            "Store them as the model takes them, channels first."
        ) from error
    if not isinstance(scores, Tensor) or scores.dim() != 2 or len(scores) != len(x):
        shape = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise UsageError(
            f"Top-1 accuracy needs an output of shape (images, classes), and the model's is {shape}. Leave out --data."
        )
    return scores


def _check_labels(scores: Tensor, y: Tensor, images: Images) -> None:
    classes = scores.shape[1]
    if int(y.min()) < 0 or int(y.max()) >= classes:
        wrong = int(y.min()) if int(y.min()) < 0 else int(y.max())
        raise UsageError(
            f"{images.name} has the label {wrong}, but the model has {classes} classes, counted from 0. Use labels of this model."
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    before = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in before:
            module.training = False
        yield
    finally:
        for module, mode in before:
            module.training = mode
