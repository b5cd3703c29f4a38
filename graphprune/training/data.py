"""The data of a training: samples to train on, to judge by and to test with, by name or from arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from graphprune.calibration import Calibration
from graphprune.errors import UsageError
from graphprune.sources.digits import load_digits
from graphprune.sources.factories import call_named, is_named
from graphprune.sources.images import Images, load_images
from graphprune.training import torchvision_data
from graphprune.training.preparation import PREPARATIONS, Preparation, preparation
from graphprune.training.samples import DatasetSamples, Samples, array_samples, labels_of

_BATCH: Final = 128
_CPU: Final = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Labelled samples: ``train`` to train on, ``validation`` for every decision on the way, ``test`` for the end, if there is one.

    >>> data = load_training_data("digits")
    >>> len(data.train), len(data.validation), data.classes
    (1212, 135, 10)
    """

    train: Samples
    validation: Samples
    test: Samples | None = None
    name: str = "the training data"

    @property
    def classes(self) -> int:
        """One more than the largest label of the training."""
        return int(self.train.labels.max()) + 1

    def example(self) -> Tensor:
        """The first training sample as a batch of one, on the CPU: an example input of the model."""
        return next(self.train.batches(torch.tensor([0]), 1, _CPU, None))[0]

    def calibration(self, samples: int = 512, *, seed: int = 0, augment: bool = False) -> Calibration:
        """Training samples drawn at random by the seed, in their own order, without augmentation unless it is asked for."""
        drawn = np.sort(np.random.default_rng(seed).permutation(len(self.train))[:samples])
        return Calibration(_Drawn(self.train, torch.from_numpy(drawn), seed if augment else None), name=self.name)


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Batches of some samples, the same each time they are read."""

    samples: Samples
    index: Tensor
    seed: int | None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.seed is None:
            yield from self.samples.batches(self.index, _BATCH, _CPU, None)
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            batches = list(self.samples.batches(self.index, _BATCH, _CPU, self.seed))
        yield from batches


def load_training_data(
    text: str, *, prepare: str | Preparation | None = None, validation: float = 0.1, seed: int = 0, workers: int = 4
) -> TrainingData:
    """The data that a user names.

    text: ``FILE.npz`` (``x_train`` and ``y_train``, or ``x`` and ``y``; ``x_test`` and ``y_test`` for the test), ``digits``,
        ``torchvision:CLASS:ROOT`` (any data set of torchvision with pairs of an image and a label, which must be there already;
        ``torchvision:FakeData(size=100)``), a folder of images in folders of classes (or with such ``train``, ``val`` and
        ``test`` in it; one of the last two alone is the test), or ``package.module:callable``, which returns TrainingData, a data
        set, or two or three of them (training, validation, test).
    prepare: a name of ``PREPARATIONS`` or a preparation; None: that of the source, such as ``imagenet`` for folders.
    validation: how much of the training samples is set apart, as a share below 1 or a number, with the classes in proportion and
        by the seed; not used where the source brings validation samples. workers: processes that read files.

    Raises UsageError, naming the data and what is wrong.
    """
    given = preparation(prepare) if isinstance(prepare, str) else prepare
    train, other, test = _sources(text, given, workers)
    if other is None:
        train, other = split(train, validation, seed, text)
    return TrainingData(train, other, test, text)


def _sources(text: str, given: Preparation | None, workers: int) -> tuple[Samples, Samples | None, Samples | None]:
    """Training, validation and test samples; None for what the source does not have."""
    if text == "digits":
        train, test = load_digits()
        return _of_images(train, given), None, _of_images(test, given)
    if text.startswith("torchvision:"):
        return torchvision_data.named(text, given, workers)
    path = Path(text)
    if path.is_dir():
        return torchvision_data.folder(path, given, workers)
    if is_named(text) and not path.exists():
        return _called(text, workers)
    train = load_images(path, split="train")
    with np.load(path) as arrays:
        tested = {"x_test", "y_test"} <= set(arrays.files)
    return _of_images(train, given), None, _of_images(load_images(path), given) if tested else None


def _of_images(images: Images, given: Preparation | None) -> Samples:
    return array_samples(torch.from_numpy(images.x), images.y, given or PREPARATIONS["none"], images.name)


def _called(text: str, workers: int) -> tuple[Samples, Samples | None, Samples | None]:
    found = call_named(text)
    if isinstance(found, TrainingData):
        return found.train, found.validation, found.test
    sets = found if isinstance(found, (tuple, list)) else (found,)
    if not 1 <= len(sets) <= 3 or not all(hasattr(item, "__getitem__") and hasattr(item, "__len__") for item in sets):
        raise UsageError(f"{text} returned {type(found).__name__}. Return one to three data sets, or TrainingData.")
    parts = [DatasetSamples(item, item, labels_of(item, text), workers) for item in sets]
    others = [*parts[1:], None, None]
    return parts[0], others[0], others[1]


def split(samples: Samples, amount: float, seed: int = 0, name: str = "the data") -> tuple[Samples, Samples]:
    """Two parts, the second of a share (below 1) or number of the samples, classes in proportion. The same for the same seed.

    Raises UsageError where either part would be empty.
    """
    labels = samples.labels
    wanted = round(amount * len(labels)) if amount < 1 else int(amount)
    if not 0 < wanted < len(labels):
        raise UsageError(f"A validation part of {amount:g} leaves {name}, {len(labels)} samples, with an empty part.")
    order = np.random.default_rng(seed).permutation(len(labels))
    # Samples of each class at even distances: the first so many of this order hold all classes in proportion.
    places = np.empty(len(labels))
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        places[order[labels[order] == label]] = (np.arange(count) + 0.5) / count
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[order[np.argsort(places[order], kind="stable")[:wanted]]] = True
    return samples.pick(np.flatnonzero(~chosen).tolist()), samples.pick(np.flatnonzero(chosen).tolist())
