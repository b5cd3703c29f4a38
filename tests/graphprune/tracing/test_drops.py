"""Dropout that train mode alone calls (``if self.training: x = F.dropout(x)``): the graph calls it, and it follows the mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphprune
from tests.checking import max_error
from tests.graphprune.tracing.forwards import double

X = double(2, 5, 4)


class Dropping(nn.Module):
    """Two layers, and what is done between them."""

    then: Callable[..., Any]

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.drop = nn.Linear(4, 8), nn.Linear(8, 3), nn.Dropout(0.25)

    def forward(self, x: Tensor) -> Any:
        return self.then(self.a(x).relu())


def once(self: Any, y: Tensor) -> Any:
    if self.training:
        y = F.dropout(y)
    return self.b(y)


def by_a_layer(self: Any, y: Tensor) -> Any:
    return self.b(self.drop(y) if self.training else y)


def twice(self: Any, y: Tensor) -> Any:
    if self.training:
        y = F.alpha_dropout(F.dropout(y, 0.25), 0.5, training=self.training)
    return self.b(y)


def beside_what_is_not_dropped(self: Any, y: Tensor) -> Any:
    z = F.dropout(y, 0.5) if self.training else y
    return self.b(y - 2 * z)


def shaped(self: Any, y: Tensor) -> Any:
    if self.training:
        y = F.dropout1d(y, 0.5)
    return self.b(y.view(-1, y.shape[-1])) * self.b(y + 1).flatten(0, 1)


def returned(self: Any, y: Tensor) -> Any:
    y = self.b(y)
    return F.dropout(y) if self.training else y


FOLLOWED = [returned, once, by_a_layer, twice, beside_what_is_not_dropped, shaped]


def dropping(then: Any) -> Any:
    torch.manual_seed(0)
    return type("Dropping", (Dropping,), {"then": then})().double()


def check_modes(graph: Any, model: Any) -> None:
    """The same results, and random numbers, in both modes."""
    for training in (True, False, True):
        found, wanted = [(torch.manual_seed(1), one.train(training)(X))[1] for one in (graph, model)]
        assert max_error(found, wanted) < 1e-12


@pytest.mark.parametrize("then", FOLLOWED, ids=lambda then: then.__name__)
@pytest.mark.parametrize("inside", [False, True])
def test_it_follows_the_mode(then: Any, inside: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4).double(), dropping(then)) if inside else dropping(then)
    program = graphprune.capture(model, X)
    assert not program.eval_only
    check_modes(program.module, model)
    result = graphprune.prune(model.eval(), X, target="channels=50%")
    assert result.report.verification is not None and result.report.verification.error < 1e-10 and not result.report.eval_only
    slim = result.model
    assert not torch.equal(slim.train()(X), slim(X)) and torch.equal(slim.eval()(X), slim(X))
    check_modes(graphprune.capture(slim, X).module, slim)


def test_attention_that_is_asked_for_its_weights_drops_them() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, dropout=0.25, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            y, weights = self.attention(x, x, x)
            return y + weights.sum()

    torch.manual_seed(0)
    model = Attending().double()
    program = graphprune.capture(model, X)
    assert not program.eval_only
    check_modes(program.module, model)


def in_a_list(self: Any, y: Tensor) -> Any:
    z = F.dropout(y) if self.training else y
    return self.b(torch.stack([y, z]).sum(0))


def in_place(self: Any, y: Tensor) -> Any:
    if self.training:
        F.dropout(y, inplace=True)
    return self.b(y)


def at_a_rate_of_sizes(self: Any, y: Tensor) -> Any:
    return self.b(F.dropout(y, 1 / y.shape[1]) if self.training else y)


@pytest.mark.parametrize("then", [in_a_list, in_place, at_a_rate_of_sizes], ids=lambda then: then.__name__)
def test_what_cannot_follow_says_so(then: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 4).double(), dropping(then))
    program = graphprune.capture(model, X)
    assert list(program.eval_only) == ["1"]
    assert max_error(program.module.train()(X), model.eval()(X)) < 1e-12
