"""Code that looks at data or past the tracer: checks of distributions, functions of TorchScript."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution

import graphprune
from tests.graphprune.tracing.forwards import check, double
from tests.zoo.case import net

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")

X, Y = double(2, 3, 8), double(3, 3, 12)


def snake(x: Tensor, alpha: Tensor) -> Tensor:
    """The activation of neural codecs, as they spell it."""
    shape = x.shape
    x = x.reshape(shape[0], shape[1], -1)
    x = x + (alpha + 1e-9).reciprocal() * torch.sin(alpha * x).pow(2)
    return x.reshape(shape)


def test_a_scripted_function_is_traced_through() -> None:
    """Its sizes are those of its input: the slim model has others, and takes others."""
    parts = {"a": nn.Conv1d(3, 8, 1), "alpha": nn.Parameter(torch.ones(1, 8, 1)), "b": nn.Conv1d(8, 2, 1)}
    scripted = torch.jit.script(snake)
    found, _ = check(net(lambda self, x: self.b(scripted(self.a(x), self.alpha)), **parts), X, Y)
    assert not found.program.opaque and scripted(torch.ones(1, 1, 1), torch.ones(1, 1, 1)).shape == (1, 1, 1)


def test_a_traced_function_leaves_its_module_as_it_is() -> None:
    traced = torch.jit.trace(lambda x: torch.sin(x) * 2, (torch.ones(2, 3),))
    traced.__dict__.pop("_torchdynamo_inline", None)
    inner = net(lambda self, x: traced(x))
    found = graphprune.capture(
        net(lambda self, x: self.b(self.inner(self.a(x))), a=nn.Linear(8, 4), b=nn.Linear(4, 2), inner=inner), X
    )
    assert "no Python to trace" in found.opaque["inner"]


def test_a_distribution_does_not_check_its_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents return one's logarithms of probabilities and entropy."""
    monkeypatch.setattr(Distribution, "_validate_args", True)  # Dynamo switches it off for good

    def forward(self: Any, x: Tensor, action: Tensor) -> Any:
        h = self.a(x).relu()
        found = Categorical(logits=self.actor(h))
        return found.log_prob(action), found.entropy(), self.critic(h)

    model = net(forward, a=nn.Linear(8, 16), actor=nn.Linear(16, 4), critic=nn.Linear(16, 1))
    others = (double(5, 8), torch.tensor([0, 1, 2, 3, 0]))
    found, _ = check(model, (double(2, 8), torch.tensor([1, 3])), others)
    assert not found.program.scopes and Distribution._validate_args
