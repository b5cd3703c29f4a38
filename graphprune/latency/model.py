"""Latency as a function of the group widths, from a measured table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from graphprune.errors import LatencyError
from graphprune.groups import Ints
from graphprune.latency.fit import Floats, LayerTime, RisingTime, fit_layer
from graphprune.latency.staircase import stairs
from graphprune.latency.table import LatencyTable, Length, NodeInfo

_LEAST_SPREAD: Final = 0.02  # samples count by their relative spread, but none for more than this one

Part = Callable[[Floats], Floats]


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
        build = _layer_parts if table.settings.mode == "layers" else _group_parts
        found = build(table)
        self.terms: Sequence[tuple[int, ...]] = tuple(found)
        self._parts = [found[term] for term in self.terms]

    def parts(self, widths: npt.ArrayLike) -> Floats:
        """Milliseconds of every term for widths of shape (..., groups); shape (..., terms)."""
        given = np.asarray(widths, dtype=np.float64)
        return np.stack([part(given) for part in self._parts], axis=-1)

    def __call__(self, widths: npt.ArrayLike) -> Floats:
        """Milliseconds for widths of shape (..., groups)."""
        result: Floats = self.parts(widths).sum(axis=-1)
        return result

    def steps(self, group: int) -> Ints:
        """The widths of a group at which its staircase steps, for ``round_to=auto``; all of them where it is a ramp."""
        return stairs(self, self.table.full, group)


def _layer_parts(table: LatencyTable) -> dict[tuple[int, ...], Part]:
    layers = fit_families(table)
    predicted = sum((layers[name](table.widths) for name in table.nodes), np.zeros(len(table.samples)))
    spreads = np.array([sample.whole.spread for sample in table.samples])
    offset, scale = _affine(predicted, table.whole_ms, 1 / (_LEAST_SPREAD + spreads))
    members: dict[tuple[int, ...], list[NodeTime]] = {(): []}
    for name in table.nodes:
        members.setdefault(layers[name].groups, []).append(layers[name])
    return {term: _Sum(tuple(nodes), scale, 0.0 if term else offset) for term, nodes in members.items()}


def _affine(predicted: Floats, measured: Floats, weights: Floats) -> tuple[float, float]:
    """What is outside of the layers, and the factor on their sum: the least relative error with neither negative."""
    basis = np.stack([np.ones_like(predicted), predicted], axis=-1) / measured[:, None]
    from scipy.optimize import nnls  # not before it is needed: it takes long to import

    (offset, scale), _ = nnls(basis * weights[:, None], weights)
    return float(offset), float(scale)


@dataclass(frozen=True)
class NodeTime:
    """A node's time: its family's, at the node's lengths. groups: indices of those that it depends on."""

    time: LayerTime | RisingTime
    lengths: tuple[Length, ...]
    groups: tuple[int, ...]

    def __call__(self, widths: npt.ArrayLike) -> Floats:
        """Milliseconds for widths of shape (..., groups)."""
        return self.time(lengths_at(self.lengths, np.asarray(widths, dtype=np.float64)))


@dataclass(frozen=True)
class _Sum:
    nodes: tuple[NodeTime, ...]
    scale: float
    offset: float

    def __call__(self, widths: Floats) -> Floats:
        result = np.full(widths.shape[:-1], self.offset)
        for node in self.nodes:
            result += self.scale * node(widths)
        return result


def lengths_at(lengths: Sequence[Length], widths: Floats) -> Floats:
    """Lengths for widths of shape (..., groups); shape (..., number of lengths)."""
    found = np.empty((*widths.shape[:-1], len(lengths)))
    for place, length in enumerate(lengths):
        found[..., place] = length.constant
        for group, coefficient in length.by_group.items():
            found[..., place] += coefficient * widths[..., group]
    return found


def groups_of(info: NodeInfo) -> tuple[int, ...]:
    """Indices of the groups that a node's time depends on, ascending."""
    return tuple(sorted({group for length in info.lengths for group in length.by_group}))


def fit_families(table: LatencyTable) -> dict[str, NodeTime]:
    """The time of each node, fitted to the measurements of all nodes of its family."""
    families: dict[tuple[str, int], list[str]] = {}
    for name, info in table.nodes.items():
        families.setdefault((info.family, len(info.lengths)), []).append(name)
    widths = table.widths.astype(np.float64)
    found = {}
    for names in families.values():
        rows = np.concatenate([lengths_at(table.nodes[name].lengths, widths) for name in names])
        # A node that the rewriter drops at some widths takes no time there.
        ms = np.array([sample.nodes.get(name, 0.0) for name in names for sample in table.samples])
        time = fit_layer(rows, ms)
        found.update({name: NodeTime(time, table.nodes[name].lengths, groups_of(table.nodes[name])) for name in names})
    return found


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


def _group_parts(table: LatencyTable) -> dict[tuple[int, ...], Part]:
    stairs = staircases(table)
    least = float(table.whole_ms[1])
    total = sum(float(one.ms[-1]) for one in stairs)
    scale = max(0.0, float(table.whole_ms[0]) - least) / total if total else 0.0
    parts: dict[tuple[int, ...], Part] = {(): _Sum((), scale, least)}
    return parts | {(one.group,): _Scaled(one, scale) for one in stairs}


@dataclass(frozen=True)
class _Scaled:
    stairs: Staircase
    scale: float

    def __call__(self, widths: Floats) -> Floats:
        return self.scale * self.stairs(widths)


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
