"""LSTMs with projections: torch takes states of equal widths for an LSTM without any."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from graphprune.channels.groups import Kept
from tests.checking import analyse, check_plan


class Net(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.lstm = nn.LSTM(7, 6, proj_size=4, batch_first=True, **options)
        self.head, self.cell = nn.Linear(4 * (1 + self.lstm.bidirectional), 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        y, (_, cell) = self.lstm(x)
        return self.head(y) + self.cell(cell[-1]).unsqueeze(1)


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("widths", [(2, 2), (4, 4), (1, 1), (3, 2), (2, 3)], ids=str)
def test_any_two_widths(options: dict[str, Any], widths: tuple[int, int], exported: bool) -> None:
    """Projection and cell, equal or not, and pruned twice more; of an exported program, too, at the sizes of its example."""
    torch.manual_seed(0)
    x, other = torch.randn(2, 3, 7).double(), torch.randn(3, 5, 7).double()
    model: Any = Net(**options).double().eval()
    if exported:
        model, other = torch.export.export(model, (x,)).module(check_guards=False), x.neg()
    found = analyse(model, x)
    projection, cell = found.groups.prunable
    assert (projection.size, cell.size) == (4, 6)
    kept = np.ones(found.groups.unit_count, dtype=bool)
    kept[projection.units[widths[0] :]] = False
    kept[cell.units[: 6 - widths[1]]] = False
    # Equal widths are padded, which takes memory that the original does not.
    slim = check_plan(found, found.plan(Kept(found.groups, kept)), other=other, macs=False, memory=False)
    assert slim.get_parameter("lstm.weight_hr_l0").shape == widths
    assert ("pad" in slim.code) == (widths[0] == widths[1])
