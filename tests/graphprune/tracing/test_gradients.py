"""What a model's code says about gradients, and a graph does not, is noted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune
from tests.graphprune.tracing.forwards import double
from tests.zoo.case import net

X = double(2, 4)
no_grad, inference_mode = torch.no_grad, torch.inference_mode


class Straight(torch.autograd.Function):
    """A sign whose gradient goes straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0]


class Careful(Straight):
    """One whose code is within a context, under a name that was taken when the module was loaded."""

    @staticmethod
    @torch.no_grad()
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign() * int(x.shape[0])


careful = Careful.apply


def layers() -> dict[str, nn.Module]:
    return {"a": nn.Linear(4, 6), "b": nn.Linear(6, 2)}


def notes(forward: Any) -> dict[str, str]:
    model = net(forward, **layers()).double().eval()
    found = graphprune.prune(model, X, target="channels=50%").report.eval_only
    kept = graphprune.prune(model, X, target="channels=50%", keep_class=True).report.eval_only
    assert not kept  # whose own code runs
    return dict(found)


@pytest.mark.parametrize("context", [no_grad, inference_mode])
def test_what_is_computed_without_gradients_is_noted(context: Any) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        with context():
            y = self.a(x).relu()
        return self.b(y)

    (reason,) = notes(forward).values()
    assert reason.startswith("it computes without gradients (tracing/test_gradients.py:") and reason.count("without") == 1


def test_what_has_no_gradients_or_gets_them_again_is_not_noted() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        with torch.no_grad():
            scale = y.detach().mean(1, keepdim=True) * y.shape[0] + x.mean()
            with torch.enable_grad():
                y = y * 2
        return self.b(y * scale)

    assert not notes(forward)


def test_a_function_with_gradients_of_its_own_is_noted_by_name() -> None:
    assert "Straight (tracing/test_gradients.py:" in notes(lambda self, x: self.b(Straight.apply(self.a(x))))["Net"]
    reason = notes(lambda self, x: self.b(careful(self.a(x))))["Net"]
    assert reason.startswith("Careful (") and "without gradients" not in reason


def test_several_reasons_are_all_said() -> None:
    @torch.no_grad()
    def first(self: Any, x: Tensor) -> Any:
        return self.a(x)

    reason = notes(lambda self, x: self.b(Straight.apply(first(self, x))))["Net"]
    assert "without gradients" in reason and "; Straight" in reason


def test_a_function_that_no_parameter_has_a_part_in_is_not_noted() -> None:
    assert not notes(lambda self, x: self.b(self.a(Straight.apply(x))))


def test_torch_s_own_functions_are_not_noted() -> None:
    """The gradients of a checkpoint are those of what it runs."""
    from torch.utils.checkpoint import checkpoint

    assert not notes(lambda self, x: self.b(checkpoint(self.a, x, use_reentrant=True)))


def test_what_is_within_a_module_that_runs_as_it_is_is_not_noted() -> None:
    def looks(self: Any, x: Tensor) -> Any:
        with torch.no_grad():
            y = self.a(x)
        return self.b(y) * float(y.mean())

    inner = net(looks, **layers())
    model = net(lambda self, x: self.b(self.m(self.a(x))), a=nn.Linear(4, 4), m=inner, b=nn.Linear(2, 2)).double().eval()
    assert not graphprune.capture(model, X).eval_only
