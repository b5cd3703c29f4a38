"""The latency of a model by the width of one group, and where it steps."""

from __future__ import annotations

from typing import Final

import numpy as np

from graphprune.channels.groups import Ints
from graphprune.costs.measures import Measure
from graphprune.latency.fit import Floats

_EDGE: Final = 0.004  # a step from one width to the next rises by at least this share of the model's latency ...
_STEEP: Final = 1.5  # ... and by so many times what an even ramp would


def curve(model: Measure, full: Ints, group: int, widths: Ints) -> Floats:
    """Milliseconds of the whole model at several widths of one group, the others at full width."""
    rows = np.tile(full, (widths.size, 1))
    rows[:, group] = widths
    return model(rows)


def edges(times: Floats) -> Ints:
    """The widths after which a staircase steps up, of times at the widths 1, 2, ...; a ramp has none."""
    rises = np.diff(times)
    if not rises.size:
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(rises >= max(_EDGE * times[-1], _STEEP * rises.mean())) + 1


def stairs(model: Measure, full: Ints, group: int) -> Ints:
    """The widest width of each stair of a group, ascending: the widths worth having. On a ramp every width is one."""
    every = np.arange(1, int(full[group]) + 1)
    found = edges(curve(model, full, group, every))
    return np.append(found, full[group]) if found.size else every
