"""What a proof runs on: random numbers, twice the digits where rounding decides, and models that stand neither."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import graphprune
from graphprune.errors import CaptureError, VerificationError
from tests.checking import analyse
from tests.zoo.case import conv, net

INPUT = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_constant_statistics_hide_nothing() -> None:
    """A fresh norm has means of zero and scales of one; a model that forgets to slice its running mean must fail."""
    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 2)).double().eval()
    found = analyse(model, INPUT)
    plan = found.random_plan(0)
    slim: Any = graphprune.apply_plan(model, INPUT, plan, verify=False).model
    verdict = graphprune.verify(model, slim, plan, INPUT)
    assert verdict.passed and verdict.randomised >= 4

    norm: Any = slim.get_submodule("1")

    def unnormalised(x: Tensor) -> Tensor:
        return F.batch_norm(x, torch.zeros_like(norm.running_mean), norm.running_var, norm.weight, norm.bias)

    norm.forward = unnormalised
    verdict = graphprune.verify(model, slim, plan, INPUT)
    assert not verdict.passed and "Node _1 (" in verdict.failure


def test_errors_too_small_to_reach_the_output_are_found() -> None:
    """A layer scale of 1e-12 hides the branch from the output, not from its own node."""

    def forward(self: Any, x: Tensor) -> Any:
        return self.head(x + self.scale * self.b(self.a(x)))

    model = net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 4), scale=nn.Parameter(torch.rand(4) * 1e-12), head=nn.Linear(4, 2))
    x = torch.randn(3, 4, dtype=torch.float64)
    found = analyse(model, x)
    result: Any = graphprune.apply_plan(model, x, found.random_plan(0), verify=False)
    result.model.b.forward = lambda t, f=result.model.b: F.linear(t, -f.weight, f.bias)
    verdict = graphprune.verify(model, result.model, result.plan, x)
    assert not verdict.passed and "Node b (" in verdict.failure


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zeros_to_rounding_differ_by_nothing(dtype: torch.dtype) -> None:
    """A layer norm over copies of one kept channel gives zeros, whose digits are rounding; another value there is found."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        return self.head(F.layer_norm(torch.cat([y, y, y], -1), (24,)))

    model = net(forward, a=nn.Linear(4, 8), head=nn.Linear(24, 2)).to(dtype)
    x = torch.randn(3, 4, dtype=dtype)
    result: Any = graphprune.prune(model, x, target={"channels": 0.125}, verify=False)
    assert result.model.a.out_features == 1
    for seed in range(8):
        assert graphprune.verify(model, result.model, result.plan, x, seed=seed).passed
    result.model.a.forward = lambda t, a=result.model.a: F.linear(t, a.weight, a.bias) * (1 + 1e-3)
    assert not graphprune.verify(model, result.model, result.plan, x).passed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_choice_by_what_is_zero_to_rounding_falls_either_way(dtype: torch.dtype) -> None:
    """The slim model is judged by what it makes of the original's choice; making something else of it is found."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        zero = F.layer_norm(y, (8,)).sum(-1, keepdim=True)
        return self.head(torch.where(zero > 0, y, -y))

    model = net(forward, a=nn.Linear(4, 8), head=nn.Linear(8, 2)).to(dtype)
    x = torch.randn(32, 4, dtype=dtype)
    result: Any = graphprune.prune(model, x, target="channels=50%", verify=False)
    assert graphprune.verify(model, result.model, result.plan, x).passed
    result.model.head.forward = lambda t, head=result.model.head: F.linear(t, head.weight, head.bias) * (1 + 1e-3)
    assert not graphprune.verify(model, result.model, result.plan, x).passed


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10), (torch.bfloat16, 5e-2)])
def test_tolerance_follows_the_dtype(dtype: torch.dtype, tolerance: float) -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)).to(dtype)
    x = torch.randn(2, 4, dtype=dtype)
    found = analyse(model, x)
    plan = found.random_plan(0)
    verdict = graphprune.verify(model, graphprune.apply_plan(model, x, plan, verify=False).model, plan, x)
    assert verdict.tolerance == tolerance and verdict.passed and verdict.error < tolerance


class _Steep(nn.Module):
    """What rounding makes of sums is made much larger."""

    def __init__(self, steepness: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 1024), nn.Linear(1024, 8)
        self.steepness = steepness

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (n, 16) and (n, 8)."""
        return torch.sin(self.steepness * self.second(F.relu(self.first(x))))


def test_a_model_that_is_steep_is_told_from_one_that_is_wrong_by_twice_the_digits() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 16)
    model = _Steep(1e7)
    result = graphprune.prune(model, x, target="channels=50%", verify=False)
    found = graphprune.verify(model, result.model, result.plan, x)
    assert found.passed and found.tolerance == 1e-10
    wrong = result.graph
    for item in wrong.graph.nodes:  # the same error as a share of the output, in whatever dtype
        if item.op == "call_function" and item.target is operator.mul:
            item.args = tuple(arg if isinstance(arg, fx.Node) else 1.0001e7 for arg in item.args)
    wrong.recompile()
    assert not graphprune.verify(model, wrong, result.plan, x).passed


def test_random_numbers_of_eval_mode_are_the_same_for_both_and_the_users_go_on_as_they_were() -> None:
    """A masked autoencoder draws which patches it sees."""

    class Draws(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Any:
            order = torch.rand(x.shape[:2]).argsort(1)
            return self.b(self.a(x).gather(1, order[:, :3, None].expand(-1, -1, 6)) + torch.rand(()))

    model, x = Draws(), torch.randn(2, 5, 4)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    result = graphprune.prune(model, x, target="channels=50%")
    assert result.report.widths == {"a": (6, 3)}
    assert graphprune.verify(model, result.model, result.plan, x).passed
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("draw", [torch.randn_like, lambda y: y.clone().normal_(), lambda y: torch.bernoulli(y.sigmoid())])
def test_random_numbers_do_not_depend_on_the_layout_of_what_they_are_drawn_like(draw: Any) -> None:
    """An autoencoder with attention samples its latents: convolutions lay out their results by the width of what they read."""

    class Samples(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mix, self.latent, self.out = conv(3, 32), nn.Linear(32, 32), nn.Conv2d(32, 4, 1), conv(4, 3)

        def forward(self, x: Tensor) -> Any:
            h = self.stem(x)
            mixed = self.mix(h.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, h.shape[2:])
            latent = self.latent(mixed)
            return self.out(latent + draw(latent))

    result = graphprune.prune(Samples().eval(), INPUT.float(), target="channels=50%", ranking="local")
    assert result.report.verification is not None and result.report.verification.passed


def test_numbers_that_are_cast_to_indices_stay_those_of_the_example() -> None:
    """Tables of recommenders: columns of indices and of numbers in one tensor. What is drawn is no index."""

    def forward(self: Any, x: Tensor) -> Any:
        return self.b(torch.cat([self.table(x[:, 0].long()), self.a(x[:, 1:])], 1))

    model = net(forward, table=nn.Embedding(5, 8), a=nn.Linear(3, 8), b=nn.Linear(16, 2))
    x = torch.cat([torch.tensor([[1.0], [4.0]]), torch.randn(2, 3)], 1).double()
    found = graphprune.prune(model, x, target="channels=50%")
    assert found.report.verification is not None and found.report.verification.error < 1e-10
    assert found.report.verification.compared > 4 and set(found.report.widths) == {"table", "a"}


def test_a_model_that_runs_on_nothing_drawn_is_not_proved() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        return self.b(self.a(x) + self.table((x[:, 0] * 10).long()))

    model = net(forward, table=nn.Embedding(5, 8), a=nn.Linear(3, 8), b=nn.Linear(8, 2))
    x = torch.full((2, 3), 0.25, dtype=torch.float64)
    with pytest.raises(VerificationError, match=r"does not run on random numbers .* IndexError"):
        graphprune.prune(model, x, target="channels=50%")
    assert graphprune.prune(model, x, target="channels=50%", verify=False).report.verification is None


def test_ids_that_a_table_does_not_have_are_named_as_such() -> None:
    model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    for ids in ([[1, 7]], [[-1, 2]]):
        with pytest.raises(
            CaptureError, match=r"on its example inputs \(int64\[1x2\]\): node _0 .* IndexError: .* ids that its tables"
        ):
            graphprune.prune(model, torch.tensor(ids), target="channels=50%")


class _Modes(nn.Module):
    """A layer that no trace follows and that refuses to run within a mode of torch, as compiled attention does."""

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(x.sum().item(), float)
        if any(type(mode).__name__ == "MissingData" for mode in _get_current_dispatch_mode_stack()):
            raise NotImplementedError("no rule for this mode")
        return x * 2


def test_what_does_not_trace_runs_as_it_is_where_nothing_missing_reaches_it() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        return self.d(self.c(self.opaque(self.b(self.a(x)))))

    layers = {name: nn.Linear(*sizes) for name, sizes in {"a": (3, 8), "b": (8, 5), "c": (5, 8), "d": (8, 2)}.items()}
    model = net(forward, **layers, opaque=_Modes())
    result = graphprune.prune(model, torch.randn(2, 3, dtype=torch.float64), target="channels=50%", ranking="local")
    assert list(result.report.opaque) == ["opaque"]
    assert result.report.widths == {"a": (8, 4), "c": (8, 4)}
    assert result.report.verification is not None and result.report.verification.passed


class _Averaged(nn.Module):
    """A mean over the tokens that are no padding: of none where all ids are zero."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.hidden, self.head = nn.Embedding(10, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, ids: Tensor) -> Tensor:
        mask = (ids > 0).to(self.head.weight.dtype).unsqueeze(-1)
        hidden = self.hidden(self.words(ids)).relu()
        return self.head((hidden * mask).sum(1) / mask.sum(1))  # type: ignore[no-any-return]


def test_an_original_that_gives_nan_by_itself_is_named_with_the_node_and_its_line() -> None:
    model, ids = _Averaged().double().eval(), torch.zeros(2, 5, dtype=torch.int64)
    with pytest.raises(
        VerificationError, match=r"original itself gives NaN, first in node truediv .*test_numbers\.py:\d+.*verify=False"
    ):
        graphprune.prune(model, ids, target="channels=50%")
    assert graphprune.prune(model, ids + 1, target="channels=50%").report.verification.passed  # type: ignore[union-attr]


def test_an_error_in_a_model_with_numbers_is_no_matter_of_the_original() -> None:
    model, ids = _Averaged().double().eval(), torch.ones(2, 5, dtype=torch.int64)
    result: Any = graphprune.prune(model, ids, target="channels=50%")
    result.model.hidden.forward = lambda x, own=result.model.hidden: F.linear(x, own.weight) * torch.nan
    failure = graphprune.verify(model, result.model, result.plan, ids).failure
    assert failure and "original itself" not in failure
