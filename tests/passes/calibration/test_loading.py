"""Programs whose weights are loaded on demand: parts with few weights that end between blocks, and modules left as they were."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from graphprune.ir.program import Program
from graphprune.ir.twins import named_tensors
from graphprune.ir.weights import Weights
from graphprune.passes.calibration.loading import loaded, parts_of
from graphprune.tracing import capture
from tests.graphprune.streaming.nets import INPUTS, Net, on_meta


@pytest.fixture
def values() -> Mapping[str, Tensor]:
    return named_tensors(Net(depth=8))


@pytest.fixture
def program(values: Mapping[str, Tensor]) -> Program:
    found = capture(on_meta(depth=8), INPUTS)
    return found.with_(weights=Weights(found.module, values.get))


def test_parts_have_few_weights_and_end_between_blocks(program: Program) -> None:
    parts = parts_of(program, program.module)
    assert [node for part in parts for node in part] == list(program.module.graph.nodes) and len(parts) > 2
    assert all(part[0].name.endswith("_norm") or part[0].name == "head" for part in parts[1:])
    largest = max(tensor.nbytes for tensor in program.tensors.values())
    for part in parts:
        names = {str(node.target) for node in part if node.op in ("call_module", "get_attr")}
        weights = {name: t for name, t in program.tensors.items() if name in names or name.rpartition(".")[0] in names}
        assert sum(tensor.nbytes for tensor in weights.values()) <= 4 * largest


def test_a_program_with_values_runs_in_one_part() -> None:
    program = capture(Net(depth=8).eval(), INPUTS)
    assert parts_of(program, program.module) == [list(program.module.graph.nodes)]


def test_what_nodes_read_has_values_within_the_block_alone(program: Program, values: Mapping[str, Tensor]) -> None:
    module = program.module
    before = {name: id(tensor) for name, tensor in named_tensors(module).items()}
    nodes = [node for node in module.graph.nodes if node.name in ("embed", "shift", "head")]
    with loaded(program.weights, module, nodes):
        found = {name: tensor for name, tensor in named_tensors(module).items() if not tensor.is_meta}
        assert found.keys() == {"embed.weight", "head.weight", "shift", "scale"}
        assert found["embed.weight"] is found["head.weight"]  # tied, and read once
        assert torch.equal(found["embed.weight"], values["embed.weight"])
    assert {name: id(tensor) for name, tensor in named_tensors(module).items()} == before
    with pytest.raises(ZeroDivisionError), loaded(program.weights, module, nodes):
        raise ZeroDivisionError
    assert {name: id(tensor) for name, tensor in named_tensors(module).items()} == before
