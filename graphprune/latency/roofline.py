"""Latency without measuring the model: an analytical roofline, fitted to a few layers that are measured on the device.

``time = max((MACs + ramp * made) / rate, bytes / bandwidth) + overhead`` for each layer. A contraction over few elements
runs below the peak: ``ramp`` is the number of them at which it runs at half of it, which tells depthwise convolutions from
dense ones without naming them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import least_squares
from torch import fx, nn

from graphprune.channels.groups import Groups
from graphprune.ir.program import Program
from graphprune.latency.clock import Clock, Subject
from graphprune.latency.environment import Environment
from graphprune.latency.fit import Floats
from graphprune.latency.model import Accuracy, accuracy
from graphprune.latency.work import Layers, Work

_EVERY: Final = 4  # every so many layers, one only tests the fit
_TOGETHER: Final = 8  # layers that are timed by turns

# Output and input channels, kernel, groups, and size of the image.
_CONVOLUTIONS: Final = [
    *((c, c, 3, 1, s) for c, s in ((16, 56), (64, 56), (128, 28), (256, 14), (512, 7), (32, 112), (48, 28), (96, 14))),
    *((4 * c, c, 1, 1, s) for c, s in ((16, 56), (64, 28), (128, 14), (256, 14), (512, 7), (24, 28))),
    *((c, 4 * c, 1, 1, s) for c, s in ((16, 56), (64, 56), (128, 28), (256, 14), (48, 14))),
    *((c, c, 3, c, s) for c, s in ((32, 112), (96, 56), (144, 28), (384, 14), (960, 7), (64, 14))),
]
_MATRICES: Final = [(1000, 512), (1000, 2048), (4096, 1024), (64, 64)]
_ELEMENTWISE: Final = [(16, 112), (64, 56), (256, 56), (256, 14), (512, 7), (8, 7)]


@dataclass(frozen=True)
class Roofline:
    """The device in four numbers: MACs and bytes in a millisecond, the ramp, and milliseconds that each layer takes besides.

    error: on layers that took no part in the fit.
    """

    rate: float
    bandwidth: float
    ramp: float
    overhead: float
    error: Accuracy | None = None

    def __call__(self, work: Work) -> Floats:
        """Milliseconds of each layer."""
        compute = (work.macs + self.ramp * work.made) / self.rate
        result: Floats = np.maximum(compute, work.bytes / self.bandwidth) + self.overhead
        return result


class RooflineModel:
    """Predicted milliseconds of the whole model for any widths; the counterpart of a measured model, and never shown as one."""

    name: ClassVar[str] = "latency"
    unit: ClassVar[str] = "ms"
    rows: ClassVar[None] = None
    measured: ClassVar[bool] = False

    def __init__(self, program: Program, groups: Groups, roofline: Roofline) -> None:
        self.roofline = roofline
        self._layers = Layers(program, groups)
        terms = dict.fromkeys([(), *self._layers.groups_of])
        self.terms: Sequence[tuple[int, ...]] = tuple(terms)
        place = {term: index for index, term in enumerate(self.terms)}
        self._term_of = np.array([place[owners] for owners in self._layers.groups_of], dtype=np.int64)

    def parts(self, widths: npt.ArrayLike) -> Floats:
        """Milliseconds of every term for widths of shape (..., groups); shape (..., terms)."""
        times = self.roofline(self._layers.at(widths))
        result: Floats = times @ np.eye(len(self.terms))[self._term_of]
        return result

    def __call__(self, widths: npt.ArrayLike) -> Floats:
        """Milliseconds for widths of shape (..., groups)."""
        result: Floats = self.roofline(self._layers.at(widths)).sum(axis=-1)
        return result


@dataclass(frozen=True)
class Probe:
    """A layer to measure: what it is, an input's shape, and its work."""

    layer: nn.Module
    shape: tuple[int, ...]
    macs: int
    made: int

    def work(self, itemsize: int) -> tuple[float, float, float]:
        """Multiply-accumulates, elements that they make, and bytes."""
        weights = sum(parameter.numel() for parameter in self.layer.parameters())
        written = self.made or prod(self.shape)
        return self.macs, self.made, itemsize * (prod(self.shape) + weights + written)

    def subject(self, environment: Environment) -> Subject:
        """The layer on the device."""
        dtype = getattr(torch, environment.dtype)
        layout = torch.channels_last if environment.layout == "channels_last" and len(self.shape) == 4 else torch.contiguous_format
        module = fx.symbolic_trace(nn.Sequential(self.layer)).eval().to(environment.device, dtype)
        module.to(memory_format=layout)
        given = torch.randn(self.shape, generator=torch.Generator().manual_seed(0))
        return Subject(module, (given.to(environment.device, dtype).contiguous(memory_format=layout),))


def probes(batch: int = 1) -> list[Probe]:
    """Convolutions, matrix products and element-wise layers of assorted sizes, in an order that mixes them."""
    found = [
        Probe(
            nn.Conv2d(inward, out, kernel, padding=kernel // 2, groups=groups, bias=False),
            (batch, inward, size, size),
            batch * size * size * out * inward // groups * kernel * kernel,
            batch * out * size * size,
        )
        for out, inward, kernel, groups, size in _CONVOLUTIONS
    ]
    found += [Probe(nn.Linear(i, o, bias=False), (batch, i), batch * o * i, batch * o) for o, i in _MATRICES]
    found += [Probe(nn.ReLU(), (batch, c, size, size), 0, 0) for c, size in _ELEMENTWISE]
    return [found[index] for index in np.random.default_rng(0).permutation(len(found))]


def measure_roofline(environment: Environment, clock: Clock, batch: int = 1) -> Roofline:
    """Measure the probes on the device, fit the roofline to most of them, and test it on the others."""
    chosen = probes(batch)
    times: list[float] = []
    for begin in range(0, len(chosen), _TOGETHER):
        together = [probe.subject(environment) for probe in chosen[begin : begin + _TOGETHER]]
        times += [timing.median_ms for timing in clock.whole(together)]
    itemsize = torch.empty(0, dtype=getattr(torch, environment.dtype)).element_size()
    macs, made, moved = np.array([probe.work(itemsize) for probe in chosen], dtype=np.float64).T
    ms = np.array(times)
    tests = np.arange(len(chosen)) % _EVERY == 0
    fitted = fit_roofline(Work(macs[~tests], made[~tests], moved[~tests]), ms[~tests])
    error = accuracy(fitted(Work(macs[tests], made[tests], moved[tests])), ms[tests])
    return Roofline(fitted.rate, fitted.bandwidth, fitted.ramp, fitted.overhead, error)


def fit_roofline(work: Work, ms: Floats) -> Roofline:
    """The roofline with the least relative errors on measured layers; outliers count less."""
    busy = work.macs > 0
    rate = float(np.quantile(work.macs[busy] / ms[busy], 0.9))
    bandwidth = float(np.quantile(work.bytes / ms, 0.9))

    def residuals(logs: Floats) -> Floats:
        result: Floats = np.log(Roofline(*np.exp(logs))(work) / ms)
        return result

    starts = [(rate, bandwidth * factor, ramp, float(ms.min()) / 2) for factor in (1, 4) for ramp in (1.0, 30.0)]
    solved = [least_squares(residuals, np.log(start), loss="soft_l1", f_scale=0.1) for start in starts]
    return Roofline(*np.exp(min(solved, key=lambda one: float(one.cost)).x).tolist())
