"""Calibration data by name: an npz file, a folder of images, or a callable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from graphprune.calibration import Batch, Calibration
from graphprune.errors import UsageError
from graphprune.ir.program import Inputs
from graphprune.sources.factories import call_named, is_named
from graphprune.sources.images import Images, load_images, load_picture, scaled_channels

_BATCH: Final = 64


def load_calibration(
    text: str,
    *,
    samples: int = 512,
    mean: str | None = None,
    std: str | None = None,
    like: Inputs | None = None,
    seed: int = 0,
) -> Calibration:
    """Calibration data from what a user names.

    text: ``FILE.npz`` (``x_train`` and ``y_train``, or ``x`` and ``y``), a folder with one folder of images for each class (as
        ``torchvision.datasets.ImageFolder`` reads it), or ``package.module:callable``, which returns batches.
    samples: how many to use at most; of files and folders they are drawn at random by ``seed``, since these are often sorted.
    mean, std: numbers joined by commas, one per channel, applied after bytes are divided by 255. like: example inputs of the
        model; images of a folder are resized and cropped to the height and width of the first.

    Raises UsageError, naming the data and what is wrong.
    """
    path = Path(text)
    if is_named(text) and not path.exists():
        return _called(text, samples)
    if path.is_dir():
        return Calibration(_folder(path, mean, std, like, samples, seed), samples=samples, name=text)
    images = load_images(path, mean, std, split="train")
    return Calibration(_Drawn(images.pick(_draw(len(images.y), samples, seed))), samples=samples, name=text)


def _called(text: str, samples: int) -> Calibration:
    found = call_named(text)
    if isinstance(found, Calibration):
        return found
    if not isinstance(found, Iterable):
        raise UsageError(f"{text} returned {type(found).__name__}, which is no iterable of batches. Return a DataLoader or a list.")
    return Calibration(found, samples=samples, name=text)


def _draw(count: int, samples: int, seed: int) -> np.ndarray[Any, Any]:
    """Indices of the samples, ascending: reading forwards is quick, and sums do not depend on the order."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:samples])


@dataclass(frozen=True)
class _Drawn:
    """Batches of some images of a file."""

    images: Images

    def __iter__(self) -> Iterator[Batch]:
        return (Batch(Inputs((x,)), y) for x, y in self.images.batches(torch.float32))


@dataclass(frozen=True)
class _Listed:
    """Batches of some images of a data set of torchvision."""

    read: Callable[[int], tuple[Tensor, int]]
    index: Sequence[int]

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.index), _BATCH):
            images, labels = zip(*map(self.read, self.index[start : start + _BATCH]), strict=True)
            yield Batch(Inputs((torch.stack(images),)), torch.tensor(labels))


def _folder(path: Path, mean: str | None, std: str | None, like: Inputs | None, samples: int, seed: int) -> _Listed:
    from torchvision import datasets, transforms

    shape = _image_shape(path, like)
    steps: list[Any] = [transforms.Resize(shape[-2:]) if shape[-2] != shape[-1] else transforms.Resize(round(shape[-1] * 8 / 7))]
    steps += [transforms.CenterCrop(shape[-2:]), transforms.ToTensor()]
    if mean is not None or std is not None:
        centre = scaled_channels("--mean", mean, shape) or (0.0,) * shape[1]
        scale = scaled_channels("--std", std, shape) or (1.0,) * shape[1]
        steps.append(transforms.Normalize(centre, scale))
    try:
        found = datasets.ImageFolder(str(path), transforms.Compose(steps), loader=load_picture)
    except (FileNotFoundError, OSError) as error:
        raise UsageError(f"{path} holds no images sorted into a folder for each class: {error}") from error

    def read(index: int) -> tuple[Tensor, int]:
        try:
            image, label = found[index]
        except (OSError, ValueError) as error:
            raise UsageError(f"{found.samples[index][0]} cannot be read as an image: {error}. Remove or repair it.") from error
        return image, label

    return _Listed(read, _draw(len(found), samples, seed).tolist())


def _image_shape(path: Path, like: Inputs | None) -> tuple[int, ...]:
    given = list(like.args if like else ())
    if given and isinstance(given[0], (list, tuple)) and given[0] and isinstance(given[0][0], Tensor):
        given = [given[0][0][None]]  # a model that takes a list of images
    first = next((item for item in given if isinstance(item, Tensor)), None)
    if first is None or first.dim() != 4 or first.shape[1] != 3:
        raise UsageError(f"The images in {path} are for a model that takes one batch of RGB images, which this one does not.")
    return tuple(first.shape)
