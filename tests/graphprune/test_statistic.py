"""Totals of calibration."""

from __future__ import annotations

import torch

from graphprune.statistic import Totals


def test_totals_are_their_own() -> None:
    """What was given may change later, and totals that were merged into others go on by themselves."""
    part = torch.tensor([1.0, 2.0], dtype=torch.float64)
    one, other = Totals(), Totals()
    one.add("sum", part)
    one.raise_to("most", part)
    other.merge(one)
    other.add("sum", part)
    other.raise_to("most", 3 * part)
    assert one.sums["sum"].tolist() == one.maxima["most"].tolist() == [1.0, 2.0]
    part.zero_()
    assert one.sums["sum"].tolist() == one.maxima["most"].tolist() == [1.0, 2.0]
    assert other.sums["sum"].tolist() == [2.0, 4.0] and other.maxima["most"].tolist() == [3.0, 6.0]


def test_parts_of_any_type_are_added_in_float64() -> None:
    totals = Totals()
    for part in (torch.tensor([1.0]), torch.tensor([2**24 + 1]), torch.tensor([0.5], dtype=torch.bfloat16)):
        totals.add("sum", part)
    assert totals.sums["sum"].dtype == torch.float64 and totals.sums["sum"].tolist() == [2**24 + 2.5]
