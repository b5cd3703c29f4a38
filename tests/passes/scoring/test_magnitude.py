"""Powers of weights, summed by blocks where a layer is large."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.passes.scoring.scored import scored


@pytest.mark.parametrize(("criterion", "power"), [("l1", 1), ("l2", 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_layer_scores_as_the_formula_says(criterion: str, power: int, dtype: torch.dtype) -> None:
    """Of layers with 4 and 1.5 million weights: sums along both axes, also where the last block is a smaller one."""
    model = nn.Sequential(nn.Linear(4100, 1030), nn.ReLU(), nn.Linear(1030, 1500, bias=False)).to(dtype)
    found = scored(model, torch.zeros(1, 4100, dtype=dtype), criterion, reduction="sum")["0"]
    first, bias, second = (weight.detach().double().abs() ** power for weight in model.parameters())
    expected = torch.stack([values ** (1 / power) for values in (first.sum(1), bias, second.sum(0))]).sum(0)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)
