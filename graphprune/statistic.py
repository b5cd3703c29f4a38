"""What calibration measures: statistics as specifications, observers that see activations, and totals that merge exactly.

A :class:`Statistic` is a frozen dataclass that says what is measured and where. Its observer sees every activation (and its
gradient) at the :class:`Tap` s of the program as batches run, and adds parts to :class:`Totals`. Totals are sums and maxima in
float64, so that they are the same for any split into batches (to the rounding of one batch) and for any number of processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

from graphprune.channels.groups import Groups, Ints

T = TypeVar("T")
Place: TypeAlias = Literal["consumed", "produced"]


@dataclass(frozen=True, eq=False)
class Tap:
    """An activation with prunable channels. node: the graph node that makes it. axis: the one of the channels. units: the unit
    of every channel, shape (channels,). traced: the activation's shape at the example inputs."""

    node: str
    axis: int
    units: Ints
    traced: tuple[int, ...]


@dataclass
class Totals:
    """Sums and maxima by key, in float64 on the device they were measured on."""

    sums: dict[Hashable, Tensor] = field(default_factory=dict)
    maxima: dict[Hashable, Tensor] = field(default_factory=dict)

    def add(self, key: Hashable, part: Tensor) -> None:
        """Add a part (any dtype and shape, the same shape for a key each time) to a sum."""
        if key in self.sums:
            self.sums[key] += part.detach()
        else:
            self.sums[key] = part.detach().to(torch.float64, copy=True)

    def raise_to(self, key: Hashable, part: Tensor) -> None:
        """Take the element-wise maximum of what is known for a key and a part."""
        if key in self.maxima:
            self.maxima[key] = torch.maximum(self.maxima[key], part.detach().double())
        else:
            self.maxima[key] = part.detach().to(torch.float64, copy=True)

    def merge(self, other: Totals) -> None:
        """Take in what was measured on other samples."""
        for key, part in other.sums.items():
            self.add(key, part)
        for key, part in other.maxima.items():
            self.raise_to(key, part)

    def all_reduce(self) -> None:
        """Merge over all processes of ``torch.distributed``, where it runs; one that saw nothing of a key takes part, too."""
        if not _distributed():
            return
        kinds = (self.sums, torch.distributed.ReduceOp.SUM, 0.0), (self.maxima, torch.distributed.ReduceOp.MAX, -torch.inf)
        device = torch.device("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
        for totals, operation, nothing in kinds:
            shapes: dict[Hashable, torch.Size] = {}
            for others in gathered({key: total.shape for key, total in totals.items()}):
                shapes.update(others)
            for key, shape in shapes.items():
                whole = totals.get(key, torch.full(shape, nothing, dtype=torch.float64)).to(device).contiguous()
                torch.distributed.all_reduce(whole, operation)
                totals[key] = whole


def gathered(item: T) -> list[T]:
    """What every process of ``torch.distributed`` has here, in the order of ranks; alone, just this."""
    if not _distributed():
        return [item]
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, item)
    return found


def _distributed() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


class Observer:
    """Measures one statistic. Every method may be called for one batch after another; the base class measures nothing.

    share: for a statistic of classes, the part of the samples of its class, over all processes, that the batch holds.
    """

    def __init__(self) -> None:
        self.totals = Totals()
        self.share = 1.0

    def see(self, tap: Tap, activation: Tensor) -> None:
        """An activation as it is made: samples along axis 0, channels along axis 1, places after them; windows of a sample, where
        there are several, along axis 2. One that does not depend on the batch is one sample."""

    def see_gradient(self, tap: Tap, activation: Tensor, gradient: Tensor) -> None:
        """An activation (laid out as in :meth:`see`) and the gradient of the batch's summed loss with respect to it."""

    def end_batch(self, samples: int) -> None:
        """All of a batch of so many samples was seen."""

    def end(self) -> None:
        """All batches of a pass over data were seen; more may follow in another."""

    def see_weight(self, name: str, weight: Tensor, gradient: Tensor) -> None:
        """A parameter, under its first name, and a part of the gradient of the summed loss with respect to it, if the statistic
        asked. The parts of all calls for one parameter add up to the whole: they are of some batches, or of some of its uses."""


class Statistic(ABC):
    """What to measure. Subclasses are frozen dataclasses, so that equal ones are measured once.

    gradients: it needs the gradients of a loss. parameters: those of the parameters. per_class: 0, or the samples of each
    class that it needs; batches then hold one class each.
    """

    gradients: ClassVar[bool] = False
    parameters: ClassVar[bool] = False

    @property
    def place(self) -> Place | None:
        """Where it looks: at activations as they enter the layers that consume them, as they leave those that make them, or
        nowhere."""
        return None

    @property
    def per_class(self) -> int:
        """Samples of each class, for a statistic of classes; else 0."""
        return 0

    @property
    def splits(self) -> bool:
        """Whether batches may be split without a change of the result, as where memory is short: sums and maxima may."""
        return True

    @abstractmethod
    def observer(self, groups: Groups) -> Observer:
        """What measures it."""
