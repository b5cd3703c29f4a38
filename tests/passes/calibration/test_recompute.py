"""A backward pass in parts: the gradients of one pass, and a clear word where an activation was overwritten."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, fx, nn

from graphprune.errors import UsageError
from graphprune.passes.calibration.interpreters import Stepwise
from graphprune.passes.calibration.recompute import Recomputation


class _Net(nn.Module):
    """Branches that live long, a tuple, and, if asked for, a value that is written into later."""

    def __init__(self, overwrites: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.last = (nn.Linear(4, 4).double() for _ in range(3))
        self.overwrites = overwrites

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """Shape (n, 4)."""
        y = self.first(x)
        left, right = torch.chunk(torch.tanh(y), 2, 1)
        z = torch.cat([right, left], 1) * scale + y
        z = torch.relu(self.second(z))
        y = y.mul_(2) if self.overwrites else y * 2
        out: Tensor = self.last(z + y + y)
        return out


class _Hooked(Stepwise):
    """Notes the gradient of what a node makes."""

    found: dict[str, Tensor]

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if isinstance(result, Tensor) and result.requires_grad:
            result.register_hook(lambda gradient: self.found.__setitem__(n.name, gradient.clone()))
        return result


def _gradients(model: nn.Module, parts: int) -> dict[str, Tensor]:
    """Of every activation that depends on the first layer's."""
    graph = fx.symbolic_trace(model)
    nodes = list(graph.graph.nodes)
    size = -(-len(nodes) // parts)
    found: dict[str, Tensor] = {}

    def make(arguments: object, watched: bool) -> Stepwise:
        interpreter = (_Hooked if watched else Stepwise)(graph, arguments)  # type: ignore[arg-type]
        if isinstance(interpreter, _Hooked):
            interpreter.found = found
        return interpreter

    generator = torch.Generator().manual_seed(0)
    arguments = [torch.randn(3, 4, generator=generator).double(), torch.tensor([2.0]).double()]
    passes = Recomputation(
        [nodes[start : start + size] for start in range(0, len(nodes), size)],
        arguments,
        make,
        lambda part: nullcontext(),
        {"first"},
    )
    for _ in passes.run(lambda result: result.square().sum().backward()):
        pass
    return found


@pytest.mark.parametrize("parts", [2, 3, 5, 20])
def test_gradients_are_those_of_one_pass(parts: int) -> None:
    torch.manual_seed(0)
    model = _Net()
    whole, apart = _gradients(model, 1), _gradients(model, parts)
    assert apart.keys() >= {"first", "tanh", "cat", "second", "relu", "last"}
    for name in whole.keys() & apart.keys():
        torch.testing.assert_close(apart[name], whole[name], rtol=1e-12, atol=1e-15)


def test_an_activation_that_is_overwritten_cannot_be_computed_again() -> None:
    with pytest.raises(UsageError, match="writes into an activation"):
        _gradients(_Net(overwrites=True), 5)
