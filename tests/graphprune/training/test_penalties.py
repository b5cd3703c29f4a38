"""Penalties are part of the loss: every optimiser step sees the gradient that autograd gives for loss plus penalty."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from graphprune.errors import UsageError
from graphprune.tracing import capture
from graphprune.training.penalties import L1, GroupL2, Orthogonality, Penalty, Sum, convolution_weights, penalised

OPTIMISERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01),
}
PENALTIES: dict[str, Penalty] = {
    "l1": L1(0.01),
    "l1-weights": L1(0.01, biases=False),
    "orthogonality": Orthogonality(0.1),
    "orthogonality-wide": Orthogonality(0.1, padding=2),
    "group": GroupL2({"0.weight": {0: torch.arange(4.0)}, "2.weight": {1: torch.arange(4.0)}, "0.bias": {0: torch.ones(4)}}, 0.3),
    "sum": Sum((L1(0.01), Orthogonality(0.1))),
}


def _net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
    ).double()


def _batches(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        x = torch.randn(5, 2, 6, 6, generator=generator, dtype=torch.float64)
        yield x, torch.randint(3, (5,), generator=generator)


def _train(model: nn.Module, optimiser: Optimizer, extra: Penalty | None = None, accumulate: int = 1) -> None:
    """Six batches; ``extra`` is part of the loss."""
    for index, (x, y) in enumerate(_batches(6)):
        loss = F.cross_entropy(model(x), y) + (0 if extra is None else extra.value(model))
        torch.autograd.backward(loss / accumulate)
        if (index + 1) % accumulate == 0:
            optimiser.step()
            optimiser.zero_grad()


def _same(one: nn.Module, other: nn.Module) -> None:
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_training_is_that_of_loss_plus_penalty(penalty: str, optimiser: str, accumulate: int) -> None:
    hooked, plain = (model := _net()), copy.deepcopy(model)
    _train(plain, OPTIMISERS[optimiser](list(plain.parameters())), PENALTIES[penalty], accumulate)
    with penalised(hooked, PENALTIES[penalty]):
        _train(hooked, OPTIMISERS[optimiser](list(hooked.parameters())), accumulate=accumulate)
    _same(hooked, plain)


def test_the_penalty_changes_the_training_and_is_gone_after_the_block() -> None:
    before, during, after = (model := _net()), copy.deepcopy(model), copy.deepcopy(model)
    _train(before, OPTIMISERS["sgd"](list(before.parameters())))
    with pytest.raises(KeyError), penalised(after, L1(0.1)):
        raise KeyError("the loop fails")
    _train(after, OPTIMISERS["sgd"](list(after.parameters())))
    with penalised(during, L1(0.1)):
        _train(during, OPTIMISERS["sgd"](list(during.parameters())))
    _same(before, after)
    assert not torch.equal(during.get_parameter("0.weight"), before.get_parameter("0.weight"))


def test_optimisers_of_other_parameters_are_left_alone_and_several_share_one_model() -> None:
    model, other = _net(), nn.Linear(2, 2, bias=False).double()
    whole = copy.deepcopy(model)
    weight = other.weight.detach().clone()
    halves = [torch.optim.SGD(part.parameters(), 0.1) for part in (model[0], model[2])]
    with penalised(model, L1(0.5)):
        torch.optim.SGD(other.parameters(), 0.1).step()
        assert other.weight.grad is None and torch.equal(other.get_parameter("weight"), weight)
        for optimiser in halves:
            optimiser.step()
    assert model[5].weight.grad is None, "no optimiser steps it"
    with penalised(whole, L1(0.5)):
        torch.optim.SGD([*whole[0].parameters(), *whole[2].parameters()], 0.1).step()
    _same(model, whole)


def test_parameters_without_a_gradient_get_that_of_the_penalty_and_frozen_ones_none() -> None:
    model = _net()
    first, second = model.get_parameter("0.weight"), model.get_parameter("2.weight")
    second.requires_grad_(False)
    before, frozen = first.detach().clone(), second.detach().clone()
    with penalised(model, L1(0.5)):
        torch.optim.SGD(model.parameters(), 0.1).step()
    torch.testing.assert_close(first, before - 0.05 * before.sign())
    assert torch.equal(second, frozen) and second.grad is None


def test_a_closure_counts_the_penalty_each_time_it_is_called() -> None:
    x, y = next(_batches(1))
    results = []
    for inside in (True, False):
        torch.manual_seed(0)
        model = _net()
        optimiser = torch.optim.LBFGS(model.parameters(), max_iter=4, line_search_fn="strong_wolfe")
        penalty = Orthogonality(0.1)

        def loss(model: nn.Module = model, extra: Penalty | None = penalty if inside else None) -> Tensor:
            model.zero_grad()
            value = F.cross_entropy(model(x), y) + (0 if extra is None else extra.value(model))
            torch.autograd.backward(value)
            return value

        if inside:
            optimiser.step(loss)
        else:
            with penalised(model, penalty):
                optimiser.step(loss)
        results.append(model)
    torch.testing.assert_close(results[0][0].weight, results[1][0].weight, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fused", [False, True])
def test_a_loss_scaler_scales_the_penalty_with_the_gradients(fused: bool) -> None:
    """The scaler unscales before the step, except for fused optimisers, which do it themselves."""
    scaled, plain = (model := _net().float()), copy.deepcopy(model)
    x, y = (part.float() if part.is_floating_point() else part for part in next(_batches(1)))
    for model, scale in ((scaled, 1024.0), (plain, 1.0)):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        optimiser = torch.optim.SGD(model.parameters(), 0.1, fused=fused)
        with penalised(model, L1(0.1)):
            torch.autograd.backward(scaler.scale(F.cross_entropy(model(x), y)))
            scaler.step(optimiser)
    for a, b in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


class _Lookahead(Optimizer):
    """Steps another optimiser inside its own step, as wrappers of optimisers do."""

    def __init__(self, inner: Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.inner = inner

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.inner.step()


def test_an_optimiser_that_steps_another_counts_once() -> None:
    wrapped, plain = (model := _net()), copy.deepcopy(model)
    with penalised(wrapped, L1(0.5)), penalised(plain, L1(0.5)):
        _train(wrapped, _Lookahead(torch.optim.SGD(wrapped.parameters(), 0.1)))
        _train(plain, torch.optim.SGD(plain.parameters(), 0.1))
    _same(wrapped, plain)


def test_orthogonal_filters_cost_nothing_and_parallel_ones_what_the_definition_says() -> None:
    model = nn.Conv2d(2, 2, 3, bias=False).double()
    weight = torch.zeros_like(model.weight)
    weight[0, 0, 1, 1] = weight[1, 1, 1, 1] = 1
    with torch.no_grad():
        model.weight.copy_(weight)
        assert Orthogonality(1.0).value(model).item() == 0
        model.weight[1] = model.weight[0] * 3  # overlaps [[1, 3], [3, 9]] against the identity
    assert Orthogonality(0.5).value(model).item() == pytest.approx(0.5 * (9 + 9 + 64) ** 0.5)


class _Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.table = nn.Parameter(torch.randn(1, 4, 8, 8))
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.pointwise = nn.Conv2d(4, 5, 1)
        self.up = nn.ConvTranspose2d(5, 4, 3)
        self.last = nn.Conv2d(4, 2, (1, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.kernel, padding=1) + self.table
        result: Tensor = self.last(self.up(self.pointwise(self.depthwise(x))))
        return result


def test_convolutions_are_found_in_modules_and_in_calls_and_nothing_else_is() -> None:
    model = _Functional()
    graph = capture(model, torch.randn(1, 3, 8, 8)).module
    assert convolution_weights(model) == [model.last.weight]
    found = convolution_weights(graph)
    assert {id(weight) for weight in found} == {id(model.last.weight), id(model.kernel)}


def test_biases_may_be_left_out_of_the_l1_penalty_and_scales_are_not() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    for parameter in model.parameters():
        nn.init.constant_(parameter, -1.0)
    assert L1(0.5).value(model).item() == 4.0 and L1(0.5, biases=False).value(model).item() == 2.0


def test_a_tied_tensor_under_two_names_counts_once_in_the_group_penalty() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    row = {0: torch.tensor([1.0, 0.0])}
    value = GroupL2({"0.weight": row, "1.weight": row}).value(model)
    torch.testing.assert_close(value, model.get_parameter("0.weight")[0].square().sum())


@pytest.mark.parametrize(
    ("penalty", "words"),
    [
        (Orthogonality(), "no convolution"),
        (GroupL2({"weight": {0: torch.ones(3)}}), "3 coefficients for axis 0 of weight, which has the shape"),
        (GroupL2({"kernel": {0: torch.ones(2)}}), "kernel, which is missing"),
        (GroupL2({}), "no coefficients"),
    ],
)
def test_a_penalty_that_does_not_fit_the_model_is_refused(penalty: Penalty, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        penalty.value(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="no parameters that are trained"):
        L1().value(nn.ReLU())
