"""Training for quantisation: what it touches stays."""

from __future__ import annotations

from typing import Any

import torch

from tests.passes.analysis.rules.observing import observe


def test_ranges_are_of_all_channels() -> None:
    def observed(t: Any, on: Any, low: Any, high: Any, scale: Any, zero: Any) -> Any:
        return torch.fused_moving_avg_obs_fake_quant(t, on, on, low, high, scale, zero, 0.01, -128, 127, 0)

    on, zero = torch.ones(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int32)
    low, high, scale = torch.full((1,), -1.0), torch.ones(1), torch.ones(1)
    seen = observe(observed, t=torch.randn(4, 3), on=on, low=low, high=high, scale=scale, zero=zero)
    assert seen.frozen >= {*seen.atoms("t", 0), *seen.atoms("t", 1)} and seen.result_atoms(0) is None
