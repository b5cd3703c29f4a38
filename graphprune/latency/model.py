"""Latency as a function of the group widths, from a measured table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from graphprune.channels.groups import Ints
from graphprune.errors import LatencyError
from graphprune.latency.fit import Floats
from graphprune.latency.layer_times import fit_families
from graphprune.latency.staircase import stairs
from graphprune.latency.table import LatencyTable

_LEAST_SPREAD: Final = 0.02  # samples count by their relative spread, but none for more than this one


@dataclass(frozen=True)
class Accuracy:
    """How far a model is off, as shares of the measured times: over ``samples`` of them."""

    median: float
    mean: float
    worst: float
    samples: int


class LatencyModel:
    """Milliseconds of the whole model for any widths: a sum of terms that depend on a few groups each.

    In mode ``layers`` a term holds the layers that depend on the same groups; each layer's time is fitted to its family's
    measurements, and their sum to the whole models' times. In mode ``model`` there is a term for each group, the staircase
    that was measured with all others at full width; the terms are scaled to fall from the whole to the least model.

    terms: for every term the indices of the groups that it depends on.
    """

    name: ClassVar[str] = "latency"
    unit: ClassVar[str] = "ms"
    rows: ClassVar[None] = None
    measured: ClassVar[bool] = True

    def __init__(self, table: LatencyTable) -> None:
        """Raises LatencyError for a table with fewer than the two samples that every run begins with."""
        if len(table.samples) < 2:
            raise LatencyError("The latency table is not finished; run the same `graphprune profile` again to go on.")
        self.table = table
        self._sum = _LayerSum(table) if table.settings.mode == "layers" else _StairSum(table)
        self.terms: Sequence[tuple[int, ...]] = self._sum.terms

    def parts(self, widths: npt.ArrayLike) -> Floats:
        """Milliseconds of every term for widths of shape (..., groups); shape (..., terms)."""
        return self._sum.parts(np.asarray(widths, dtype=np.float64))

    def parts_of(self, nodes: Mapping[str, float]) -> Floats:
        """The terms by measured milliseconds of each layer; NaN for those that no layers make up."""
        return self._sum.parts_of(nodes)

    def __call__(self, widths: npt.ArrayLike) -> Floats:
        """Milliseconds for widths of shape (..., groups)."""
        result: Floats = self.parts(widths).sum(axis=-1)
        return result

    def steps(self, group: int) -> Ints:
        """The widths of a group at which its staircase steps, for ``round_to=auto``; all of them where it is a ramp."""
        return stairs(self, self.table.full, group)


class _LayerSum:
    """Layers that depend on the same groups are a term; the first one is what is outside of them all."""

    def __init__(self, table: LatencyTable) -> None:
        self._layers = fit_families(table)
        predicted = self._layers(table.widths.astype(np.float64))
        spreads = np.array([sample.whole.spread for sample in table.samples])
        offset, self._scale = _affine(predicted.sum(axis=-1), table.whole_ms, 1 / (_LEAST_SPREAD + spreads))
        self.terms = list(dict.fromkeys([(), *self._layers.owners]))
        self._offsets = np.where([bool(term) for term in self.terms], 0.0, offset)
        self._members = np.array([[term == owner for term in self.terms] for owner in self._layers.owners], dtype=np.float64)

    def parts(self, widths: Floats) -> Floats:
        result: Floats = self._scale * (self._layers(widths) @ self._members) + self._offsets
        return result

    def parts_of(self, nodes: Mapping[str, float]) -> Floats:
        times = np.array([nodes.get(name, 0.0) for name in self._layers.names])
        return np.where([bool(term) for term in self.terms], self._scale * (times @ self._members), np.nan)


def _affine(predicted: Floats, measured: Floats, weights: Floats) -> tuple[float, float]:
    """What is outside of the layers, and the factor on their sum: the least relative error with neither negative."""
    basis = np.stack([np.ones_like(predicted), predicted], axis=-1) / measured[:, None]
    from scipy.optimize import nnls  # not before it is needed: it takes long to import

    (offset, scale), _ = nnls(basis * weights[:, None], weights)
    return float(offset), float(scale)


@dataclass(frozen=True)
class Staircase:
    """A group's latency above that at its least width, with the others at full width. widths: that were measured, ascending.

    ms: of these, and nowhere more than at a wider one: who is offered a narrower, slower layer keeps the wider one.
    """

    group: int
    widths: Floats
    ms: Floats

    def __call__(self, widths: Floats) -> Floats:
        """That of the next measured width, for widths of shape (..., groups); between measurements a stair is level."""
        index = np.searchsorted(self.widths, widths[..., self.group], side="left")
        stairs: Floats = self.ms[np.minimum(index, self.widths.size - 1)]
        return stairs


def staircases(table: LatencyTable) -> list[Staircase]:
    """The staircase of each group, from the samples in which it alone is not at full width."""
    full, widths, ms = table.full, table.widths, table.whole_ms
    narrower = widths < full
    found = []
    for group in range(full.size):
        alone = ~np.delete(narrower, group, axis=1).any(axis=1)
        at, first = np.unique(widths[alone, group], return_index=True)
        rising = np.minimum.accumulate(ms[alone][first][::-1])[::-1]
        found.append(Staircase(group, at.astype(np.float64), rising - rising[0]))
    return found


class _StairSum:
    """Each group's staircase is a term; the first one is the least model's time, which all others come on top of."""

    def __init__(self, table: LatencyTable) -> None:
        self._stairs = staircases(table)
        self._least = float(table.whole_ms[1])
        total = sum(float(one.ms[-1]) for one in self._stairs)
        self._scale = max(0.0, float(table.whole_ms[0]) - self._least) / total if total else 0.0
        self.terms: list[tuple[int, ...]] = [(), *((one.group,) for one in self._stairs)]

    def parts(self, widths: Floats) -> Floats:
        least = np.full(widths.shape[:-1], self._least)
        return np.stack([least, *(self._scale * stairs(widths) for stairs in self._stairs)], axis=-1)

    def parts_of(self, nodes: Mapping[str, float]) -> Floats:
        return np.full(len(self.terms), np.nan)


def held_out_accuracy(table: LatencyTable) -> Accuracy | None:
    """How well the rest of the table predicts the whole models that were held out; None where there are none."""
    held_out = [sample for sample in table.samples if sample.held_out]
    if not held_out:
        return None
    predicted = LatencyModel(table.fitted())([sample.widths for sample in held_out])
    return accuracy(predicted, np.array([sample.whole.median_ms for sample in held_out]))


def accuracy(predicted: Floats, measured: Floats) -> Accuracy:
    """Relative errors of predictions."""
    errors = np.abs(predicted / np.maximum(measured, 1e-12) - 1)
    return Accuracy(float(np.median(errors)), float(errors.mean()), float(errors.max()), int(errors.size))


def additivity(table: LatencyTable) -> Accuracy | None:
    """How far the sums of the measured layers are from the measured whole models; None where layers were not timed alone."""
    sums = np.array([sum(sample.nodes.values()) for sample in table.samples])
    return accuracy(sums, table.whole_ms) if sums.any() else None
