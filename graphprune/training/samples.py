"""Labelled samples in batches: arrays that live on the device, or files that are read as they are needed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from graphprune.errors import UsageError
from graphprune.training.preparation import PREPARATIONS, Preparation

_CORES: Final = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_FITS: Final = 4 * 2**30  # bytes of arrays that are moved to a device as a whole


class Samples(Protocol):
    """Labelled samples, in a fixed order."""

    def __len__(self) -> int:
        """How many there are."""

    @property
    def labels(self) -> np.ndarray[Any, Any]:
        """Class numbers, int64, shape (samples,)."""

    def pick(self, index: Sequence[int]) -> Samples:
        """Some of them, in this order."""

    def batches(self, order: Tensor, size: int, device: torch.device, seed: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels on a device, ``size`` samples at a time, the last time those that are left.

        order: indices of the samples, int64 on the CPU. seed: of the augmentation; None: without.
        """


@dataclass(frozen=True, eq=False)
class ArraySamples:
    """Samples in memory. Small sets are moved to the device once, and augmented there.

    x: shape (samples, channels, ...), uint8 or floating. y: int64, shape (samples,).
    """

    x: Tensor
    y: Tensor
    preparation: Preparation = PREPARATIONS["none"]
    _moved: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.y)

    @property
    def labels(self) -> np.ndarray[Any, Any]:
        """Class numbers, int64, shape (samples,)."""
        return self.y.numpy()

    def pick(self, index: Sequence[int]) -> ArraySamples:
        """Some of them, in this order."""
        chosen = torch.as_tensor(index)
        return ArraySamples(self.x[chosen], self.y[chosen], self.preparation)

    def batches(self, order: Tensor, size: int, device: torch.device, seed: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """As :class:`Samples` says."""
        x, y = self._on(device)
        generator = None if seed is None else torch.Generator(device).manual_seed(seed)
        normalise = self.preparation.normaliser(device, x.dim())
        for index in order.to(x.device).split(size):
            images, labels = x[index].to(device, non_blocking=True), y[index].to(device, non_blocking=True)
            yield normalise(images if generator is None else self.preparation.augmented(images, generator)), labels

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if self.x.nbytes > _FITS:
            return self.x, self.y
        if device not in self._moved:
            self._moved[device] = self.x.to(device), self.y.to(device)
        return self._moved[device]


def array_samples(x: Tensor, y: np.ndarray[Any, Any], preparation: Preparation, name: str) -> ArraySamples:
    """Samples of arrays, as :class:`ArraySamples` has them. Raises UsageError, naming the data, where they do not fit."""
    shape = list(x.shape[1:])
    for values in (preparation.mean, preparation.std):
        if len(values) not in (0, 1, shape[0]):
            raise UsageError(f"The preparation is for {len(values)} channels, and {name} has samples {shape}. Choose another one.")
    if (preparation.flip or preparation.pad) and len(shape) != 3:
        raise UsageError(f"{name} has samples {shape}, which cannot be flipped or shifted. Choose another preparation.")
    if preparation.size:
        raise UsageError(f"The preparation makes images of {preparation.size} pixels out of files, and {name} holds arrays.")
    if y.min() < 0:
        raise UsageError(f"{name} has labels below 0. Number the classes from 0.")
    return ArraySamples(x, torch.from_numpy(y), preparation)


@dataclass(frozen=True, eq=False)
class DatasetSamples:
    """Samples of map-style data sets, which yield pairs of a tensor and a class number.

    augmented, plain: the same samples for training and for judging. labels: int64, shape (samples,). workers: processes that
    read, no more of them than there are cores.
    """

    augmented: Dataset[Any]
    plain: Dataset[Any]
    labels: np.ndarray[Any, Any]
    workers: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def pick(self, index: Sequence[int]) -> DatasetSamples:
        """Some of them, in this order."""
        return DatasetSamples(Subset(self.augmented, index), Subset(self.plain, index), self.labels[list(index)], self.workers)

    def batches(self, order: Tensor, size: int, device: torch.device, seed: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """As :class:`Samples` says; without workers, augmentation draws from torch's own generator."""
        loader = DataLoader(
            self.plain if seed is None else self.augmented,
            batch_sampler=[part.tolist() for part in order.split(size)],
            num_workers=min(self.workers, _CORES),
            pin_memory=device.type == "cuda",
            generator=torch.Generator().manual_seed(seed or 0),
        )
        for item in loader:
            if not isinstance(item, (tuple, list)) or len(item) != 2 or not all(isinstance(part, Tensor) for part in item):
                raise UsageError(
                    "A sample of the data set is no pair of a tensor and a class number. Give it a transform to tensors."
                )
            x, y = item
            yield x.to(device, non_blocking=True), y.to(device, non_blocking=True)


def labels_of(dataset: Any, name: str) -> np.ndarray[Any, Any]:
    """The class numbers of a data set's samples, int64: those that it lists, else each sample is read once.

    Raises UsageError, naming the data, where they are no integers from 0.
    """
    listed = next((getattr(dataset, key) for key in ("targets", "labels", "_labels") if hasattr(dataset, key)), None)
    try:
        labels = np.asarray(listed if listed is not None else [dataset[index][1] for index in range(len(dataset))])
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise UsageError(f"{name} does not yield pairs of an input and a class number: {error}.") from error
    if labels.ndim != 1 or labels.dtype.kind not in "ui" or len(labels) != len(dataset) or not len(labels) or labels.min() < 0:
        raise UsageError(
            f"The labels of {name} are {labels.dtype}{list(labels.shape)}. Give one class number, from 0, for each sample. "
            "For another task than classification, call graphprune.methods with a loop of your own."
        )
    return labels.astype(np.int64)
