"""How far each of several cuts goes on the way to a target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: By name, the power of what is left to do.
SCHEDULES: Final[Mapping[str, int]] = {"cubic": 3, "linear": 1}


def share_done(cut: int, cuts: int, schedule: str) -> float:
    """The share of the way that is done after a cut, of which the last one is number ``cuts``.

    ``1 - (1 - cut/cuts)^3`` for ``cubic`` (automated gradual pruning, Zhu and Gupta 2017, arXiv 1710.01878, eq. 1), ``cut/cuts``
    for ``linear``.

    >>> share_done(1, 2, "cubic"), share_done(1, 2, "linear")
    (0.875, 0.5)
    """
    return float(1 - (1 - cut / cuts) ** SCHEDULES[schedule])
