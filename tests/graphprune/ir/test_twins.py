"""Twins of module trees: other tensors, everything else shared, nothing of the original changed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import graphprune
from graphprune.errors import CaptureError
from graphprune.ir.twins import named_tensors, restore_modes, twin, undisturbed


def _model() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    model.get_submodule("2.1").weight = model.get_parameter("2.0.weight")  # tied
    model.register_buffer("index", torch.arange(3), persistent=False)
    return model


def test_tensors_are_replaced_once_each_and_ties_are_kept() -> None:
    model, seen = _model(), []

    def replace(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor)
        return nn.Parameter(tensor.detach() + 1) if isinstance(tensor, nn.Parameter) else tensor + 1

    copy = twin(model, replace)
    assert len({id(tensor) for tensor in seen}) == len(seen)
    assert copy.get_parameter("2.0.weight") is copy.get_parameter("2.1.weight")
    for name, tensor in named_tensors(model).items():
        assert torch.equal(named_tensors(copy)[name], tensor + 1)


def test_what_is_done_to_a_twin_leaves_the_original_alone() -> None:
    model = _model()
    before = list(model.state_dict()), [module.training for module in model.modules()], set(model._non_persistent_buffers_set)
    copy = twin(model, lambda tensor: tensor).eval()
    copy.register_buffer("made", torch.zeros(2), persistent=False)
    copy.get_submodule("0").__dict__["in_features"] = 7
    after = list(model.state_dict()), [module.training for module in model.modules()], set(model._non_persistent_buffers_set)
    assert before == after and not hasattr(model, "made")
    assert model.get_submodule("0").in_features == 3


def test_a_twin_goes_with_its_last_reference() -> None:
    """No cycle keeps its tensors until the garbage collector runs: a large model would be in memory twice."""
    model = _model()
    gc.disable()
    try:
        copy = twin(model, lambda tensor: tensor.detach().clone())
        tensors = [weakref.ref(tensor) for tensor in named_tensors(copy).values()]
        assert all(tensor() is not None for tensor in tensors)
        del copy
        assert all(tensor() is None for tensor in tensors)
    finally:
        gc.enable()


def test_names_are_those_of_torch() -> None:
    model = _model()
    wanted = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    found = named_tensors(model)
    assert list(found) == list(wanted) and all(found[name] is wanted[name] for name in wanted)


def test_modes_and_persistence_follow_the_namesake() -> None:
    like, module = _model(), _model()
    like.get_submodule("1").eval()
    module.register_buffer("made_by_tracing", torch.zeros(1))
    restore_modes(module, like)
    assert [child.training for child in module.modules()] == [child.training for child in like.modules()]
    assert module.state_dict().keys() == like.state_dict().keys()


class _Chosen(nn.Linear):
    """Keeps one of its methods as an attribute."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.chosen = self.doubled

    def doubled(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = 2 * self(x)
        return result


def test_methods_that_modules_keep_are_those_of_the_twin() -> None:
    model: Any = _Chosen()
    copy: Any = twin(model, torch.zeros_like)
    assert copy.chosen(torch.ones(1, 2)).abs().sum() == 0
    assert model.chosen.__self__ is model


class _Keeping(nn.Module):
    """Keeps things of a call, and puts another module in the place of one of its own, as BigBird does for short texts."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Linear(4, 6), nn.Linear(6, 2), nn.Tanh()
        self.calls, self.known = [0], {"x": 1}
        self.count: torch.Tensor
        self.register_buffer("count", torch.zeros(2))

    def forward(self, x: torch.Tensor) -> Any:
        if isinstance(self.act, nn.Tanh):
            self.act = nn.ReLU()  # type: ignore[assignment]
        self.calls.append(1)
        self.known["y"] = 2
        self.last, self.count, self.a.in_features = x, self.count + 1, 4
        return self.b(self.act(self.a(x)))


def test_undisturbed_modules_have_what_they_had() -> None:
    model: Any = _model()
    model.append(keeping := _Keeping())
    model.eval()
    before = [dict(module.__dict__) for module in model.modules()]
    with undisturbed(model):
        keeping(torch.ones(1, 4))
        assert keeping.calls == [0, 1] and keeping.count.sum() == 2 and not isinstance(keeping.act, nn.Tanh)
    after = [module.__dict__ for module in model.modules()]
    assert all(
        one.keys() == other.keys() and all(one[k] is other[k] for k in one) for one, other in zip(before, after, strict=True)
    )
    assert keeping.calls == [0] and keeping.known == {"x": 1} and keeping.count.sum() == 0 and isinstance(keeping.act, nn.Tanh)


def test_a_model_that_changes_itself_is_as_before_and_proved_again() -> None:
    model, x = _Keeping(), torch.randn(2, 4)
    result = graphprune.prune(model, x, target="channels=50%")
    assert isinstance(model.act, nn.Tanh) and model.calls == [0]
    assert graphprune.verify(model, result.model, result.plan, x).passed


def _two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.mark.parametrize(
    ("make", "way"),
    [
        (lambda: graphprune.prune(_two_layers(), torch.zeros(2, 3), target="channels=50%"), "got PruneResult. Give its model"),
        (lambda: nn.Linear, "got the class Linear. Make one"),
        (lambda: torch.export.export(nn.Linear(3, 4), (torch.zeros(2, 3),)), r"program\.module\(\)"),
        (lambda: "slim.safetensors", r"got str. Load it: graphprune\.load"),
        (lambda: Path("slim.safetensors"), r"Load it: graphprune\.load"),
        (lambda: _model().state_dict(), "Load these weights into a model"),
        (lambda: torch.relu, "Expected a torch.nn.Module, got builtin_function_or_method.$"),
    ],
)
def test_what_is_no_module_is_refused_with_the_way_to_one(make: Callable[[], Any], way: str) -> None:
    """By whatever takes a model."""
    given, x = make(), torch.zeros(2, 3)
    plan = graphprune.prune(_two_layers(), x, target="channels=50%").plan
    for use in (
        lambda: graphprune.prune(given, x),
        lambda: graphprune.apply_plan(given, x, plan),
        lambda: graphprune.verify(given, _two_layers(), plan, x),
        lambda: graphprune.verify(_two_layers(), given, plan, x),
    ):
        with pytest.raises(CaptureError, match=way):
            use()


def test_what_is_no_captured_model_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"got Sequential: graphprune\.capture"):
        graphprune.channel_groups(_model())  # type: ignore[arg-type]
