"""What must hold of a captured forward: it computes what the original does, at every size that the original takes, also pruned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import graphprune
from tests.checking import Analysed, analyse, check_plan, max_error, run, state_hash
from tests.zoo.case import net


@dataclass(frozen=True)
class Forward:
    """A forward, what it needs, example inputs, and other inputs that the original takes too.

    groups: how many groups must be prunable, at least. exact: None, or the error that the order of sums may leave.
    """

    forward: Callable[..., Any]
    parts: Callable[[], Mapping[str, Any]]
    inputs: Any
    others: tuple[Any, ...] = ()
    groups: int = 1

    def model(self) -> nn.Module:
        """The model, in float64 and eval mode."""
        return net(self.forward, **self.parts())


def halved(size: Any) -> int:
    """Half a size, for functions that import this where they run."""
    return int(size / 2)


def double(*shape: int) -> Tensor:
    """Random numbers."""
    return torch.randn(*shape, dtype=torch.float64)


def same(found: Any, wanted: Any, tolerance: float = 0.0) -> None:
    """Two outputs are equal, classes of containers included."""
    assert type(found) is type(wanted)
    assert max_error(found, wanted) <= tolerance


def check(
    model: nn.Module, inputs: Any, *others: Any, groups: int = 1, tolerance: float = 0.0, **options: Any
) -> tuple[Analysed, Any]:
    """Captured and pruned, the model is exact at its example inputs and at all others; returns the analysis and the slim model."""
    before = state_hash(model)
    found = analyse(model, inputs)
    captured = found.program.module
    for example in (inputs, *others):
        same(run(captured, example), run(model, example), tolerance)
    assert len(found.groups.prunable) >= groups, [(g.name, str(g.reason)) for g in found.groups.frozen]
    plan = found.random_plan(0)
    slim = check_plan(found, plan, **{"zeros": False, "macs": False, "again": False, **options})
    for example in others:
        assert graphprune.verify(model, slim, plan, example).check().error < 1e-10
    assert state_hash(model) == before
    return found, slim
