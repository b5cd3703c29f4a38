"""Verification fails for every wrong slim model, and names the first node that is wrong; right ones pass.

Each mutation is what a faulty rewriter would do: a constant, an attribute or an index that did not follow the plan.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import graphprune
from graphprune.errors import PlanError, VerificationError
from graphprune.ir.twins import named_tensors
from graphprune.plans.plan import Plan
from tests.checking import Analysed, analyse, state_hash
from tests.zoo.case import conv, net, ready

INPUT = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def subject() -> Analysed:
    """A model with one of each: slices, split, pad, groups, shuffle, norms, attention scale, in a chain."""

    def forward(self: Any, x: Tensor) -> Any:
        x = F.relu(self.norm(self.stem(x)))
        x = self.grouped(x)
        left, right = torch.split(x, [4, 8], 1)
        x = torch.cat([self.left(left), self.right(right)], 1)
        x = F.channel_shuffle(x, 2)
        x = F.relu(self.mix(x)) + F.pad(x[:, 2:6], (0, 0, 0, 0, 1, 3))
        y = x.flatten(2).transpose(1, 2)
        y = F.layer_norm(y, (8,), self.weight, self.bias, 1e-5)
        q, k = self.q(y), self.k(y)
        y = torch.softmax(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, -1) @ y
        return self.head(y)

    model = net(
        forward,
        stem=conv(3, 12),
        norm=nn.BatchNorm2d(12),
        grouped=conv(12, 12, groups=3),
        left=conv(4, 6),
        right=conv(8, 6),
        mix=conv(12, 8),
        weight=nn.Parameter(torch.rand(8) + 0.5),
        bias=nn.Parameter(torch.rand(8)),
        q=nn.Linear(8, 6),
        k=nn.Linear(8, 6),
        head=nn.Linear(8, 3),
    )
    ready(model)
    return analyse(model, INPUT)


@pytest.fixture
def pruned() -> tuple[Analysed, Any]:
    found = subject()
    return found, graphprune.apply_plan(found.model, INPUT, found.random_plan(5), verify=False)


def node(model: fx.GraphModule, target: Any, index: int = 0) -> Any:
    """The index-th node with this target."""
    return [n for n in model.graph.nodes if n.target == target][index]


Mutation = Callable[[Any], str]
MUTATIONS: dict[str, Mutation] = {}


def mutation(change: Mutation) -> Mutation:
    """Register a change of the slim model; it returns the name of the first node that comes out wrong."""
    MUTATIONS[change.__name__] = change
    return change


@mutation
def stale_attribute_of_batch_norm(slim: Any) -> str:
    slim.norm.eps = 0.1
    return "norm"


@mutation
def other_number_of_groups(slim: Any) -> str:
    slim.grouped.groups = 1
    return "grouped"


@mutation
def swapped_halves_of_a_split(slim: Any) -> str:
    parts = (
        node(slim, torch.functional.split)
        if any(n.target is torch.functional.split for n in slim.graph.nodes)
        else node(slim, torch.split)
    )
    sizes = list(parts.args[1])
    parts.args = (parts.args[0], [sizes[0] - 1, sizes[1] + 1] if sizes[0] > 1 else [sizes[0] + 1, sizes[1] - 1])
    return ""


@mutation
def parts_taken_the_other_way_round(slim: Any) -> str:
    left, right = node(slim, operator.getitem, 0), node(slim, operator.getitem, 1)
    left.args, right.args = (left.args[0], 1), (right.args[0], 0)
    return ""


@mutation
def concatenated_the_other_way_round(slim: Any) -> str:
    cat = node(slim, torch.cat)
    cat.args = (list(reversed(cat.args[0])), *cat.args[1:])
    return str(cat.name)


@mutation
def permuted_index_of_the_shuffle(slim: Any) -> str:
    select = node(slim, torch.index_select)
    index = slim.get_buffer(str(select.args[2].target))
    index.copy_(index.flip(0))
    return "mix"  # the original has no such node: its reader is the first that can be compared


def _slice(slim: Any) -> Any:
    return next(n for n in slim.graph.nodes if n.target is operator.getitem and isinstance(n.args[1], tuple))


@mutation
def slice_bounds_moved_by_one(slim: Any) -> str:
    cut = _slice(slim)
    window = cut.args[1][1]
    step = 1 if window.start == 0 else -1
    cut.args = (cut.args[0], (slice(None), slice(window.start + step, window.stop + step)))
    return str(cut.name)


@mutation
def padding_moved_by_one(slim: Any) -> str:
    pad = next(n for n in slim.graph.nodes if n.op == "call_function" and getattr(n.target, "__name__", "") == "pad")
    amounts = list(pad.args[1])
    step = 1 if amounts[5] > 0 else -1
    pad.args = (pad.args[0], (*amounts[:4], amounts[4] + step, amounts[5] - step), *pad.args[2:])
    return ""


@mutation
def another_epsilon(slim: Any) -> str:
    norm = node(slim, F.layer_norm)
    norm.args = norm.args[:4]
    norm.kwargs = {**norm.kwargs, "eps": 1e-2}
    return str(norm.name)


@mutation
def scale_that_follows_the_width(slim: Any) -> str:
    """The classic: ``q.shape[-1] ** -0.5`` of the slim q."""
    soft = node(slim, torch.softmax)
    scaled = soft.args[0]
    width = slim.q.out_features
    scaled.args = (scaled.args[0], width**-0.5)
    return str(scaled.name)


@mutation
def dropped_relu(slim: Any) -> str:
    relu = node(slim, F.relu, 1)
    relu.replace_all_uses_with(relu.args[0])
    slim.graph.erase_node(relu)
    return ""


@mutation
def columns_of_a_weight_the_wrong_way(slim: Any) -> str:
    slim.head.forward = lambda y, f=slim.head: F.linear(y, f.weight.flip(1), f.bias)
    return "head"


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_constant_is_found_where_it_is(name: str, pruned: tuple[Analysed, Any]) -> None:
    found, result = pruned
    first = MUTATIONS[name](result.model)
    result.model.graph.lint()
    result.model.recompile()
    verdict = graphprune.verify(found.model, result.model, result.plan, INPUT)
    assert not verdict.passed and verdict.failure
    assert re.search(rf"\b{first}\b", verdict.failure), verdict.failure
    assert verdict.error > 1e-3
    with pytest.raises(VerificationError):
        verdict.check()


def _tensors(model: fx.GraphModule) -> list[str]:
    return [name for name, tensor in named_tensors(model).items() if tensor.is_floating_point() and tensor.numel() > 1]


def test_every_permuted_tensor_is_named(pruned: tuple[Analysed, Any]) -> None:
    found, result = pruned
    for name in _tensors(result.model):
        tensor = named_tensors(result.model)[name]
        axis = next(a for a, n in enumerate(tensor.shape) if n > 1)
        before = tensor.detach().clone()
        tensor.data = before.roll(1, axis)
        verdict = graphprune.verify(found.model, result.model, result.plan, INPUT)
        assert not verdict.passed and f" {name} " in verdict.failure
        tensor.data = before
    assert graphprune.verify(found.model, result.model, result.plan, INPUT).passed


def test_a_last_bit_of_a_weight_is_found(pruned: tuple[Analysed, Any]) -> None:
    found, result = pruned
    with torch.no_grad():
        weight = result.model.head.weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0, dtype=weight.dtype))
    verdict = graphprune.verify(found.model, result.model, result.plan, INPUT)
    assert not verdict.passed and "head.weight" in verdict.failure
    assert graphprune.verify(found.model, result.model, result.plan, INPUT, weights=False).passed, "its structure is right"


def test_a_trained_slim_model_has_a_structure_to_verify(pruned: tuple[Analysed, Any]) -> None:
    found, result = pruned
    with torch.no_grad():
        for parameter in result.model.parameters():
            parameter.add_(0.1)
    assert not graphprune.verify(found.model, result.model, result.plan, INPUT).passed
    assert graphprune.verify(found.model, result.model, result.plan, INPUT, weights=False).passed
    result.model.grouped.groups = 1
    verdict = graphprune.verify(found.model, result.model, result.plan, INPUT, weights=False)
    assert not verdict.passed and "grouped" in verdict.failure


def test_a_dropped_bias_is_found(pruned: tuple[Analysed, Any]) -> None:
    found, result = pruned
    result.model.mix.bias = None
    verdict = graphprune.verify(found.model, result.model, result.plan, INPUT)
    assert not verdict.passed and "mix" in verdict.failure


def test_an_added_tensor_is_found(pruned: tuple[Analysed, Any]) -> None:
    found, result = pruned
    result.model.q.register_parameter("extra", nn.Parameter(torch.zeros(2)))
    verdict = graphprune.verify(found.model, result.model, result.plan, INPUT)
    assert not verdict.passed and "q.extra" in verdict.failure


@pytest.mark.parametrize("tensor", ["stem.weight", "mix.weight", "q.weight", "right.weight"])
def test_kept_indices_off_by_one_are_found(tensor: str, pruned: tuple[Analysed, Any]) -> None:
    """The plan says one thing and the model did another, for one tensor of a unit."""
    found, result = pruned
    kept = {name: dict(axes) for name, axes in result.plan.kept.items()}
    axis = max(kept[tensor])
    size = named_tensors(found.model)[tensor].shape[axis]
    kept[tensor][axis] = sorted((i + 1) % size for i in kept[tensor][axis])
    plan = result.plan.model_copy(update={"kept": kept})
    verdict = graphprune.verify(found.model, result.model, plan, INPUT)
    assert not verdict.passed and tensor in verdict.failure


def test_consistent_tensors_of_an_inconsistent_plan_are_found(pruned: tuple[Analysed, Any]) -> None:
    """Weights that are the slices of a plan which couples wrongly: only the computation can tell."""
    found, result = pruned
    kept = {name: dict(axes) for name, axes in result.plan.kept.items()}
    wrong = kept["mix.weight"][1]
    size = named_tensors(found.model)["mix.weight"].shape[1]
    kept["mix.weight"][1] = sorted((i + 1) % size for i in wrong)
    plan = result.plan.model_copy(update={"kept": kept})
    with torch.no_grad():
        full = found.model.mix.weight.index_select(1, torch.tensor(kept["mix.weight"][1]))
        result.model.mix.weight.copy_(full.index_select(0, torch.tensor(kept["mix.weight"].get(0, list(range(8))))))
    verdict = graphprune.verify(found.model, result.model, plan, INPUT)
    assert not verdict.passed and "Node mix (" in verdict.failure, verdict.failure


def test_another_model_than_the_plans_is_refused(pruned: tuple[Analysed, Any]) -> None:
    _, result = pruned
    with pytest.raises(PlanError, match="does not fit"):
        graphprune.verify(nn.Conv2d(3, 3, 1).double(), result.model, result.plan, INPUT)


def test_nothing_is_modified(pruned: tuple[Analysed, Any]) -> None:
    found, result = pruned
    found.model.train()
    result.model.train()
    before = state_hash(found.model), state_hash(result.model), INPUT.clone()
    graphprune.verify(found.model, result.model, result.plan, INPUT)
    assert before[:2] == (state_hash(found.model), state_hash(result.model)) and torch.equal(before[2], INPUT)


def test_the_seed_decides_the_inputs(pruned: tuple[Analysed, Any]) -> None:
    found, result = pruned
    one, two, other = (graphprune.verify(found.model, result.model, result.plan, INPUT, seed=s).error for s in (1, 1, 2))
    assert one == two and one != other


def test_an_empty_plan_changes_nothing(pruned: tuple[Analysed, Any]) -> None:
    found, _ = pruned
    plan = Plan(kept={}, model=found.random_plan(0).model)
    result = graphprune.apply_plan(found.model, INPUT, plan)
    assert result.report.verification is not None and result.report.verification.error < 1e-14
    assert result.report.before == result.report.after


def test_an_output_of_another_shape_or_number_is_found(pruned: tuple[Analysed, Any]) -> None:
    found, result = pruned
    output = next(n for n in result.model.graph.nodes if n.op == "output")
    output.args = ((output.args[0], output.args[0]),)
    result.model.recompile()
    verdict = graphprune.verify(found.model, result.model, result.plan, INPUT)
    assert not verdict.passed and "returns 2 tensors" in verdict.failure


def test_keyword_inputs_are_matched_by_name() -> None:
    """In whatever order they are given."""
    model = net(lambda self, x, y: self.b(self.a(x) - 2 * self.a(y).relu()), a=conv(3, 4), b=conv(4, 2))
    inputs = {name: torch.randn(1, 3, 6, 6, dtype=torch.float64) for name in ("x", "y")}
    result = graphprune.prune(model, inputs, target="channels=50%")
    swapped = {"y": inputs["y"], "x": inputs["x"]}
    assert graphprune.verify(model, result.model, result.plan, swapped).check().error < 1e-10


@dataclass
class _Output:
    """A class of results that torch knows nothing of."""

    first: Tensor
    second: Tensor


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> _Output:
        hidden = self.hidden(x).relu()
        return _Output(self.first(hidden), self.second(hidden))


def test_results_in_a_class_of_their_own_are_compared() -> None:
    model, x = _Two().double(), torch.randn(2, 4, dtype=torch.float64)
    result = graphprune.prune(model, x, target="channels=50%")
    assert graphprune.verify(model, result.graph, result.plan, x).passed
    call = next(node for node in result.graph.graph.nodes if node.target is _Output)
    call.kwargs = {"first": call.kwargs["second"], "second": call.kwargs["first"]}
    result.graph.recompile()
    assert "output" in graphprune.verify(model, result.graph, result.plan, x).failure


class _Remembering(nn.Module):
    """Changes its buffers in eval mode, too."""

    calls: Tensor
    least: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("least", torch.ones(4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.least.mul_(0.5)
        return self.last(self.first(x * self.least).relu()) * self.calls  # type: ignore[no-any-return]


@pytest.mark.parametrize("keep_class", [False, True])
def test_a_model_that_changes_its_buffers_is_proved_and_stays_as_it_is(keep_class: bool) -> None:
    """The proof runs both models, each with buffers of its own."""
    model, x = _Remembering().double(), torch.randn(2, 4, dtype=torch.float64)
    before = state_hash(model)
    result = graphprune.prune(model, x, target="channels=50%", keep_class=keep_class)
    assert result.report.verification is not None and result.report.verification.error < 1e-10
    assert state_hash(model) == before
    assert result.model.get_buffer("calls") == 0
    assert torch.equal(result.model.get_buffer("least"), torch.ones(4, dtype=torch.float64))
