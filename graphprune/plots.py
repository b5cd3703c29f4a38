"""Figures of results, by matplotlib, which is imported when one is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphprune.errors import UsageError


def plot_widths(widths: Mapping[str, tuple[int, int]], axes: Any = None) -> Any:
    """Bars of the units of every group, what stays in front of what was there.

    widths: units before and after, by group. axes: matplotlib's, to draw on; those of a new figure by default.
    Returns the figure. Raises UsageError where matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        raise UsageError('plot() needs matplotlib. Install it with: pip install "graphprune[plot]".') from error
    if axes is None:
        _, axes = pyplot.subplots(figsize=(7, 1 + 0.22 * max(3, len(widths))), layout="constrained")
    before, after = ([pair[index] for pair in widths.values()] for index in (0, 1))
    axes.barh(list(widths), before, color="0.8", label="original")
    axes.barh(list(widths), after, color="C0", label="slim")
    axes.invert_yaxis()
    axes.set(xlabel="units")
    axes.tick_params(axis="y", labelsize=7)
    axes.legend(loc="best", fontsize=8)
    return axes.figure
