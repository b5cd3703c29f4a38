"""Slim models compile whole, and as often as their originals, not oftener."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import graphprune
from graphprune.ir.program import Inputs
from graphprune.tracing import normalise_inputs
from tests.zoo import attention, heads, positions
from tests.zoo.case import CASES

assert all((attention, heads, positions))

NAMES = ("separate_projections", "fused_qkv", "rotary_halves", "linear_attention")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _graphs(model: nn.Module, calls: list[Inputs]) -> int:
    """Number of graphs that Dynamo makes of a model for some calls, each equal to the uncompiled one. Raises at a graph break."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        for call in calls:
            torch.testing.assert_close(compiled(*call.args, **call.kwargs), model(*call.args, **call.kwargs))
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.parametrize("name", NAMES)
def test_a_slim_model_compiles_whole_and_no_oftener_than_its_original(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]()
    model = case.model.eval()
    slim = graphprune.prune(model, case.inputs(2), target="channels=60%", ranking="local", policy=case.policy).model.eval()
    calls = [normalise_inputs(case.inputs(batch)) for batch in (2, 3, 5)]
    assert _graphs(slim, calls) == _graphs(model, calls) == 2
