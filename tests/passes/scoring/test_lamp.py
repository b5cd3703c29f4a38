"""``lamp``: the squared norm of a unit over those of its group that are not smaller."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from graphprune.channels.groups import Groups
from graphprune.passes.scoring.lamp import lamp_normalised
from tests.checking import analyse
from tests.passes.scoring.scored import chain, images, scored


def members(model: object, channel: int) -> list[Tensor]:
    """All slices of a channel of group ``a`` of a chain."""
    found = [model.a.weight[channel], model.a.bias[channel], model.norm.weight[channel]]  # type: ignore[attr-defined]
    return [*found, model.norm.bias[channel], model.b.weight[:, channel]]  # type: ignore[attr-defined]


def test_by_hand() -> None:
    model: Any = chain()
    squares = [sum(float(part.detach().square().sum()) for part in members(model, channel)) for channel in range(5)]
    wanted = [own / sum(other for other in squares if other >= own) for own in squares]
    found = scored(model, images(2), "lamp")["a"]
    assert found == pytest.approx(wanted, rel=1e-12)
    assert sorted(found)[-1] == 1.0 and sorted(found)[-2] < 1.0, "exactly one unit has 1"
    assert scored(model, images(2), "lamp", normalise="max")["a"] == pytest.approx(found, rel=1e-15)


def test_all_of_a_group_may_be_rescaled_but_not_one_unit() -> None:
    model: Any = chain()
    before = scored(model, images(2), "lamp")
    with torch.no_grad():
        for tensor in (model.a.weight, model.a.bias, model.norm.weight, model.norm.bias, model.b.weight):
            tensor.mul_(3.0)
    assert scored(model, images(2), "lamp")["a"] == pytest.approx(before["a"], rel=1e-12)
    with torch.no_grad():
        model.a.weight[0] *= 3.0
    assert not np.allclose(scored(model, images(2), "lamp")["a"], before["a"])


def groups() -> Groups:
    return analyse(chain(), images(2)).groups


def test_equal_units_have_one_over_their_rank() -> None:
    """And the first of them goes first, as in the ranking."""
    found = groups()
    values = lamp_normalised(np.ones(found.unit_count), found)
    for group in found.prunable:
        assert values[group.units] == pytest.approx(1 / np.arange(group.size, 0, -1))


def test_zeros_and_units_without_a_value() -> None:
    found = groups()
    values = np.full(found.unit_count, np.nan)
    first, second = found.prunable
    values[first.units] = 0.0
    values[second.units[:3]] = [0.0, 1.0, 3.0]
    result = lamp_normalised(values, found)
    assert (result[first.units] == 0).all()
    assert result[second.units[:3]] == pytest.approx([0.0, 0.25, 1.0]) and np.isnan(result[second.units[3:]]).all()
