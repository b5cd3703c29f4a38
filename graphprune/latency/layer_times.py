"""The times of a model's layers as functions of the group widths, each fitted to the measurements of its family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphprune.latency.fit import Floats, LayerTime, RisingTime, fit_layer
from graphprune.latency.table import LatencyTable, Length, NodeInfo


@dataclass(frozen=True)
class Layer:
    """A layer's time, which is its family's, and the lengths (two at most) that it depends on."""

    time: LayerTime | RisingTime
    info: NodeInfo


class LayerTimes:
    """The times of all layers of a model at once. names: of the layers, in order. owners: the groups that each one's depends on."""

    def __init__(self, layers: Mapping[str, Layer], groups: int) -> None:
        self.names = list(layers)
        self.owners = [groups_of(layer.info) for layer in layers.values()]
        lengths = [layer.info.lengths for layer in layers.values()]
        self._first = _Lengths([one[:1] for one in lengths], groups)
        self._second = _Lengths([one[1:] for one in lengths], groups)
        # time = c0 + c1 a + c2 b + c3 a b, with the lengths a and b rounded up to steps; curves are looked up instead.
        self._coefficients, self._steps = np.zeros((4, len(layers))), np.ones((2, len(layers)))
        self._curves: list[tuple[int, RisingTime]] = []
        for place, layer in enumerate(layers.values()):
            if isinstance(layer.time, RisingTime):
                self._curves.append((place, layer.time))
            else:
                self._coefficients[: len(layer.time.coefficients), place] = layer.time.coefficients
                self._steps[: len(layer.time.granularities), place] = layer.time.granularities

    def __call__(self, widths: Floats) -> Floats:
        """Milliseconds for widths of shape (..., groups); shape (..., layers)."""
        first, second = self._first(widths), self._second(widths)
        a, b = (np.ceil(of / step) * step for of, step in zip((first, second), self._steps, strict=True))
        constant, by_a, by_b, by_both = self._coefficients
        result: Floats = constant + by_a * a + (by_b + by_both * a) * b
        for place, curve in self._curves:
            result[..., place] = curve(first[..., place, None])
        return result


class _Lengths:
    """One length of each layer, 0 for those without."""

    def __init__(self, lengths: Sequence[tuple[Length, ...]], groups: int) -> None:
        self._constants, self._slopes = np.zeros(len(lengths)), np.zeros((groups, len(lengths)))
        for place, one in enumerate(lengths):
            for length in one:
                self._constants[place] = length.constant
                self._slopes[list(length.by_group), place] = list(length.by_group.values())

    def __call__(self, widths: Floats) -> Floats:
        return np.asarray(widths @ self._slopes + self._constants)


def lengths_at(lengths: Sequence[Length], widths: Floats) -> Floats:
    """Lengths for widths of shape (..., groups); shape (..., number of lengths)."""
    alone = _Lengths([(length,) for length in lengths], widths.shape[-1])
    return alone(widths)


def groups_of(info: NodeInfo) -> tuple[int, ...]:
    """Indices of the groups that a layer's time depends on, ascending."""
    return tuple(sorted({group for length in info.lengths for group in length.by_group}))


def fit_families(table: LatencyTable) -> LayerTimes:
    """The time of each layer, fitted to the measurements of all layers of its family."""
    families: dict[tuple[str, int], list[str]] = {}
    for name, info in table.nodes.items():
        families.setdefault((info.family, len(info.lengths)), []).append(name)
    widths = table.widths.astype(np.float64)
    times: dict[str, LayerTime | RisingTime] = {}
    for names in families.values():
        rows = np.concatenate([lengths_at(table.nodes[name].lengths, widths) for name in names])
        # A layer that the rewriter drops at some widths takes no time there.
        ms = np.array([sample.nodes.get(name, 0.0) for name in names for sample in table.samples])
        times |= dict.fromkeys(names, fit_layer(rows, ms))
    return LayerTimes({name: Layer(times[name], info) for name, info in table.nodes.items()}, table.full.size)
