"""First-order saliency: how much a loss changes, to first order, when a unit's channels become zero."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from graphprune.channels.groups import Groups
from graphprune.statistic import Observer, Place, Statistic, Tap

_BLOCK: Final = 2**16  # elements of a weight that are in float64 at once


@dataclass(frozen=True)
class Saliency(Statistic):
    """For each sample n and unit u, ``d[n, u] = sum over taps, channels of u and places of a * dL_n/da``: the derivative of the
    sample's loss with respect to a factor on all of the unit's channels. Sums over samples of |d|, d^2 and d, shape (units,).

    An activation that does not depend on the batch adds the same to every sample. Source: Molchanov et al., ICLR 2017, eq. 8
    (one layer); Liu et al., Group Fisher Pruning, ICML 2021, eq. 5 (coupled layers).
    """

    gradients: ClassVar[bool] = True

    at: Place = "consumed"

    @property
    def place(self) -> Place:
        """Where activations are looked at."""
        return self.at

    def observer(self, groups: Groups) -> Observer:
        """What measures it; its totals are called ``abs``, ``square``, ``sum`` and ``count``."""
        return _Saliency(groups.unit_count)


class _Saliency(Observer):
    def __init__(self, units: int) -> None:
        super().__init__()
        self._units = units
        self._batch: dict[int, Tensor] = {}  # by number of samples: 1 at taps that do not depend on the batch

    def see_gradient(self, tap: Tap, activation: Tensor, gradient: Tensor) -> None:
        """Add a tap's part of the batch's derivatives."""
        channels = (
            torch.linalg.vecdot(activation.flatten(2), gradient.flatten(2)) if activation.dim() > 2 else activation * gradient
        )
        samples = len(channels)
        known = self._batch.get(samples)
        if known is None:
            known = self._batch[samples] = torch.zeros(samples, self._units, dtype=torch.float64, device=channels.device)
        known.index_add_(1, torch.from_numpy(tap.units).to(channels.device), channels.double())

    def end_batch(self, samples: int) -> None:
        """Take powers of the derivatives, now that all taps were seen."""
        self.totals.add("count", torch.tensor(float(samples)))
        parts = [part if size == samples else part.sum(0) / samples for size, part in self._batch.items()]
        if parts:
            derivative = torch.stack([part.expand(samples, -1) for part in parts]).sum(0)
            self.totals.add("abs", derivative.abs().sum(0))
            self.totals.add("square", derivative.square().sum(0))
            self.totals.add("sum", derivative.sum(0))
        self._batch.clear()


@dataclass(frozen=True)
class WeightSaliency(Statistic):
    """For every parameter axis with prunable units, ``sum w * dL/dw`` over all elements at each index, shape (indices,), by the
    parameter's name and the axis, with the loss summed over all samples; and the number of samples, by :attr:`COUNT`.

    Sums of slices are linear in the gradient, so that no gradient outlives the pass that made it.
    """

    COUNT: ClassVar[tuple[str]] = ("samples",)  # no parameter's name

    gradients: ClassVar[bool] = True
    parameters: ClassVar[bool] = True

    def observer(self, groups: Groups) -> Observer:
        """What adds them up."""
        axes: dict[str, dict[int, Tensor]] = {}
        for name, axis, vector in groups.axes:
            if groups.shrinking[vector]:
                axes.setdefault(name, {})[axis] = torch.zeros(int(groups.vectors.sizes[vector]), dtype=torch.float64)
        return _WeightSaliency(axes)


class _WeightSaliency(Observer):
    """sums: by name and axis. There from the start: small blocks that stay between large ones fragment the memory."""

    def __init__(self, sums: Mapping[str, Mapping[int, Tensor]]) -> None:
        super().__init__()
        self._sums = sums

    def see_weight(self, name: str, weight: Tensor, gradient: Tensor) -> None:
        """Add a part to the sums of each axis."""
        known = self._sums.get(name, {})
        for axis, part in _slice_products(weight, gradient, known):
            self.totals.sums[name, axis] = known[axis].add_(part.cpu())

    def end_batch(self, samples: int) -> None:
        """Count samples."""
        self.totals.add(WeightSaliency.COUNT, torch.tensor(float(samples)))


def _slice_products(one: Tensor, other: Tensor, axes: Iterable[int]) -> list[tuple[int, Tensor]]:
    """For some axes of two tensors: the sum of their products over all elements at each index, in float64 by blocks of rows."""
    found = [(axis, one.new_zeros(one.shape[axis], dtype=torch.float64)) for axis in axes]
    if not found or not one.numel():
        return found
    for begin in range(0, len(one), size := max(1, _BLOCK * len(one) // one.numel())):
        block = slice(begin, begin + size)
        products = one[block].double() * other[block]
        for axis, sums in found:
            others = [each for each in range(products.dim()) if each != axis]
            part = products.sum(others) if others else products
            if axis:
                sums += part
            else:
                sums[block] = part
    return found
