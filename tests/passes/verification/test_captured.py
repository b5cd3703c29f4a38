"""A graph that does not compute what its model does is refused, whatever the rewrite did right."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune
from graphprune.errors import VerificationError
from graphprune.ir.program import Program
from graphprune.passes.verification.captured import check_captured
from graphprune.tracing import capture, normalise_inputs


class _Net(nn.Module):
    """Two layers, what happens between them, and a count of calls."""

    calls: Tensor

    def __init__(self, between: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Linear(4, 8), nn.Linear(8, 2), between
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Any:
        return self.b(self.between(self.a(x)))


def _misled(*args: Any, **kwargs: Any) -> Program:
    """A capture whose graph has a sigmoid where the model has a ReLU."""
    program = capture(*args, **kwargs)
    for node in program.module.graph.nodes:
        if node.target == "relu":
            node.target = "sigmoid"
    program.module.recompile()
    return program


def _pruned(model: nn.Module, x: Tensor, **how: Any) -> Any:
    return graphprune.prune(model, x, target="channels=50%", **how)


def test_a_graph_of_another_computation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rewrite of it would be proved."""
    model, x = _Net(lambda y: y.relu()), torch.randn(3, 4)
    monkeypatch.setattr("graphprune.api.capture", _misled)
    result = _pruned(model, x, verify=False)
    with pytest.raises(VerificationError, match=r"does not compute what _Net does on the example inputs: tensor 0 .* is off by"):
        _pruned(model, x)
    with pytest.raises(VerificationError, match="does not compute what _Net does"):
        graphprune.apply_plan(model, x, result.plan)


def test_a_model_that_does_something_else_where_it_knows_of_a_trace_is_not_told() -> None:
    """As masks of transformers are left out for what is only looked at, and made for what is traced."""
    model, x = _Net(lambda y: y.sigmoid() if torch.compiler.is_compiling() else y.relu()), torch.randn(3, 4)
    result = _pruned(model, x)
    assert result.report.verification.passed and [n.target for n in result.model.graph.nodes if n.op == "call_method"] == ["relu"]
    assert graphprune.verify(model, result.model, result.plan, x).passed
    again = graphprune.apply_plan(model, x, result.plan)
    assert torch.equal(again.model(x), result.model(x))


def test_a_model_that_is_not_the_same_twice_is_not_accused() -> None:
    """Of it nothing can be told by running it."""
    calls = count()
    assert _pruned(_Net(lambda y: y * (1 + next(calls))), torch.randn(3, 4)).report.verification.passed


def test_a_model_is_as_before_afterwards() -> None:
    """Modes, buffers and the example inputs."""

    class Counting(_Net):
        def forward(self, x: Tensor) -> Any:
            self.calls += 1
            return super().forward(x.mul_(2))

    model, x = Counting(lambda y: y.relu()), torch.randn(3, 4)
    before = x.clone()
    model.b.eval()
    program = capture(model, x)
    check_captured(model, normalise_inputs(x), program)
    assert torch.equal(x, before) and not model.calls and model.training and model.a.training and not model.b.training


def test_a_model_that_was_made_in_inference_mode_is_compared() -> None:
    """Its buffers count no versions."""
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).eval()
    assert _pruned(model, torch.randn(3, 4)).report.verification.passed


def test_draws_and_missing_numbers_are_the_same_in_both() -> None:
    class Noisy(_Net):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x + torch.randn_like(x)), x.log()

    model, x = Noisy(lambda y: y.relu()), torch.randn(3, 4)
    check_captured(model, normalise_inputs(x), capture(model, x))
    with pytest.raises(VerificationError, match="tensor 1 that it returns is off"):
        check_captured(model, normalise_inputs(x), capture(_Net(lambda y: y.relu()), x).with_(module=_without_nan(model, x)))


def _without_nan(model: nn.Module, x: Tensor) -> Any:
    module = capture(model, x).module
    log = next(node for node in module.graph.nodes if node.target == "log")
    log.target = "abs"
    module.recompile()
    return module
