"""A model of the latency, put right by slim models that were timed.

Each term of the model is taken to be off by a factor of its own, all of them normal around a factor that they share, which is
normal around 1. The measurements then say which factors are the likeliest, in closed form: a linear regression with that prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from graphprune.channels.groups import Ints
from graphprune.costs.measures import Measure
from graphprune.latency.fit import Floats
from graphprune.latency.staircase import stairs

_SHARED: Final = 0.1  # standard deviations before anything is measured: of the factor that all terms share ...
_OWN: Final = 0.2  # ... and of each term's around it
_DRIFT: Final = 0.1  # what is known at another latency is off by this share of the (logarithmic) distance
_STEADY: Final = 0.003  # relative errors of whole models that no clock is below
_LAYER: Final = 0.05  # relative error of a term's time ...
_LAYER_LEAST: Final = 0.001  # ... and the share of the whole model's time that it is at least
_LEAST: Final = 0.05  # factors are never below: no layer becomes free


@dataclass(frozen=True)
class Seen:
    """A slim model that was timed.

    widths: of every group. ms: of the whole model. error: its relative standard error. parts: milliseconds of the model's terms,
    NaN where they are not known.
    """

    widths: Ints
    ms: float
    error: float
    parts: Floats


class Corrected:
    """A model of the latency with a factor on each of its terms. full: widths of the whole model."""

    rows = None

    def __init__(self, model: Measure, factors: Floats, full: Ints) -> None:
        self.name, self.unit, self.terms = model.name, model.unit, model.terms
        self.factors = factors
        self._model = model
        self._full = full

    def parts(self, widths: npt.ArrayLike) -> Floats:
        """Milliseconds of every term for widths of shape (..., groups); shape (..., terms)."""
        return self._model.parts(widths) * self.factors

    def __call__(self, widths: npt.ArrayLike) -> Floats:
        """Milliseconds for widths of shape (..., groups)."""
        result: Floats = self._model.parts(widths) @ self.factors
        return result

    def steps(self, group: int) -> Ints:
        """Those of the model itself: which widths a group may have does not change with what is measured."""
        return stairs(self._model, self._full, group)


def corrected(model: Measure, seen: Sequence[Seen], full: Ints, near: float) -> Corrected:
    """The model with the factors that are the likeliest after what was seen.

    near: the milliseconds around which it is to be right; what was seen further off counts less. Without anything seen the
    factors are 1.
    """
    count = len(model.terms)
    rows, errors, given = [np.zeros((0, count))], [np.zeros(0)], [np.zeros(0)]
    for one in seen:
        parts = model.parts(one.widths)
        drift = _DRIFT * abs(np.log(one.ms / near))
        known = np.flatnonzero(np.isfinite(one.parts) & (parts > 0))
        layer = np.hypot(_LAYER * parts[known] + _LAYER_LEAST * one.ms, drift * parts[known])
        rows += [parts[None], np.diag(parts)[known]]
        errors += [np.array([one.ms * np.hypot(max(one.error, _STEADY), drift)]), layer]
        given += [np.array([one.ms]), one.parts[known]]
    basis = np.concatenate(rows) / np.concatenate(errors)[:, None]
    rest = np.concatenate(given) / np.concatenate(errors) - basis.sum(axis=1)
    prior = _SHARED**2 + _OWN**2 * np.eye(count)
    weights = np.linalg.solve(basis @ prior @ basis.T + np.eye(rest.size), rest)
    return Corrected(model, np.maximum(_LEAST, 1 + prior @ basis.T @ weights), full)
