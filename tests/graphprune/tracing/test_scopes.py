"""Scopes: what traces of a model that does not, pruned in place and put back."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphprune
from graphprune.errors import ArtifactError, CaptureError, RewriteError, VerificationError
from graphprune.tracing.parts import put_back
from tests.checking import max_error, state_hash

X = torch.randn(2, 3, 16, 16, dtype=torch.float64)


class Backbone(nn.Module):
    """Two levels in a dict; the code around it reads ``out_channels``."""

    def __init__(self) -> None:
        super().__init__()
        self.out_channels = 6
        self.stem, self.mid, self.down = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 10, 3, padding=1),
            nn.Conv2d(10, 6, 3, stride=2),
        )
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.mid(F.relu(self.norm(self.stem(x))))
        return {"fine": F.relu(y)[:, :6], "coarse": self.down(y)}


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Conv2d(6, 12, 1), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor, scale: Tensor | None = None, *, flip: bool = False) -> Tensor:
        y = F.relu(self.hidden(x))
        y = y if scale is None else y * scale
        result: Tensor = self.out(y.flip(-1) if flip else y)
        return result


class Detector(nn.Module):
    """A whole that looks at data, around a backbone and a head that is called once for each level."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = Backbone(), Head()
        self.bias = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = self.backbone(x)
        assert next(iter(levels.values())).shape[1] == self.backbone.out_channels
        found = [self.head(level, flip=True) for level in levels.values()]
        return [torch.masked_select(part, part > part.mean()) + self.bias[0] for part in found]  # as many as there are


@pytest.fixture
def model() -> Detector:
    torch.manual_seed(0)
    return Detector().double().eval()


def test_scopes_are_found_pruned_together_and_put_back(model: Detector) -> None:
    before = state_hash(model)
    result = graphprune.prune(model, X, target="params=50%")
    assert state_hash(model) == before
    assert result.report.scopes == ("backbone", "head") and result.plan.scopes == ["backbone", "head"]
    assert result.report.verification is not None and result.report.verification.passed
    assert type(result.model) is Detector and set(result.model.state_dict()) == set(model.state_dict())
    size = sum(p.numel() for p in result.model.parameters())
    assert size == result.report.after.parameters + 2 < 0.52 * sum(p.numel() for p in model.parameters())
    assert [part.dim() for part in result.model(X)] == [1, 1]
    assert [part.dim() for part in result.model(torch.randn(1, 3, 20, 24, dtype=torch.float64))] == [1, 1]


def test_the_scopes_compute_what_the_masked_originals_do(model: Detector) -> None:
    """Zeroing what goes, by hand: ReLU keeps zeros, so the masked original is the original with zero weights."""
    result = graphprune.prune(model, X, target="channels=50%", ranking="local", exclude=("backbone.mid",))
    masked = copy.deepcopy(model)
    for name, axes in result.plan.kept.items():
        tensor = masked.state_dict()[name]
        for axis, kept in axes.items():
            gone = [index for index in range(tensor.shape[axis]) if index not in kept]
            tensor.index_fill_(axis, torch.tensor(gone), 0.0)
    levels, slim = masked.backbone(X), result.model.get_submodule("backbone")(X)
    assert list(levels) == list(slim)
    assert max(max_error(levels[key], slim[key]) for key in levels) < 1e-12
    assert max_error(masked.head(levels["fine"], flip=True), result.model.get_submodule("head")(slim["fine"], flip=True)) < 1e-12


def test_a_plan_of_scopes_is_applied_and_verified(model: Detector, tmp_path: Path) -> None:
    result = graphprune.prune(model, X, target="macs=50%")
    result.plan.save(tmp_path / "plan.json")
    again = graphprune.apply_plan(model, X, tmp_path / "plan.json")
    assert state_hash(again.model) == state_hash(result.model)
    assert graphprune.verify(model, result.model, result.plan, X).passed
    with torch.no_grad():
        result.model.get_parameter("head.hidden.weight").mul_(1.5)
    assert not graphprune.verify(model, result.model, result.plan, X).passed


def test_named_scopes_leave_the_rest_alone(model: Detector) -> None:
    result = graphprune.prune(model, X, target="channels=50%", scopes=["head", "head"])
    assert result.report.scopes == ("head",)
    assert all(name.startswith("head.") for name in result.plan.kept)
    assert torch.equal(result.model.get_parameter("backbone.stem.weight"), model.backbone.stem.weight)


def test_a_scope_of_a_model_that_traces(model: Detector) -> None:
    whole = nn.Sequential(model.head, nn.Conv2d(2, 4, 1).double()).eval()
    x = torch.randn(1, 6, 8, 8, dtype=torch.float64)
    result = graphprune.prune(whole, x, target="channels=50%", scopes=["0"])
    assert max_error(result.model(x), result.model.get_submodule("1")(result.model.get_submodule("0")(x))) == 0.0


def test_modes_copies_and_training(model: Detector) -> None:
    model.train()
    slim = graphprune.prune(model, X, target="channels=50%").model
    assert model.training and slim.training and slim.get_submodule("backbone.norm").training
    copied = copy.deepcopy(slim)
    sum(part.sum() for part in slim(X)).backward()
    assert slim.get_parameter("backbone.stem.weight").grad is not None
    assert copied.get_parameter("backbone.stem.weight").grad is None
    slim.eval()
    assert not slim.get_submodule("backbone.norm").training


class Counting(nn.Module):
    """A batch norm that looks at the mode itself, and counts its batches."""

    mean: Tensor
    var: Tensor
    batches: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 1)
        self.weight = nn.Parameter(torch.rand(8))
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.batches.add_(1)
        result: Tensor = self.out(F.batch_norm(self.conv(x), self.mean, self.var, self.weight, training=self.training))
        return result


def test_scopes_that_follow_the_mode_count_their_own_batches() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Counting(), Counting()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.first(x)
            for _ in range(2 if y.sum() > 1e9 else 1):
                y = self.second(y)
            return y

    model = Whole().double().eval()
    result = graphprune.prune(model, X, target="channels=50%", ranking="local")
    assert result.report.scopes == ("first", "second")
    slim: Any = result.model
    slim(X)
    assert int(slim.first.batches) == int(slim.second.batches) == 0
    slim.train()(X)
    assert int(slim.first.batches) == int(slim.second.batches) == 1 and int(model.first.batches) == 0
    assert bool(slim.first.mean.any()) and bool(slim.second.mean.any())


def test_optional_and_keyword_arguments_of_a_scope() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = Head()

        def forward(self, x: Tensor, scale: Tensor | None) -> Tensor:
            y: Tensor = self.head(x, scale=scale) if scale is not None else self.head(x, None)
            return torch.masked_select(y, y > 0)

    model, x = Whole().double().eval(), torch.randn(1, 6, 4, 4, dtype=torch.float64)
    for scale in (None, torch.rand(1, 1, 4, 4, dtype=torch.float64)):
        result = graphprune.prune(model, (x, scale), target="channels=50%")
        assert result.report.scopes == ("head",)
        assert result.model(x, scale).dim() == 1


def test_a_call_with_more_than_tensors_is_searched_inside() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Head()

        def forward(self, x: Tensor, size: int) -> Tensor:
            result: Tensor = self.inner(F.interpolate(x, size=(size, size)))
            return result

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sized = Sized()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.sized(x, 4 if x.sum() > 0 else 5)
            return y

    x = torch.randn(1, 6, 8, 8, dtype=torch.float64)
    program = graphprune.capture(Whole().double().eval(), x)
    assert [scope.path for scope in program.scopes] == ["sized.inner"]
    with pytest.raises(CaptureError, match="'sized' is called with something other than tensors"):
        graphprune.capture(Whole().double().eval(), x, scopes=["sized"])


def test_a_module_that_another_part_shares_is_no_scope() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Head(), Head()
            self.second.hidden = self.first.hidden

        def forward(self, x: Tensor) -> Tensor:
            y = torch.cat([self.first(x), self.second(x)], 1)
            return torch.masked_select(y, y > 0)

    x = torch.randn(1, 6, 8, 8, dtype=torch.float64)
    model = Whole().double().eval()
    result = graphprune.prune(model, x, target="channels=50%")
    assert result.report.scopes == ("first", "second.out")
    assert result.model(x).dim() == 1
    with pytest.raises(CaptureError, match=r"'second' uses first\.hidden, which lies outside of it"):
        graphprune.capture(model, x, scopes=["second"])


@pytest.mark.parametrize(
    ("name", "message"),
    [("neck", "'neck' is no submodule of Detector"), ("backbone.norm.x", "no submodule"), ("spare", "not called")],
)
def test_scopes_that_cannot_be(model: Detector, name: str, message: str) -> None:
    model.spare = nn.Linear(2, 2)
    with pytest.raises(CaptureError, match=message):
        graphprune.capture(model, X, scopes=[name])


def test_a_scoped_result_is_no_exported_program(model: Detector, tmp_path: Path) -> None:
    result = graphprune.prune(model, X, target="channels=50%")
    with pytest.raises(ArtifactError, match="backbone, head"):
        graphprune.save(result, tmp_path / "slim.pt2")
    assert list(tmp_path.iterdir()) == []


class _Asked(Head):
    def levels(self) -> float:
        return 2.0


class _Asking(nn.Module):
    """Around a scope, code that calls a method of it, and looks at data."""

    def __init__(self) -> None:
        super().__init__()
        self.head = _Asked()

    def forward(self, x: Tensor) -> Any:
        y = self.head(x) * self.head.levels()
        return y if y.sum() > 0 else -y


def test_a_model_that_does_not_run_around_its_slim_scopes_is_refused() -> None:
    model, x = _Asking().double().eval(), torch.randn(2, 6, 4, 4, dtype=torch.float64)
    with pytest.raises(VerificationError, match="_Asking does not run around its slim scopes: AttributeError"):
        graphprune.prune(model, x, target="channels=50%")
    assert graphprune.prune(model, x, target="channels=50%", verify=False).report.scopes == ("head",)


class _Looking(nn.Module):
    """Blocks, between which it looks at data."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 8)) for _ in range(2))

    def forward(self, x: Tensor) -> Any:
        for block in self.blocks:
            x = block(x)
            x = x if x.sum() > 0 else -x
        return x


def test_a_whole_with_much_of_it_in_a_leaf_is_pruned_inside_of_it() -> None:
    """What is around the leaf is one scope, so that nothing is parted; where it is several, and holds more, the whole is taken."""
    x, inner = torch.randn(3, 8, dtype=torch.float64), {"body.blocks.0", "body.blocks.1"}
    for width, parts, scopes in ((64, 1, {"head"}), (4, 1, {"head"}), (64, 2, {"head", "head2"}), (4, 2, None)):
        heads = {"head": nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 8))}
        if parts == 2:
            heads["head2"] = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 2))
        model = nn.Sequential(OrderedDict(body=_Looking(width), **heads)).double()
        result = graphprune.prune(model, x, target="channels=50%", ranking="local")
        assert {scope.path for scope in result.scopes} == (set() if scopes is None else inner | scopes)
        cut = {name for name, (before, after) in result.report.widths.items() if after < before}
        assert cut >= ({"head.0", "head2.0"} if scopes is None else {f"{path}.0" for path in inner | scopes})
        assert (result.report.untraced != "") == (scopes is not None)


def test_nothing_that_traces_is_an_error_that_says_where() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

        def forward(self, x: Tensor) -> Any:
            return x * self.weight if x.sum() > 0 else x

    with pytest.raises(CaptureError, match=r"Bare.forward does not trace at .*test_scopes.py:\d+"):
        graphprune.capture(Bare(), torch.zeros(1, 6))


def test_a_graph_without_a_result_for_each_scope_is_not_put_back(model: Detector) -> None:
    result = graphprune.prune(model, X, target="channels=50%")
    scopes = graphprune.capture(model, X).scopes
    output = result.graph.graph.output_node()
    whole: Any = output.args[0]
    for results in (whole[:1], whole[0]):
        output.args = (results,)
        with pytest.raises(RewriteError, match="does not make a result for each of backbone, head"):
            put_back(model, result.graph, scopes)


class _Batch:
    """Images of one size; of no class that a trace knows."""

    def __init__(self, tensors: Tensor) -> None:
        self.tensors = tensors


class _Transform(nn.Module):
    """Without parameters, as detectors have it: it asks for its mode, and makes an object."""

    def forward(self, images: list[Tensor]) -> tuple[_Batch, None]:
        size = 12 if self.training else 8
        return _Batch(torch.stack([F.interpolate(image[None], (size, size))[0] for image in images])), None


class _Detecting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transform, self.stem, self.out = _Transform(), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)

    def forward(self, images: list[Tensor]) -> Tensor:
        batch, _ = self.transform(images)
        result: Tensor = self.out(F.relu(self.stem(batch.tensors)))
        return result


def test_a_module_without_tensors_that_returns_an_object_is_traced_through() -> None:
    images = [torch.rand(3, 9, 10, dtype=torch.float64), torch.rand(3, 12, 9, dtype=torch.float64)]
    result = graphprune.prune(_Detecting().double(), (images,), target="channels=50%")
    assert not result.scopes and not result.report.opaque and result.report.widths["stem"] == (8, 4)
    assert set(result.report.eval_only) == {"_Detecting"}
