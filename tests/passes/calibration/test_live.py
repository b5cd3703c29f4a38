"""Tensors of a graph that runs node by node: loaded for as long as they are read, and found again once they were changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from graphprune.ir.weights import Weights
from graphprune.passes.calibration.live import Filed, LiveTensors


class Net(nn.Module):
    """A layer, a parameter that is handed on, and another one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2, bias=False)
        self.gain, self.shift = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        gain = self.gain
        out: Tensor = self.layer(x) * gain + self.shift
        return out


@pytest.fixture
def graph() -> fx.GraphModule:
    """Without values, but for the other parameter; the layer has two names."""
    with torch.device("meta"):
        graph = fx.symbolic_trace(Net())
    graph.add_module("again", graph.get_submodule("layer"))
    graph.shift = nn.Parameter(torch.full((2,), 3.0))
    return graph


def nodes(graph: fx.GraphModule) -> dict[str, fx.Node]:
    return {node.name: node for node in graph.graph.nodes}


def load(asked: list[str]) -> Callable[[str], Tensor]:
    def loading(name: str) -> Tensor:
        asked.append(name)
        return torch.full((2, 2) if "weight" in name else (2,), 2.0)

    return loading


def test_a_tensor_is_there_while_it_is_read(graph: fx.GraphModule) -> None:
    asked: list[str] = []
    live, found = LiveTensors(graph, Weights(graph, load(asked))), nodes(graph)
    with live.during(found["layer"]):
        assert live["layer.weight"] is live["again.weight"] is graph.get_parameter("layer.weight")
        assert asked == ["layer.weight"]
    assert graph.get_parameter("layer.weight").is_meta
    assert live["layer.weight"].tolist() == [[2, 2], [2, 2]] and len(asked) == 2, "loaded anew for who asks"


def test_what_a_node_hands_on_is_there_until_its_last_reader_has_run(graph: fx.GraphModule) -> None:
    live, found = LiveTensors(graph, Weights(graph, load([]))), nodes(graph)
    with live.during(found["gain"]):
        gain = graph.gain
    assert live["gain"] is gain
    with live.during(found["mul"]):
        assert live["gain"] is gain
    assert live["gain"] is not gain


def test_a_tensor_with_a_value_is_the_modules_own(graph: fx.GraphModule) -> None:
    assert LiveTensors(graph, Weights(graph, load([])))["shift"] is graph.shift
    with torch.device("cpu"):
        whole = fx.symbolic_trace(Net())
    live = LiveTensors(whole, None)
    live.keep("layer.weight", live["layer.weight"])
    assert live["layer.weight"] is whole.get_parameter("layer.weight")


def test_what_is_kept_is_loaded_from_then_on_under_each_name(graph: fx.GraphModule) -> None:
    written = Filed()
    base = Weights(graph, load([]))
    weights = base.changed(graph, written)
    live = LiveTensors(graph, weights, written)
    live.keep("layer.weight", live["layer.weight"].detach() + 1)
    live.keep("gain", live["gain"].detach() + 2)
    live.keep("gain", live["gain"].detach() + 2)
    assert weights["again.weight"].tolist() == [[3, 3], [3, 3]] and weights["gain"].tolist() == [6, 6]
    assert base["gain"].tolist() == [2, 2]
    with live.during(nodes(graph)["layer"]):
        assert graph.get_parameter("layer.weight").tolist() == [[3, 3], [3, 3]]


def test_what_is_loaded_to_be_changed_is_nobody_elses() -> None:
    model = nn.Linear(2, 2)
    weights = Weights(model, lambda name: dict(model.named_parameters())[name].detach())
    weights.changed(model, {})["bias"].detach().add_(1)
    assert torch.equal(weights["bias"], model.bias)


def test_tensors_in_files_are_a_table_of_copies() -> None:
    filed, tensor = Filed(), torch.arange(6.0).view(2, 3)[:, 1:]
    filed["a"] = filed["b"] = tensor
    tensor.zero_()
    filed["c"] = torch.tensor(1.5, dtype=torch.bfloat16)
    filed["c"] = torch.tensor([2.5], dtype=torch.bfloat16)
    assert list(filed) == ["a", "b", "c"] and len(filed) == 3 and filed["a"].tolist() == [[1, 2], [4, 5]]
    assert filed["c"].dtype == torch.bfloat16 and filed["c"].tolist() == [2.5]
    with pytest.raises(KeyError):
        filed["d"]
