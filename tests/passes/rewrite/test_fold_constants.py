"""Exact folding of removed constant channels, and what is left alone because it would not be exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphprune.errors import PipelineError
from graphprune.ir.program import Program
from graphprune.passes.rewrite.compensate import CompensatePass
from graphprune.passes.rewrite.fold_constants import FoldConstantsPass
from graphprune.pipeline.pass_manager import PassManager
from tests.passes.rewrite.compensating import after, error, without
from tests.zoo.case import net


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def constant(first: nn.Module, second: nn.Module, value: float = 1.5, **more: nn.Module) -> nn.Module:
    """Channels 1 and 4 of the first layer do not depend on the input; the second reads them behind an activation."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.second(F.hardswish(self.first(x)))
        return self.norm(y) if hasattr(self, "norm") else y

    torch.manual_seed(0)
    model = net(forward, first=first, second=second, **more)
    with torch.no_grad():
        model.get_parameter("first.weight")[[1, 4]] = 0.0
        model.get_parameter("first.bias")[[1, 4]] = value
    return model


def folded(program: Program) -> Program:
    return PassManager([FoldConstantsPass()], check_preserved=True).run(program)


EXACT: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "linear": lambda: (constant(nn.Linear(4, 6), nn.Linear(6, 3)), rand(5, 4)),
    "tokens": lambda: (constant(nn.Linear(4, 6), nn.Linear(6, 3)), rand(5, 7, 4)),
    "unpadded": lambda: (constant(nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, stride=2)), rand(2, 3, 9, 9)),
    "1x1": lambda: (constant(nn.Conv1d(3, 6, 3), nn.Conv1d(6, 4, 1)), rand(2, 3, 9)),
    "grouped": lambda: (constant(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 2, groups=2)), rand(2, 3, 5, 5)),
    "norm": lambda: (
        constant(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3, bias=False), norm=nn.BatchNorm2d(4)),
        rand(2, 3, 9, 9),
    ),
}


@pytest.mark.parametrize("kind", EXACT)
def test_a_removed_constant_is_made_up_for_exactly(kind: str) -> None:
    """Also on inputs of another size; without folding the output is off."""
    model, x = EXACT[kind]()
    slim = without(model, x, {"first.weight": [1, 4]})
    done = folded(slim)
    assert error(slim, x) > 1e-3
    assert error(done, x) < 1e-13
    larger = rand(3, *(size + (axis > 0) * 2 for axis, size in enumerate(x.shape[1:]))) if "conv" in str(model).lower() else x
    assert error(done, larger) < 1e-13
    assert [(one.weight, one.note) for one in done.compensation] == [("second.weight", "folded constants")]


def refused() -> dict[str, tuple[nn.Module, Tensor, str]]:
    padded = constant(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3, padding=1)), rand(2, 3, 6, 6)
    bare = constant(nn.Linear(4, 6), nn.Linear(6, 3, bias=False)), rand(5, 4)
    return {"padded": (*padded, "padding"), "bare": (*bare, "no bias")}


@pytest.mark.parametrize("kind", ["padded", "bare"])
def test_what_cannot_be_folded_exactly_is_left_alone_with_a_note(kind: str) -> None:
    model, x, why = refused()[kind]
    slim = without(model, x, {"first.weight": [1, 4]})
    done = folded(slim)
    assert [why in one.note and one.intercept == "" for one in done.compensation] == [True]
    assert all(torch.equal(t, done.module.get_parameter(name)) for name, t in slim.module.named_parameters())


def test_padding_does_no_harm_to_a_constant_of_zero_and_nothing_is_changed_for_it() -> None:
    model = constant(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3, padding=1), value=-4.0)  # hardswish(-4) = 0
    x = rand(2, 3, 6, 6)
    slim = without(model, x, {"first.weight": [1, 4]})
    assert folded(slim) is slim and error(slim, x) < 1e-13


def test_a_channel_that_varies_is_not_folded() -> None:
    x = rand(5, 4)
    slim = without(constant(nn.Linear(4, 6), nn.Linear(6, 3)), x, {"first.weight": [0]})
    assert folded(slim) is slim


def test_after_a_pass_that_may_have_made_up_for_them_it_is_refused() -> None:
    model, x = EXACT["linear"]()
    slim = without(model, x, {"first.weight": [1, 4]})
    with pytest.raises(PipelineError, match="before passes that change weights"):
        folded(after(slim, [rand(40, 4)], CompensatePass()))
