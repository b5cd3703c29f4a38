"""Data sets of torchvision, and folders of images, as samples. Nothing is downloaded."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from graphprune.errors import UsageError, did_you_mean, first_line
from graphprune.sources.factories import Call, parse_call
from graphprune.sources.images import load_picture
from graphprune.training.preparation import PREPARATIONS, Preparation
from graphprune.training.samples import DatasetSamples, Samples, array_samples, labels_of

_NAME: Final = re.compile(r"(torchvision:\w+(?:\(.*?\))?)(?::(.*))?", re.DOTALL)

# How data sets are asked for a part: the parameter, what stands for training, and what may stand for the test.
_PARTS: Final[dict[str, tuple[object, tuple[object, ...]]]] = {"train": (True, (False,)), "split": ("train", ("test", "val"))}

Parts = tuple[Samples, Samples | None, Samples | None]


def named(text: str, given: Preparation | None, workers: int) -> Parts:
    """Training and test samples of ``torchvision:CLASS(arguments):ROOT``; arguments and root may be missing.

    Raises UsageError where there is no such data set, or its files are not there.
    """
    kind, call, root = _parsed(text)
    if kind.__name__ == "ImageFolder" and root:
        return folder(Path(root), given, workers)
    parameters = inspect.signature(kind).parameters
    options = call.kwargs | ({"root": root} if root and "root" in parameters else {})

    def make(transform: Any, **chosen: object) -> Any:
        try:
            return kind(*call.args, **options, **chosen, transform=transform)
        except (OSError, RuntimeError, TypeError, ValueError, ModuleNotFoundError) as error:
            raise UsageError(
                f"{text} cannot be read: {first_line(error)}. "
                "Write torchvision:CLASS:ROOT with the folder that holds the data; nothing is downloaded."
            ) from error

    def part(**chosen: object) -> Samples:
        return _samples(lambda transform: make(transform, **chosen), given, workers, text)

    how = next((name for name in _PARTS if name in parameters and name not in options), None)
    if how is None:
        return part(), None, None
    training, tests = _PARTS[how]
    train = part(**{how: training})
    for test in tests:
        try:
            return train, None, part(**{how: test})
        except UsageError:  # it has no part of that name, or not here
            continue
    return train, None, None


def _parsed(text: str) -> tuple[Any, Call, str | None]:
    """The class, its arguments and the root that a text names."""
    from torchvision import datasets

    match = _NAME.fullmatch(text)
    if match is None:
        raise UsageError(f"Cannot read the data {text!r}. Write torchvision:CLASS:ROOT, such as torchvision:CIFAR10:data.")
    call = parse_call(match[1])
    if call.name not in datasets.__all__:
        raise UsageError(f"torchvision has no data set {call.name!r}{did_you_mean(call.name, datasets.__all__)}")
    if call.kwargs.get("download"):
        raise UsageError(f"{text} asks for a download. Leave it out and give the folder that holds the data.")
    return getattr(datasets, call.name), call, match[2]


def folder(path: Path, given: Preparation | None, workers: int) -> Parts:
    """Images in a folder for each class; or ``train``, ``val`` and ``test`` with such folders (one of the last two: the test).

    Raises UsageError for others.
    """
    from torchvision import datasets

    prepared = given or PREPARATIONS["imagenet"]

    def read(part: Path) -> Samples:
        try:
            augmented, plain = (
                datasets.ImageFolder(str(part), prepared.transform(augment), loader=load_picture) for augment in (True, False)
            )
        except OSError as error:
            raise UsageError(f"{part} holds no images sorted into a folder for each class: {first_line(error)}.") from error
        return DatasetSamples(augmented, plain, np.array(plain.targets, dtype=np.int64), workers)

    if not (path / "train").is_dir():
        return read(path), None, None
    train, validation, test = (read(path / name) if (path / name).is_dir() else None for name in ("train", "val", "test"))
    assert train is not None
    return (train, validation, test) if test is not None else (train, None, validation)


def _samples(make: Callable[[Any], Any], given: Preparation | None, workers: int, name: str) -> Samples:
    """Samples of a data set; one that holds all its images as an array becomes an array."""
    prepared = given or PREPARATIONS["imagenet"]
    plain = make(prepared.transform(augment=False))
    labels, pixels = labels_of(plain, name), _pixels(plain)
    if pixels is not None and not (given and given.size):
        return array_samples(pixels, labels, given or PREPARATIONS["cifar" if pixels.shape[1] == 3 else "none"], name)
    return DatasetSamples(make(prepared.transform(augment=True)), plain, labels, workers)


def _pixels(dataset: Any) -> Tensor | None:
    """The images of a data set that holds them in ``data``: bytes, shape (images, channels, height, width)."""
    data = getattr(dataset, "data", None)
    data = torch.from_numpy(data) if isinstance(data, np.ndarray) else data
    if not isinstance(data, Tensor) or data.dtype != torch.uint8 or data.dim() not in (3, 4):
        return None
    if data.dim() == 3:
        return data[:, None]
    if data.shape[1] in (1, 3):
        return data
    return data.permute(0, 3, 1, 2).contiguous() if data.shape[3] in (1, 3) else None
