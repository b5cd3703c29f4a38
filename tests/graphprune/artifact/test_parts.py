"""Parts of a model in an artifact: what says where they belong is read as data, and refused where it is not sound."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from graphprune.artifact.parts import describe_parts, parts_in, with_weights_of
from graphprune.errors import ArtifactError
from graphprune.ir.program import Scope
from graphprune.tracing import capture


def test_what_is_written_is_read_back() -> None:
    scopes = (Scope("a.b", (("x", "a_b_x"), ("mask", ""))), Scope("c", (("y", "c_y"),)))
    assert parts_in(describe_parts(scopes)) == scopes
    assert describe_parts(()) == {} and parts_in({"source": "net"}) == ()


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "{}",
        json.dumps([{"path": "a"}]),
        json.dumps([{"path": 3, "arguments": []}]),
        json.dumps([{"path": "a", "arguments": [["x): import os", "x"]]}]),
        json.dumps([{"path": "a", "arguments": [["x", "y z"]]}]),
        json.dumps([{"path": "a", "arguments": [["x"]]}]),
    ],
)
def test_hostile_or_damaged_lists_are_refused(text: str) -> None:
    with pytest.raises(ArtifactError):
        parts_in({"scopes": text})


def test_the_weights_around_the_parts_join_the_tree_and_nothing_is_changed() -> None:
    part, around = nn.Linear(2, 3), nn.BatchNorm1d(3)
    graph = capture(nn.Sequential(part), torch.zeros(1, 2)).module
    whole = with_weights_of(nn.Sequential(part, nn.ModuleDict({"norm": around})), graph)
    assert set(whole.state_dict()) == {"0.weight", "0.bias", *(f"1.norm.{name}" for name in around.state_dict())}
    assert whole.get_parameter("1.norm.weight") is around.weight and whole.get_parameter("0.weight") is part.weight
    assert set(graph.state_dict()) == {"0.weight", "0.bias"}
