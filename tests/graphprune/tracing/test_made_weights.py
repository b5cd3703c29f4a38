"""Weights that a forward makes and sets as attributes of a layer: weight drop, old weight norm; and what is said of parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphprune
from tests.checking import run
from tests.graphprune.tracing.forwards import check, double
from tests.zoo.case import net, ready

X, Y = double(2, 5, 4), double(3, 7, 4)

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")


class WeightDrop(nn.Module):
    """A layer, with a weight that is made anew in each call. in_list: it is put where the layer reads it, too, as fastai does."""

    def __init__(self, layer: nn.Module, name: str, in_list: bool) -> None:
        super().__init__()
        self.layer, self.name, self.in_list = layer, name, in_list
        raw = layer._parameters.pop(name)
        assert raw is not None
        self.raw = nn.Parameter(raw.data)
        if in_list:
            setattr(layer, name, raw.clone())
        layer.flatten_parameters = lambda *_: None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Any:
        weight = F.dropout(self.raw, 0.5, self.training)
        if self.in_list:
            weight = weight.clone()
            layer: Any = self.layer
            layer._flat_weights[layer._flat_weights_names.index(self.name)] = weight
        setattr(self.layer, self.name, weight)
        return self.layer(x)[0]


@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize("in_list", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_weight_drop(kind: Any, in_list: bool, ran: bool) -> None:
    """What has run once has a parameter in the weight's place, which it is set to in every call."""
    drop = WeightDrop(kind(6, 8, batch_first=True), "weight_hh_l0", in_list)
    model = net(lambda self, x: self.b(self.r(self.a(x))), a=nn.Linear(4, 6), r=drop, b=nn.Linear(8, 2))
    if ran:
        run(model, X)
    result = graphprune.prune(model, X, target="channels=50%", ranking="local")
    assert not result.report.scopes and len(result.report.widths) == 2
    assert graphprune.verify(model, result.model, result.plan, Y).check().error < 1e-10
    captured = graphprune.capture(model, X).module
    assert torch.equal(captured(Y), run(model, Y))


def test_weight_norm_by_hooks_on_a_recurrent_layer() -> None:
    layer: Any = nn.LSTM(6, 8, batch_first=True)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        layer = nn.utils.weight_norm(layer, name)
    check(net(lambda self, x: self.b(self.r(self.a(x))[0]), a=nn.Linear(4, 6), r=layer, b=nn.Linear(8, 2)), X, Y, groups=2)


def test_a_forward_can_ask_whether_something_is_a_parameter() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.a(x)
        h = h * self.scale if isinstance(self.scale, nn.Parameter) else h
        return self.b(h * self.mean if isinstance(self.mean, nn.Parameter) else h)  # type: ignore[no-any-return]

    model = ready(net(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 2), scale=nn.Parameter(torch.ones(6)), mean=torch.ones(6)))
    program = graphprune.capture(model, X)
    assert [node.name for node in program.module.graph.nodes if "scale" in node.name or "mean" in node.name] == ["scale"]
    check(model, X, Y)
