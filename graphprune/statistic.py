"""What calibration measures: statistics as specifications, observers that see activations, and totals that merge exactly.

A :class:`Statistic` is a frozen dataclass that says what is measured and where. Its observer sees every activation (and its
gradient) at the :class:`Tap` s of the program as batches run, and adds parts to :class:`Totals`. Totals are sums and maxima in
float64, so that they are the same for any split into batches (to the rounding of one batch) and for any number of processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from graphprune.groups import Groups, Ints

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
        part = part.detach().double()
        known = self.sums.get(key)
        self.sums[key] = part if known is None else known + part

    def raise_to(self, key: Hashable, part: Tensor) -> None:
        """Take the element-wise maximum of what is known for a key and a part."""
        part = part.detach().double()
        known = self.maxima.get(key)
        self.maxima[key] = part if known is None else torch.maximum(known, part)

    def merge(self, other: Totals) -> None:
        """Take in what was measured on other samples."""
        for key, part in other.sums.items():
            self.add(key, part)
        for key, part in other.maxima.items():
            self.raise_to(key, part)

    def all_reduce(self) -> None:
        """Merge over all processes of ``torch.distributed``, where it runs; every one must have seen the same program."""
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
            return
        for totals, operation in ((self.sums, distributed.ReduceOp.SUM), (self.maxima, distributed.ReduceOp.MAX)):
            for key, total in totals.items():
                whole = total.contiguous()
                distributed.all_reduce(whole, operation)
                totals[key] = whole


class Observer:
    """Measures one statistic. Every method may be called for one batch after another; the base class measures nothing."""

    def __init__(self) -> None:
        self.totals = Totals()

    def see(self, tap: Tap, activation: Tensor) -> None:
        """An activation as it is made: samples along axis 0, channels along axis 1."""

    def see_gradient(self, tap: Tap, activation: Tensor, gradient: Tensor) -> None:
        """An activation (laid out as in :meth:`see`) and the gradient of the batch's summed loss with respect to it."""

    def end_batch(self) -> None:
        """All of the batch was seen."""

    def end(self, gradients: Mapping[str, Tensor]) -> None:
        """All batches were seen. gradients: of the summed loss with respect to each parameter, if the statistic asked."""


class Statistic(ABC):
    """What to measure. Subclasses are frozen dataclasses, so that equal ones are measured once.

    gradients: it needs the gradients of a loss. parameters: those of the parameters, too. per_class: 0, or the samples of each
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

    @abstractmethod
    def observer(self, groups: Groups) -> Observer:
        """What measures it."""
