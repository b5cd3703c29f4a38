"""Layers that a forward makes: what sets up their weights is part of the graph where these are used, and is left out where not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import graphprune
from graphprune.tracing.dead_writes import leave_out_dead_writes
from tests.checking import run
from tests.graphprune.tracing.forwards import check, double
from tests.zoo.case import net

X, Y = double(2, 4), double(3, 4)


def model(body: Callable[..., Any]) -> nn.Module:
    """Layers before and after the body, which gets what is between them."""
    return net(lambda self, x: self.c(body(self, self.b(self.a(x)))), a=nn.Linear(4, 6), b=nn.Linear(6, 8), c=nn.Linear(8, 2))


def calls(body: Callable[..., Any]) -> list[str]:
    """The calls of the graph besides those layers, which is exact."""
    found, _ = check(model(body), X, Y, groups=1)
    return [node.name for node in found.program.module.graph.nodes if node.name not in ("x", "a", "b", "c", "output")]


def never_called(self: Any, h: Tensor) -> Tensor:
    nn.Linear(8, 8)
    return h


def with_other_weights(self: Any, h: Tensor) -> Tensor:
    layer = nn.Linear(6, 8)
    layer.weight, layer.bias = self.b.weight, self.b.bias
    return layer(h[:, :6])  # type: ignore[no-any-return]


def overwritten(self: Any, h: Tensor) -> Tensor:
    table = torch.zeros(8, dtype=h.dtype)
    table[2:].add_(1).mul_(h.shape[0])
    return h


def test_what_sets_up_weights_that_are_not_used_is_left_out() -> None:
    assert calls(never_called) == calls(overwritten) == []
    assert calls(with_other_weights) == ["getitem", "b_weight", "b_bias", "linear"]


def of_ones(self: Any, h: Tensor) -> Tensor:
    return nn.LayerNorm(h.shape[-1], dtype=h.dtype)(h) + nn.PReLU(dtype=h.dtype)(h)  # type: ignore[no-any-return]


def through_views(self: Any, h: Tensor) -> Tensor:
    table = torch.zeros(2, 8, dtype=h.dtype)
    table[0].fill_(2.0)
    table[1, 3:] = h.mean()
    return h * table.sum(0)


def test_what_is_written_and_read_stays() -> None:
    assert {"fill_", "zero_", "layer_norm"} <= set(calls(of_ones))
    assert {"fill_", "setitem"} <= set(calls(through_views))


def test_a_buffer_is_written_into() -> None:
    def body(self: Any, h: Tensor) -> Tensor:
        self.count.add_(1)
        return h

    built = model(body)
    built.register_buffer("count", torch.zeros(1))
    program = graphprune.capture(built, X)
    run(program.module, X)
    assert "add_" in [node.name for node in program.module.graph.nodes] and built.get_buffer("count").item() == 1


def test_weights_that_are_drawn_in_every_call_are_so_in_the_slim_model(tmp_path: Path) -> None:
    def body(self: Any, h: Tensor) -> Tensor:
        return nn.Linear(8, 8, dtype=h.dtype)(h)  # type: ignore[no-any-return]

    built = model(body)
    result = graphprune.prune(built, X, target="channels=70%")
    assert result.report.widths == {"a": (6, 4)}
    graphprune.save(result, tmp_path / "slim.safetensors")
    slim = graphprune.load(tmp_path / "slim.safetensors")
    torch.manual_seed(0)
    first = run(slim, Y)
    assert not torch.equal(run(slim, Y), first)
    torch.manual_seed(0)
    assert torch.equal(run(slim, Y), first)


def test_a_graph_without_writes_is_left_alone() -> None:
    program = graphprune.capture(model(lambda self, h: h.relu()), X)
    assert program.tape is not None
    nodes, steps = list(program.module.graph.nodes), list(program.tape.steps)
    leave_out_dead_writes(program.module.graph, program.tape)
    assert nodes == list(program.module.graph.nodes) and steps == program.tape.steps
