"""Checks of values in forwards: the graph computes what a model that passes them does, and a check alone freezes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune
from tests.graphprune.tracing import checking


class _Checked(nn.Module):
    """Two layers; ``check`` is run on what the first gives."""

    def __init__(self, check: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        self.check = check

    def forward(self, x: Tensor) -> Any:
        hidden = self.first(x)
        self.check(hidden)
        return self.second(hidden.relu())


CHECKS = (
    checking.if_raise, checking.assert_, checking.assert_not, checking.item, checking.is_equal, checking.several,
    checking.under_with, checking.in_a_loop, checking.under_finally, checking.raised_again, checking.of_torch,
)  # fmt: skip


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_of_values_freezes_nothing(check: Callable[[Tensor], Any]) -> None:
    """The pruned model is that of the same layers without the check, and the check's own reductions are not in its graph."""
    torch.manual_seed(0)
    model = _Checked(check).double().eval()
    x = torch.randn(4, 6, dtype=torch.float64)
    result = graphprune.prune(model, x, target="channels=50%", criterion="l2")
    model.check = lambda h: None
    plain = graphprune.prune(model, x, target="channels=50%", criterion="l2")
    assert result.report.after.parameters == (6 + 1) * 4 + (4 + 1) * 3
    assert torch.equal(result.model(x), plain.model(x))
    graph = graphprune.capture(_Checked(check), x.float()).module.graph
    calls = {str(node.target) for node in graph.nodes}
    assert not calls & {"isnan", "isinf", "isfinite", "any", "all", "allclose", "_is_all_true"}


DECISIONS = (
    checking.branch, checking.caught, checking.caught_further_out, checking.left_in_finally, checking.raised_again_or_not,
    checking.of_torch_caught, checking.number, checking.number_caught,
)  # fmt: skip


@pytest.mark.parametrize("check", DECISIONS)
def test_what_decides_more_than_whether_to_raise_is_no_check(check: Callable[[Tensor], Any]) -> None:
    """Values that choose between two ways to go on, or whose error is caught, are not guessed."""
    assert graphprune.capture(_Checked(check), torch.randn(4, 6)).scopes
    assert not graphprune.capture(_Checked(checking.assert_), torch.randn(4, 6)).scopes
