"""First-order saliency: how much a loss changes, to first order, when a unit's channels become zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from graphprune.channels.groups import Groups
from graphprune.statistic import Observer, Place, Statistic, Tap


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
class ParameterGradients(Statistic):
    """The gradient of the loss, summed over all samples, with respect to every parameter, by the parameter's name; and the
    number of samples, by :attr:`COUNT`."""

    COUNT: ClassVar[tuple[str]] = ("samples",)  # no parameter's name

    gradients: ClassVar[bool] = True
    parameters: ClassVar[bool] = True

    def observer(self, groups: Groups) -> Observer:
        """What keeps them."""
        return _ParameterGradients()


class _ParameterGradients(Observer):
    def end_batch(self, samples: int) -> None:
        """Count samples."""
        self.totals.add(ParameterGradients.COUNT, torch.tensor(float(samples)))

    def end(self, gradients: Mapping[str, Tensor]) -> None:
        """All gradients, once all samples were seen."""
        for name, gradient in gradients.items():
            self.totals.add(name, gradient)
