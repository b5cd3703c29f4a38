"""``sp-lamp``: norms of filters times norms of the channels that read them, relative to those that are not smaller."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.passes.scoring.scored import Floats, chain, images, kill, residual, scored
from tests.zoo.case import conv, net


def lamp(values: Any) -> list[float]:
    return [own / sum(other for other in values.tolist() if other >= own) for own in values.tolist()]


def squares(weight: Tensor, axis: int) -> Floats:
    found = [float(weight.select(axis, index).detach().square().sum()) for index in range(weight.shape[axis])]
    return np.array(found)


def test_a_chain_by_hand() -> None:
    """Eq. 2 of the paper: no biases and no norms have a part in it."""
    model: Any = chain()
    found = scored(model, images(2), "sp-lamp")
    assert found["a"] == pytest.approx(lamp(squares(model.a.weight, 0) * squares(model.b.weight, 1)), rel=1e-12)
    assert found["b"] == pytest.approx(lamp(squares(model.b.weight, 0) * squares(model.head.weight, 1)), rel=1e-12)
    assert scored(model, images(2), "sp-lamp", normalise="max")["a"] == pytest.approx(found["a"], rel=1e-15)
    assert sorted(found["a"])[-1] == 1.0 and sorted(found["a"])[-2] < 1.0, "exactly one unit has 1"


def test_coupled_layers_by_hand() -> None:
    """Producers are concatenated, and consumers; with ``member_norm`` each layer weighs the same."""
    model: Any = residual()
    made, read = [model.a.weight, model.b.weight], [model.b.weight, model.head.weight]
    wanted = lamp(sum(squares(w, 0) for w in made) * sum(squares(w, 1) for w in read))
    assert scored(model, images(2), "sp-lamp")["a"] == pytest.approx(wanted, rel=1e-12)
    alike = [[squares(w, axis) / squares(w, axis).sum() for w in side] for axis, side in enumerate((made, read))]
    assert scored(model, images(2), "sp-lamp(member_norm=true)")["a"] == pytest.approx(
        lamp(sum(alike[0]) * sum(alike[1])), rel=1e-12
    )
    each = np.mean([lamp(squares(w, axis)) for axis, side in enumerate((made, read)) for w in side], axis=0)
    assert scored(model, images(2), "sp-lamp(aggregation=members)")["a"] == pytest.approx(each, rel=1e-12)


def test_batch_norms_that_follow_are_folded_on_request() -> None:
    model: Any = chain()
    factor = (model.norm.weight.abs() / (model.norm.running_var + model.norm.eps).sqrt()).detach()
    folded = squares(model.a.weight * factor[:, None, None, None], 0) * squares(model.b.weight, 1)
    found = scored(model, images(2), "sp-lamp(bn_fold=true)")["a"]
    assert found == pytest.approx(lamp(folded), rel=1e-12)
    assert not np.allclose(found, scored(model, images(2), "sp-lamp")["a"])


def test_a_norm_behind_an_activation_is_not_folded() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        return self.b(self.norm(F.relu(self.a(x))))

    model: Any = net(forward, a=conv(3, 5), norm=nn.BatchNorm2d(5), b=conv(5, 2))
    assert (scored(model, images(2), "sp-lamp(bn_fold=true)")["a"] == scored(model, images(2), "sp-lamp")["a"]).all()


def test_rescaling_a_layer_changes_nothing_and_rescaling_a_filter_does() -> None:
    model: Any = chain()
    before = scored(model, images(2), "sp-lamp")["a"]
    with torch.no_grad():
        model.a.weight *= 7.0
        model.b.weight /= 3.0
        model.norm.weight *= 100.0
    assert scored(model, images(2), "sp-lamp")["a"] == pytest.approx(before, rel=1e-12)
    with torch.no_grad():
        model.a.weight[1] *= 2.0
    assert not np.allclose(scored(model, images(2), "sp-lamp")["a"], before)


def test_a_channel_that_nothing_reads_goes_first_although_its_filter_is_large() -> None:
    model = kill(chain(), 3)
    with torch.no_grad():
        model.a.weight[3] = 100.0
    assert scored(model, images(2), "sp-lamp")["a"].argmin() == 3
    assert scored(model, images(2), "l2")["a"].argmax() == 3


def test_equal_filters_have_one_over_their_rank() -> None:
    model: Any = chain()
    with torch.no_grad():
        model.a.weight.fill_(1.0)
        model.b.weight.fill_(1.0)
    assert scored(model, images(2), "sp-lamp")["a"] == pytest.approx(1 / np.arange(5, 0, -1))
