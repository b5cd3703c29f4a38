"""Structural checks on graph modules: sound ones pass, each kind of inconsistency is found and named."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import fx, nn

from graphprune.ir.verify_graph import find_problems, graph_text
from graphprune.tracing import capture


def captured(*layers: nn.Module, shape: tuple[int, ...] = (2, 4, 8, 8)) -> fx.GraphModule:
    return capture(nn.Sequential(*layers), torch.zeros(shape)).module


SOUND = {
    "convolutions": (nn.Conv2d(4, 8, 3, groups=2), nn.ConvTranspose2d(8, 4, 3, groups=2)),
    "norms": (nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.LayerNorm((8, 8)), nn.RMSNorm(8)),
    "without optional tensors": (nn.BatchNorm2d(4, affine=False, track_running_stats=False), nn.Conv2d(4, 4, 1, bias=False)),
    "others": (nn.PReLU(4), nn.Flatten(), nn.Linear(256, 3)),
}


@pytest.mark.parametrize("layers", SOUND.values(), ids=SOUND)
def test_sound_modules_have_no_problems(layers: tuple[nn.Module, ...]) -> None:
    assert find_problems(captured(*layers)) == []


@pytest.mark.parametrize(
    ("layer", "attribute", "tensor"),
    [
        (nn.Conv2d(4, 8, 3), "out_channels", "weight"),
        (nn.Conv2d(4, 8, 3), "in_channels", "weight"),
        (nn.Conv2d(4, 8, 3), "groups", "weight"),
        (nn.ConvTranspose2d(4, 8, 3), "out_channels", "bias"),
        (nn.Linear(8, 4), "in_features", "weight"),
        (nn.BatchNorm2d(4), "num_features", "running_var"),
        (nn.GroupNorm(2, 4), "num_channels", "bias"),
        (nn.PReLU(4), "num_parameters", "weight"),
    ],
)
def test_a_stale_attribute_is_found_and_names_node_and_tensor(layer: nn.Module, attribute: str, tensor: str) -> None:
    module = captured(copy.deepcopy(layer))
    setattr(module.get_submodule("0"), attribute, 2)
    problems = find_problems(module)
    assert tensor in [problem.check for problem in problems]
    assert all(problem.place == "_0" and "calls 0" in problem.message for problem in problems)


def test_a_layer_that_the_graph_does_not_call_is_not_checked() -> None:
    module = captured(nn.ReLU())
    module.add_module("spare", nn.Linear(3, 4))
    setattr(module.get_submodule("spare"), "in_features", 7)  # noqa: B010
    assert find_problems(module) == []


def test_a_parametrised_layer_is_checked_by_the_tensors_that_it_computes() -> None:
    layers = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 8, 3)))
    graph = fx.Graph()
    graph.output(graph.call_module("0", (graph.placeholder("x"),)))
    module = fx.GraphModule(layers, graph)
    assert find_problems(module) == []
    setattr(module.get_submodule("0"), "in_channels", 2)  # noqa: B010
    assert [problem.check for problem in find_problems(module)] == ["weight"]


def test_missing_call_module_target_is_named() -> None:
    module = captured(nn.Conv2d(4, 8, 3), nn.ReLU())
    del module._modules["1"]
    assert [(problem.place, problem.check) for problem in find_problems(module)] == [("_1", "target")]
    assert "refers to 1" in find_problems(module)[0].message


@pytest.mark.filterwarnings("ignore:Attempted to insert", "ignore:Failed to fetch module")
def test_missing_get_attr_target_is_named_and_an_existing_flag_is_not() -> None:
    module = captured(nn.ReLU())
    first = next(iter(module.graph.nodes))
    with module.graph.inserting_after(first):
        module.graph.get_attr("training")
        assert find_problems(module) == []
        module.graph.get_attr("scale.weight")
    assert [(problem.place, problem.check) for problem in find_problems(module)] == [("scale_weight", "target")]


def test_calling_something_that_is_no_module_is_found() -> None:
    module = captured(nn.Conv2d(4, 8, 3), nn.ReLU())
    next(node for node in module.graph.nodes if node.op == "call_module").target = "0.weight"
    assert "is no module but Parameter" in find_problems(module)[0].message


def test_an_empty_tensor_is_found() -> None:
    module = captured(nn.ReLU())
    module.register_buffer("nothing", torch.zeros(3, 0))
    assert [(problem.place, problem.check) for problem in find_problems(module)] == [("nothing", "size")]


def test_a_node_that_is_read_before_it_is_made_is_found_even_beside_other_problems() -> None:
    module = captured(nn.Conv2d(4, 8, 3), nn.ReLU())
    setattr(module.get_submodule("0"), "out_channels", 5)  # noqa: B010
    placeholder, conv = list(module.graph.nodes)[:2]
    conv.append(placeholder)
    found = [(problem.place, problem.check) for problem in find_problems(module)]
    assert (conv.name, "order") in found and (conv.name, "weight") in found


def test_a_node_of_another_graph_is_found() -> None:
    module, other = captured(nn.ReLU()), captured(nn.ReLU())
    output = next(iter(reversed(module.graph.nodes)))
    output.args = (next(iter(other.graph.nodes)),)
    assert [problem.check for problem in find_problems(module)] == ["order"]
    assert "another graph" in find_problems(module)[0].message


def test_two_nodes_of_one_name_are_found() -> None:
    module = captured(nn.ReLU(), nn.Sigmoid())
    first, second = [node for node in module.graph.nodes if node.op == "call_module"]
    second.name = first.name
    assert [(problem.place, problem.check) for problem in find_problems(module)] == [(first.name, "name")]


def test_graph_text_shows_operators_and_shapes() -> None:
    text = graph_text(captured(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)))
    assert "def forward(self, input)" in text
    assert "# 0.weight: float32[8, 4, 3, 3]" in text
    assert "# 1.num_batches_tracked: int64[]" in text


def test_graph_text_is_python_and_changes_with_a_tensor_s_shape_alone() -> None:
    first, second = (captured(nn.Conv2d(4, width, 3), nn.ReLU()) for width in (8, 6))
    compile(graph_text(first), "graph", "exec")
    assert graph_text(first) != graph_text(second)
    assert graph_text(first) == graph_text(copy.deepcopy(first))
