"""Labelled images from a file of arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from graphprune.errors import UsageError
from graphprune.files import check_archive

#: Arrays of images and labels, by what they are for; the first pair that a file holds is taken.
SPLITS: Final = {"test": (("x_test", "y_test"), ("x", "y")), "train": (("x_train", "y_train"), ("x", "y"))}
_BATCH: Final = 128


@dataclass(frozen=True)
class Images:
    """Labelled images.

    x: shape (images, ...), as stored; uint8 or floating point. y: int64, shape (images,). mean, std: per channel (axis 1),
    applied after bytes are divided by 255. name: of the file, for messages. device: where the batches go.
    """

    x: np.ndarray[Any, Any]
    y: np.ndarray[Any, Any]
    name: str = "the images"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    device: str = "cpu"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return tuple(self.x.shape[1:])

    def pick(self, index: np.ndarray[Any, Any]) -> Images:
        """Some of the images."""
        return replace(self, x=self.x[index], y=self.y[index])

    def batches(self, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
        """Scaled images of shape (batch, ...) and labels of shape (batch,)."""
        for start in range(0, len(self.y), _BATCH):
            x, y = (torch.from_numpy(array[start : start + _BATCH]).to(self.device) for array in (self.x, self.y))
            x = x.to(dtype) / 255 if x.dtype == torch.uint8 else x.to(dtype)
            for values, scale in ((self.mean, torch.sub), (self.std, torch.div)):
                if values is not None:
                    x = scale(x, torch.tensor(values, dtype=dtype, device=self.device).view(-1, *[1] * (x.dim() - 2)))
            yield x, y


def load_images(path: Path, mean: str | None = None, std: str | None = None, split: str = "test") -> Images:
    """Read ``x_test`` and ``y_test`` (or ``x`` and ``y``) of an npz file. mean, std: numbers joined by commas, one per channel.
    split: ``test``, or ``train`` for ``x_train`` and ``y_train``.

    Raises UsageError, naming the file and what is wrong, for arrays that are no labelled images.
    """
    x, y = _read(path, SPLITS[split])
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
    scales = [scaled_channels(option, text, x.shape) for option, text in (("--mean", mean), ("--std", std))]
    if scales[1] is not None and 0.0 in scales[1]:
        raise UsageError(f"--std {std} holds a zero, which images cannot be divided by. Give positive numbers.")
    native = x.astype(x.dtype.newbyteorder("="), copy=False)  # torch knows no other byte order
    return Images(native, y.astype(np.int64), str(path), scales[0], scales[1])


def _read(path: Path, pairs: Sequence[tuple[str, str]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    if not path.is_file():
        raise UsageError(f"There is no data file {path}. Check the path.")
    check_archive(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = next((pair for pair in pairs if set(pair) <= set(arrays.files)), None)
            if names is None:
                have = ", ".join(arrays.files) or "nothing"
                wanted = " nor ".join(" and ".join(pair) for pair in pairs)
                raise UsageError(f"{path} holds {have}, but neither {wanted}. Rename its arrays.")
            found = arrays[names[0]], arrays[names[1]]
            if not all(isinstance(array, np.ndarray) for array in found):
                raise ValueError("a member is no array")
            return found
    except UsageError:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise whatever the damaged part leads to
        raise UsageError(f"{path} is not an npz file of plain arrays, or is damaged. Write it with numpy.savez.") from error


def load_picture(path: str) -> Any:
    """A picture of a folder as torchvision loads it. Raises OSError for what is no file: a pipe would be waited for."""
    from torchvision.datasets.folder import default_loader

    if not Path(path).is_file():
        raise OSError("it is no file")
    return default_loader(path)


def scaled_channels(option: str, text: str | None, shape: tuple[int, ...]) -> tuple[float, ...] | None:
    """Numbers joined by commas, one or one per channel (axis 1 of the shape). Raises UsageError naming the option."""
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
