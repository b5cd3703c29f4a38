"""What collecting says of totals."""

from __future__ import annotations

import pytest
import torch

from graphprune.calibration import Calibration
from graphprune.errors import UsageError
from graphprune.passes.calibration.collect import check_finite
from graphprune.statistic import Totals


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_named(value: float) -> None:
    totals = Totals()
    totals.add(("conv", 1, "sum"), torch.tensor([1.0, value, 2.0]))
    with pytest.raises(UsageError, match=r"What was measured at conv .* is NaN or infinite"):
        check_finite(totals, Calibration([torch.zeros(1)]))


def test_finite_values_pass_whatever_their_sum() -> None:
    totals = Totals()
    totals.add(("conv", 1, "sum"), torch.full((2,), 1.7e308, dtype=torch.float64))
    check_finite(totals, Calibration([torch.zeros(1)]))
