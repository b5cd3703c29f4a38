"""The time of a layer as a function of its lengths, fitted to measurements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

#: Lengths are rounded up to a multiple of one of these: devices work in blocks.
GRANULARITIES: Final = (1, 2, 4, 8, 16, 32)
_FOLDS: Final = 4
_GAIN: Final = 0.9  # a granularity must leave at most this share of the error that none leaves
_HUBER: Final = 2.0  # times the median error: errors above it count less
_REWEIGHTINGS: Final = 5
_EXACT: Final = 1e-6  # relative errors below it are none: a fit that is exact has no usual error to compare with
_RELATIVE: Final = 0.05  # errors count relative to the time, and to this share of the longest


@dataclass(frozen=True)
class LayerTime:
    """Milliseconds of a layer: ``c0 + c1 a + c2 b + c3 a b`` with a and b rounded up to their granularities.

    No coefficient is negative, so that a narrower layer never costs more than a wider one.
    """

    coefficients: tuple[float, ...]
    granularities: tuple[int, ...]

    def __call__(self, lengths: npt.ArrayLike) -> Floats:
        """Milliseconds for lengths of shape (..., number of lengths)."""
        result: Floats = _basis(np.asarray(lengths, dtype=np.float64), self.granularities) @ np.array(self.coefficients)
        return result


@dataclass(frozen=True)
class RisingTime:
    """Milliseconds of a layer with one length as the rising curve through its measurements: for cliffs, as where a cache or
    an allocator's limit is passed. lengths: ascending. ms: at these; between them it is interpolated."""

    lengths: tuple[float, ...]
    ms: tuple[float, ...]

    def __call__(self, lengths: npt.ArrayLike) -> Floats:
        """Milliseconds for lengths of shape (..., 1)."""
        result: Floats = np.interp(np.asarray(lengths, dtype=np.float64)[..., 0], self.lengths, self.ms)
        return result


def fit_layer(lengths: npt.ArrayLike, ms: npt.ArrayLike) -> LayerTime | RisingTime:
    """The best function for measured times.

    lengths: (measurements, at most 2). A granularity, or a rising curve, is taken where it predicts measurements that were
    left out better.
    """
    rows = np.asarray(lengths, dtype=np.float64)
    times = np.asarray(ms, dtype=np.float64)
    count = rows.shape[1]
    weights = 1 / (times + _RELATIVE * max(float(times.max(initial=0.0)), 1e-9))
    plain = (1,) * count
    best, chosen = _GAIN * _left_out_error(rows, times, weights, plain), plain
    for candidate in product(GRANULARITIES, repeat=count):
        error = _left_out_error(rows, times, weights, candidate) if candidate != plain else np.inf
        if error < best:
            best, chosen = error, candidate
    if count == 1 and len(times) >= 2 * _FOLDS:
        curve_error = _cross_validated(lambda used: _rising(rows[used], times[used], weights[used]), rows, times, weights)
        if curve_error < (best if chosen == plain else _GAIN * best):  # best has its share off while nothing was chosen
            return _rising(rows, times, weights)
    return LayerTime(tuple(_robust(_basis(rows, chosen), times, weights).tolist()), chosen)


def _basis(lengths: Floats, granularities: Sequence[int]) -> Floats:
    steps = np.array(granularities, dtype=np.float64)
    rounded = np.ceil(lengths / steps) * steps if steps.size else lengths
    ones = np.ones((*lengths.shape[:-1], 1))
    products = [rounded.prod(axis=-1, keepdims=True)] if steps.size > 1 else []
    return np.concatenate([ones, rounded, *products], axis=-1)


def _solve(basis: Floats, times: Floats, weights: Floats) -> Floats:
    scale = np.maximum(basis.max(axis=0, initial=0.0), 1e-12)
    from scipy.optimize import nnls  # not before it is needed: it takes long to import

    solution, _ = nnls(basis / scale * weights[:, None], times * weights)
    found: Floats = solution / scale
    return found


def _robust(basis: Floats, times: Floats, weights: Floats) -> Floats:
    """As :func:`_solve`; what lies far off counts less (Huber's weights): a machine that is busy makes some times long."""
    found = _solve(basis, times, weights)
    for _ in range(_REWEIGHTINGS):
        errors = np.abs(basis @ found - times) * weights
        usual = max(_HUBER * float(np.median(errors)), _EXACT)
        found = _solve(basis, times, weights * np.sqrt(usual / np.maximum(errors, usual)))
    return found


def _left_out_error(rows: Floats, times: Floats, weights: Floats, granularities: tuple[int, ...]) -> float:
    """Weighted squared error of predictions for measurements that took no part in the fit."""
    basis = _basis(rows, granularities)
    if len(times) < 2 * _FOLDS:
        return float("inf") if any(step > 1 for step in granularities) else 0.0

    def fitted(used: Bools) -> LayerTime:
        return LayerTime(tuple(_solve(basis[used], times[used], weights[used]).tolist()), granularities)

    return _cross_validated(fitted, rows, times, weights)


def _cross_validated(fitted: Callable[[Bools], Callable[[Floats], Floats]], rows: Floats, times: Floats, weights: Floats) -> float:
    fold = np.arange(len(times)) % _FOLDS
    error = 0.0
    for left_out in range(_FOLDS):
        used = fold != left_out
        error += float((((fitted(used)(rows[~used]) - times[~used]) * weights[~used]) ** 2).sum())
    return error


def _rising(rows: Floats, times: Floats, weights: Floats) -> RisingTime:
    """The nearest rising curve: of several times at one length the median, then isotonic regression."""
    at, place, count = np.unique(rows[:, 0], return_inverse=True, return_counts=True)
    middle = np.array([np.median(times[place == index]) for index in range(at.size)])
    weight = count * np.array([weights[place == index].mean() for index in range(at.size)]) ** 2
    from scipy.optimize import isotonic_regression

    return RisingTime(tuple(at.tolist()), tuple(isotonic_regression(middle, weights=weight).x.tolist()))
