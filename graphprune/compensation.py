"""What a compensation did: for every consumer of removed channels, how far its output was off, before and after."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Compensated:
    """One consumer.

    node: the graph node. weight: its parameter. removed: whether it lost inputs itself; otherwise it makes up for layers before
    it. before, after: root of the squared error of its output, relative to the output's deviation from its mean, on calibration
    rows; NaN where that was not measured. rows: their number. intercept: the tensor that took the constant part, or "".
    note: why its weights were left as they are, or "".
    """

    node: str
    weight: str
    removed: bool
    before: float
    after: float
    rows: int = 0
    intercept: str = ""
    note: str = ""
