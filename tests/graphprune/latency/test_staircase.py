"""Where staircases step, and which widths are worth having."""

from __future__ import annotations

import numpy as np
import pytest

from graphprune.latency.staircase import curve, edges, stairs
from tests.passes.selection.asking import Planted


def planted(block: int, size: int = 40, base: float = 5.0) -> Planted:
    """Two groups: one works in blocks, the other is a ramp."""
    widths = np.arange(size + 1)
    return Planted((base + np.ceil(widths / block), 0.01 * widths.astype(np.float64)), name="latency")


@pytest.mark.parametrize("block", [4, 8, 16])
def test_the_widest_width_of_each_stair_is_found(block: int) -> None:
    full = np.array([40, 40])
    wanted = list(range(block, 40, block))
    assert edges(curve(planted(block), full, 0, np.arange(1, 41))).tolist() == wanted
    assert stairs(planted(block), full, 0).tolist() == [*wanted, 40]


def test_on_a_ramp_and_where_nothing_changes_every_width_is_one() -> None:
    full = np.array([40, 40])
    assert stairs(planted(8), full, 1).tolist() == list(range(1, 41))
    flat = Planted((np.full(41, 3.0), np.zeros(41)))
    assert stairs(flat, full, 0).tolist() == list(range(1, 41))


def test_a_curve_is_the_whole_model_with_the_others_at_full_width() -> None:
    model, full = planted(8), np.array([40, 40])
    assert curve(model, full, 0, np.array([1, 9])).tolist() == [float(model([1, 40])), float(model([9, 40]))]


def test_a_group_of_one_unit_has_one_width() -> None:
    assert stairs(planted(8), np.array([1, 40]), 0).tolist() == [1]
