"""A pipeline as a pass of torch.fx does what the pipeline does, and says whether it changed the graph."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch.fx.passes.infra.pass_base import PassResult
from torch.fx.passes.infra.pass_manager import PassManager

import graphprune
from graphprune.errors import PipelineError

X = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _graph() -> fx.GraphModule:
    torch.manual_seed(0)
    return fx.symbolic_trace(nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 4)).double())


def _scaled(module: fx.GraphModule) -> PassResult:
    """Another's pass: it doubles the output."""
    output = module.graph.output_node()
    with module.graph.inserting_before(output):
        output.args = (module.graph.call_function(torch.mul, (output.args[0], 2)),)
    module.recompile()
    return PassResult(module, True)


@pytest.mark.parametrize("first", [True, False])
def test_it_composes_with_other_passes_in_either_order(first: bool) -> None:
    prune = graphprune.FxPass("score,select{channels=50%},rewrite,verify", X)
    result = PassManager([prune, _scaled] if first else [_scaled, prune])(_graph())
    slim = graphprune.prune(_graph(), X, target="channels=50%").model
    assert result is not None and result.modified
    torch.testing.assert_close(result.graph_module(X), 2 * slim(X), rtol=1e-12, atol=1e-12)
    assert prune.program is not None and prune.program.verification is not None and prune.program.verification.passed


def test_a_pipeline_that_only_looks_leaves_the_graph_as_it_is() -> None:
    graph, look = _graph(), graphprune.FxPass("score{criterion=l1}", X)
    result = look(graph)
    assert result is not None and result.graph_module is graph and not result.modified
    assert look.program is not None and "l1" in look.program.scores


def test_the_graph_that_was_given_is_not_changed() -> None:
    graph = _graph()
    before = graph(X)
    graphprune.FxPass("score,select{channels=50%},rewrite", X)(graph)
    assert torch.equal(graph(X), before) and graph.get_parameter("0.weight").shape == (16, 6)


def test_a_pipeline_in_the_wrong_order_is_refused() -> None:
    with pytest.raises(PipelineError, match="needs plan"):
        graphprune.FxPass("rewrite", X)(_graph())
