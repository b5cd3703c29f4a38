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
    axes = _axes(axes, 1 + 0.22 * max(3, len(widths)))
    before, after = ([pair[index] for pair in widths.values()] for index in (0, 1))
    axes.barh(list(widths), before, color="0.8", label="original")
    axes.barh(list(widths), after, color="C0", label="slim")
    axes.invert_yaxis()
    axes.set(xlabel="units")
    axes.tick_params(axis="y", labelsize=7)
    axes.legend(loc="best", fontsize=8)
    return axes.figure


def plot_curves(curves: Mapping[str, Mapping[float, float]], baseline: float, axes: Any = None) -> Any:
    """A measure over the share of a group's units that is removed, a curve for each group; they start at the baseline.

    axes: matplotlib's, to draw on; those of a new figure by default. Returns the figure. Raises UsageError as above.
    """
    axes = _axes(axes, 4.5)
    axes.axhline(baseline, color="0.7", linewidth=1)
    for group, curve in curves.items():
        ratios = sorted(curve)
        axes.plot([0.0, *ratios], [baseline, *(curve[ratio] for ratio in ratios)], marker=".", label=group)
    axes.set(xlabel="share of the group's units removed", ylabel="measure")
    if 0 < len(curves) <= 20:
        axes.legend(loc="best", fontsize=6)
    return axes.figure


def _axes(axes: Any, height: float) -> Any:
    """The axes that are given, or those of a new figure of this height in inches."""
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        raise UsageError('plot() needs matplotlib. Install it with: pip install "graphprune[plot]".') from error
    return pyplot.subplots(figsize=(7, height), layout="constrained")[1] if axes is None else axes
