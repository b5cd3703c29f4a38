"""Tensors that scopes hand to each other: they shrink where nothing else uses them, and stay as they are where something may."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphprune
from tests.checking import max_error

X = torch.randn(2, 3, 12, 12, dtype=torch.float64)
LARGER = torch.randn(1, 3, 16, 20, dtype=torch.float64)


class Levels(nn.Module):
    """Two levels of six and eight channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fine, self.coarse = nn.Conv2d(3, 10, 3), nn.Conv2d(10, 6, 3), nn.Conv2d(6, 8, 3, stride=2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = F.relu(self.fine(F.relu(self.stem(x))))
        return {"fine": fine, "coarse": F.relu(self.coarse(fine))}


class Heads(nn.Module):
    """A convolution for each level, in place of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.ModuleList([nn.Conv2d(6, 2, 1), nn.Conv2d(8, 2, 1)])

    def forward(self, levels: list[Tensor], scale: float = 1.0) -> list[Tensor]:
        return [one(level.mul_(2)) for one, level in zip(self.each, levels, strict=True)]


Around = Callable[["Whole", Tensor, dict[str, Tensor]], Any]


class Whole(nn.Module):
    """Code that does not trace around two scopes. around: what else it does with the levels."""

    def __init__(self, around: Around) -> None:
        super().__init__()
        self.levels, self.heads = Levels(), Heads()
        self.around = around
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> list[Any]:
        levels = self.levels(x)
        extra = self.around(self, x, levels)
        sizes = [level.shape[-2:] for level in levels.values()]
        found = self.heads(list(levels.values()))
        anchors = [torch.zeros(size, dtype=levels["fine"].dtype, device=levels["fine"].device) for size in sizes]
        boxes = [part.sum(1)[:, :, :] + anchor for part, anchor in zip(found, anchors, strict=True)]
        return [torch.masked_select(box, box > box.mean()) for box in boxes] + ([] if extra is None else [extra])


def whole(around: Around = lambda *_: None) -> Whole:
    """The model, in which half of the channels between the scopes, and none of the others, do nothing."""
    torch.manual_seed(0)
    model = Whole(around).double().eval()
    silence(model.levels)
    return model


def silence(levels: Levels) -> None:
    """Have half of the channels of each level do nothing."""
    with torch.no_grad():
        for layer, idle in ((levels.fine, [1, 3, 4]), (levels.coarse, [0, 2, 5, 7])):
            assert layer.bias is not None
            layer.weight[idle] = 0
            layer.bias[idle] = 0


def pruned(model: Whole, *exclude: str) -> graphprune.PruneResult:
    return graphprune.prune(model, X, target="channels=50%", ranking="local", exclude=exclude)


def widths(model: nn.Module) -> list[int]:
    return [len(model.get_parameter(f"levels.{name}.weight")) for name in ("fine", "coarse")]


def test_channels_that_only_pass_from_scope_to_scope_are_pruned() -> None:
    """What goes does nothing, so that the whole model must return the same, at other sizes too. The original is not changed."""
    model = whole()
    result = pruned(model, "levels.stem")
    assert result.report.scopes == ("levels", "heads") and widths(result.model) == [3, 4] and widths(model) == [6, 8]
    assert [result.model.get_parameter(f"heads.each.{index}.weight").shape[1] for index in (0, 1)] == [3, 4]
    for x in (X, LARGER):
        assert all(max_error(one, two) < 1e-12 for one, two in zip(model(x), result.model(x), strict=True))


def test_the_plan_is_applied_verified_saved_and_loaded(tmp_path: Path) -> None:
    model = whole()
    result = pruned(model, "levels.stem")
    again = graphprune.apply_plan(model, X, result.plan)
    graphprune.save(result, tmp_path / "slim.safetensors")
    loaded = graphprune.load(tmp_path / "slim.safetensors", model)
    for slim in (again.model, loaded, copy.deepcopy(result.model)):
        assert graphprune.verify(model, slim, result.plan, X).passed
        assert all(torch.equal(one, two) for one, two in zip(result.model(X), slim(X), strict=True))


def test_a_wrong_weight_behind_the_boundary_is_found() -> None:
    model = whole()
    result = pruned(model, "levels.stem")
    with torch.no_grad():
        result.model.get_parameter("heads.each.0.weight").mul_(1.5)
    assert not graphprune.verify(model, result.model, result.plan, X).passed


def test_the_class_of_the_model_is_kept() -> None:
    model = whole()
    result = graphprune.prune(model, X, target="channels=50%", ranking="local", exclude=("levels.stem",), keep_class=True)
    assert type(result.model.levels) is Levels and widths(result.model) == [3, 4]
    assert all(max_error(one, two) < 1e-12 for one, two in zip(model(X), result.model(X), strict=True))


def _again(model: Whole, x: Tensor, levels: dict[str, Tensor]) -> None:
    model.heads([level.clone() for level in levels.values()])


def _keep(model: Whole, x: Tensor, levels: dict[str, Tensor]) -> None:
    model.kept = [levels["fine"], levels["coarse"]]


@torch.jit.script
def _scripted(levels: dict[str, Tensor]) -> Tensor:
    return levels["fine"].mean() + levels["coarse"].mean()


@pytest.mark.parametrize(
    "around",
    [
        lambda model, x, levels: levels["fine"].mean() + levels["coarse"].mean(),
        lambda model, x, levels: sum(level.shape.numel() for level in levels.values()),
        lambda model, x, levels: [len(torch.zeros(level.shape[1])) for level in levels.values()],
        lambda model, x, levels: [c for level in levels.values() for _, c, _, _ in [level.shape]],
        lambda model, x, levels: [level.size(1) for level in levels.values()],
        lambda model, x, levels: [(2,) + level.shape for level in levels.values()],  # noqa: RUF005
        lambda model, x, levels: [torch.zeros(level.shape) for level in levels.values()],
        lambda model, x, levels: [level.numpy() for level in levels.values()],
        lambda model, x, levels: list(levels.values()),
        lambda model, x, levels: _scripted(levels),
        lambda model, x, levels: [level[0, -1] for level in levels.values()],
        _again,
        _keep,
    ],
    ids=[
        *("mean", "numel", "channels", "unpacked", "size", "added", "shape"),
        *("numpy", "returned", "scripted", "indexed", "again", "kept"),
    ],
)
def test_what_the_code_around_may_use_stays(around: Around) -> None:
    model = whole(around)
    assert widths(pruned(model).model) == [6, 8]


def test_an_argument_with_other_tensors_stays() -> None:
    class Mixed(Whole):
        def forward(self, x: Tensor) -> Any:
            fine, coarse = self.levels(x).values()
            found = self.heads([fine, coarse + 0])
            return torch.masked_select(found[0], found[0] > found[0].mean())

    torch.manual_seed(0)
    assert widths(pruned(Mixed(lambda *_: None).double().eval()).model) == [6, 8]


def test_a_tensor_that_two_scopes_take_shrinks_for_both_in_the_order_of_their_writes() -> None:
    """The first scope doubles in place what the second one reads."""

    class Shared(Whole):
        def __init__(self) -> None:
            super().__init__(lambda *_: None)
            self.other = nn.Conv2d(8, 3, 1)

        def forward(self, x: Tensor) -> Any:
            levels = self.levels(x)
            found = self.heads(list(levels.values()))
            other = self.other(levels["coarse"])
            return [torch.masked_select(part, part > part.mean()) for part in (*found, other)]

    torch.manual_seed(0)
    model = Shared().double().eval()
    silence(model.levels)
    result = pruned(model, "levels.stem")
    assert result.report.scopes == ("levels", "heads", "other") and widths(result.model) == [3, 4]
    assert result.model.get_parameter("other.weight").shape == (3, 4, 1, 1)
    assert all(max_error(one, two) < 1e-12 for one, two in zip(model(X), result.model(X), strict=True))
    assert graphprune.verify(model, result.model, result.plan, X).passed
