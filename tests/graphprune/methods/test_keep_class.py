"""Methods on models that keep their class: every round trains the class, and the last one is what the proved graph is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import graphprune
from graphprune.errors import RunError
from graphprune.methods import METHODS, MethodResult
from tests.loops import INPUT, DigitsLoop, digits


class Gated(nn.Module):
    """Its code splits a tensor into halves and states a width; it has a method of its own and a layer that it does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.spare = 16, nn.Linear(3, 3)
        self.stem, self.bn = nn.Conv2d(1, 16, 3, stride=2, bias=False), nn.BatchNorm2d(16)
        self.both, self.fixed, self.head = nn.Conv2d(16, 32, 1), nn.Conv2d(16, 6, 1), nn.Linear(6 * 9, 10)

    def features(self, x: Tensor) -> Any:
        value, gate = self.both(functional.relu(self.bn(self.stem(x)))).chunk(2, dim=1)
        return self.fixed(value * gate.sigmoid()).reshape(x.shape[0], 6 * 9)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x))


class _Own(DigitsLoop):
    """A loop that needs the class."""

    def loss(self, model: Any, index: Tensor, teacher: nn.Module | None) -> Tensor:
        """With a penalty on features, which only the class gives."""
        extra: Tensor = model.features(self.x[index]).square().mean()
        return super().loss(model, index, teacher) + 1e-3 * extra


ITERATIVE: dict[str, Any] = {"rounds": 2, "tune_epochs": 1}


def _run(loop: DigitsLoop, folder: Path | None = None, name: str = "iterative", **options: Any) -> MethodResult:
    torch.manual_seed(5)
    usual: dict[str, Any] = {
        "train": loop.train,
        "evaluate": loop.evaluate,
        "data": loop.data,
        "folder": folder,
        "keep_class": True,
        "epochs": 2,
    }
    return METHODS[name](Gated(), torch.zeros(INPUT), trained=False, **(usual | options))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("iterative", ITERATIVE),
        ("iterative", ITERATIVE | {"masks": True}),
        ("adaptive", {"tolerance": 0.5, "max_rounds": 2}),
        ("growing", {}),
    ],
)
def test_every_round_trains_the_class_and_the_last_one_is_given_back(name: str, options: dict[str, Any]) -> None:
    """What its code states stays; what it splits in halves stays halves. The unused layer is copied."""
    result = _run(_Own(2, count=300), name=name, **options)
    slim: Any = result.model
    assert type(slim) is Gated and result.pruned.keeps_class
    assert slim.fixed.out_channels == 6 and slim.spare.in_features == 3
    assert slim.both.out_channels == 2 * slim.fixed.in_channels
    assert slim.stem.out_channels < 16 or slim.both.out_channels < 32
    x = digits(count=50)[0]
    assert torch.equal(slim.eval()(x), result.pruned.graph.eval()(x))
    proof = result.pruned.report.verification
    assert proof is not None and proof.passed
    assert not torch.equal(slim.head.weight, result.plan.slice("head.weight", Gated().head.weight))  # trained


class _Killed(BaseException):
    """Stands for whatever ends a process."""


class _Interrupted(_Own):
    """Ends in its third training, which is the first one after a cut."""

    def train(self, model: nn.Module, epochs: range, state: Any, /, **extras: nn.Module) -> Any:
        """As long as it lasts."""
        if len(self.trained) == 2:
            raise _Killed
        return super().train(model, epochs, state, **extras)


def test_a_run_that_was_interrupted_ends_the_same_and_loads_into_the_class(tmp_path: Path) -> None:
    """Gone on with from its folder, which is one of a run that keeps the class; the file of the result goes into the class."""
    with pytest.raises(_Killed):
        _run(_Interrupted(2, count=300), tmp_path / "run", **ITERATIVE)
    with pytest.raises(RunError, match="settings"):
        _run(_Own(2, count=300), tmp_path / "run", keep_class=False, **ITERATIVE)
    again = _run(_Own(2, count=300), tmp_path / "run", **ITERATIVE)
    whole = _run(_Own(2, count=300), **ITERATIVE).model.state_dict()
    graphprune.save(again.pruned, tmp_path / "slim.safetensors")
    loaded: Any = graphprune.load(tmp_path / "slim.safetensors", Gated())
    for found in (again.model, loaded):
        assert type(found) is Gated
        mine = found.state_dict()
        assert all(torch.equal(mine[name], tensor) for name, tensor in whole.items())


def test_without_it_the_rounds_train_graphs() -> None:
    """Which have no methods: the loop fails, as it does without this option."""
    with pytest.raises(AttributeError, match="features"):
        _run(_Own(2, count=100), keep_class=False)
