"""A masked model computes what the smaller one computes, compiles once for a whole schedule, and ends in that smaller one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from inspect import signature
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import graphprune
from graphprune.errors import UsageError
from graphprune.tracing import normalise_inputs
from tests.zoo import test_zoo
from tests.zoo.case import CASES

assert test_zoo  # registers all structures

HALF = "score,select{channels=60%,ranking=local}"


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def _call(model: nn.Module, inputs: Any) -> Any:
    given = normalise_inputs(inputs)
    with torch.no_grad():
        return model(*given.args, **given.kwargs)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 12, 3), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.nn.functional.gelu(self.norm(self.first(x)))
        return self.head(self.second(y).sigmoid().mean((2, 3)))  # type: ignore[no-any-return]


def _small() -> Small:
    torch.manual_seed(0)
    return Small().double().eval()


X = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CASES)
def test_every_structure_with_masks_computes_what_its_slim_twin_computes(name: str) -> None:
    """At ones it is the original; at zeros what is proved to be the original without these units."""
    torch.manual_seed(0)
    case = CASES[name]()
    inputs = case.inputs(2)
    masks = graphprune.masked(case.model, inputs, policy=case.policy)
    torch.testing.assert_close(_call(masks, inputs), _call(case.model, inputs), rtol=1e-12, atol=1e-12)
    if not masks.groups.prunable:
        assert masks.stays or not case.groups
        return
    masks.set(masks.run(HALF).plan)  # type: ignore[arg-type]
    slim = masks.rewrite()
    assert slim.plan.kept
    torch.testing.assert_close(_call(masks, inputs), _call(slim.model, inputs), rtol=1e-9, atol=1e-9)


def test_a_schedule_of_masks_compiles_once() -> None:
    model = _small().train()
    masks = graphprune.masked(model, X)
    step = torch.compile(masks, fullgraph=True, backend="aot_eager")
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for share in ("90%", "80%", "70%", "60%"):
        masks.set(masks.run(f"score,select{{channels={share}}}").plan)  # type: ignore[arg-type]
        optimiser.zero_grad()
        step(X).square().sum().backward()
        optimiser.step()
    masks.set({"first": torch.linspace(0, 1, 8)})
    step(X)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_masked_units_get_no_gradient_and_the_model_itself_trains() -> None:
    model = _small().train()
    before = model.first.weight.detach().clone()
    mean = model.norm.running_mean.clone()  # type: ignore[union-attr]
    masks = graphprune.masked(model, X)
    masks.set({"first": [1, 0, 1, 0, 1, 0, 1, 0]})
    optimiser = torch.optim.SGD(masks.parameters(), lr=0.1)
    masks(X).square().sum().backward()
    optimiser.step()
    changed = (model.first.weight != before).flatten(1).any(1)
    assert changed.tolist() == [True, False] * 4
    assert not torch.equal(model.norm.running_mean, mean)  # type: ignore[arg-type]


def test_soft_masks_become_part_of_the_weights() -> None:
    """A mask scales what is read of a unit: with one linear layer behind, half a mask is half of the weight."""
    model = _small()
    masks = graphprune.masked(model, X)
    soft = torch.tensor([1, 0.5, 0, 0.25, 1, 0, 0.75, 1])
    masks.set({"first": soft})
    half = model.second.weight * soft.double().view(1, -1, 1, 1)
    expected = torch.func.functional_call(model, {"second.weight": half}, (X,))
    torch.testing.assert_close(masks(X), expected, rtol=0, atol=0)
    slim = masks.rewrite(threshold=0.1)
    assert slim.plan.kept["first.weight"] == {0: [0, 1, 3, 4, 6, 7]}
    torch.testing.assert_close(slim.model(X), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(model.second.weight, _small().second.weight)


def test_scores_are_masks() -> None:
    masks = graphprune.masked(_small(), X)
    scores = masks.run("score{criterion=l1}").scores["l1"]
    masks.set(scores)
    group = next(group for group in masks.groups.prunable if group.name == "first")
    assert masks.of("first").tolist() == pytest.approx(scores.values[group.units].tolist())
    assert masks.of("first").max() == 1


def test_masks_are_saved_with_the_model() -> None:
    masks, other = (graphprune.masked(_small(), X) for _ in range(2))
    masks.set({"first": torch.linspace(0, 1, 8)})
    assert not torch.equal(other(X), masks(X))
    other.load_state_dict(masks.state_dict())
    assert torch.equal(other(X), masks(X))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda masks: pickle.loads(pickle.dumps(masks))])
def test_a_copy_has_the_masks_and_is_rewritten_as_the_first(again: Callable[[nn.Module], Any]) -> None:
    """As averages of weights copy it; what is known of the graph goes by its nodes, of which the copy has others."""
    masks = graphprune.masked(_small(), X)
    masks.module.get_parameter("first.weight").requires_grad_(False)
    masks.set(masks.run(HALF).plan)  # type: ignore[arg-type]
    other = again(masks.eval())
    assert not other.training and not other.module.first.weight.requires_grad and other.module.second.weight.requires_grad
    assert torch.equal(other(X), masks(X))
    slim = other.rewrite()
    assert slim.plan.kept == masks.rewrite().plan.kept
    torch.testing.assert_close(slim.model(X), masks(X), rtol=1e-9, atol=1e-9)
    other.set({"first": [1.0] * 8})
    assert not torch.equal(other(X), masks(X))


def test_masks_have_the_signature_of_the_model() -> None:
    """Training frameworks read off the class which arguments are labels, and off the module which columns of the data it takes."""

    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = _small()

        def forward(self, pixels: Tensor, labels: Tensor | None = None) -> Any:
            scores = self.inner(pixels)
            return scores if labels is None else (torch.nn.functional.cross_entropy(scores, labels), scores)

    masks = graphprune.masked(Labelled(), {"pixels": X, "labels": torch.arange(4)})
    assert list(signature(type(masks).forward).parameters) == ["self", "pixels", "labels"]
    assert list(signature(masks.forward).parameters) == ["pixels", "labels"]
    assert list(signature(graphprune.masked(_small(), X).forward).parameters) == ["x"]


def test_a_plan_given_at_first_is_what_the_masks_say() -> None:
    plan = graphprune.prune(_small(), X, target="macs=50%").plan
    assert graphprune.masked(_small(), X, plan).plan().kept == plan.kept


def test_channels_of_a_layer_norm_have_no_masks_and_a_plan_that_cuts_them_is_refused() -> None:
    model = torchvision.models.VisionTransformer(16, 8, 2, 4, 16, 32, num_classes=5)
    images = torch.zeros(1, 3, 16, 16)
    masks = graphprune.masked(model, images)
    assert len(masks.groups.prunable) == 4 and "norm" in masks.stays["conv_proj"]  # heads and hidden layers have them
    with pytest.raises(UsageError, match="conv_proj has no masks"):
        masks.set({"conv_proj": torch.ones(16)})
    plan = graphprune.prune(model, images, target="channels=50%", ranking="local").plan
    with pytest.raises(UsageError, match="cuts conv_proj, which masks cannot silence"):
        masks.set(plan)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"first": [2.0] * 8}, "between 0 and 1"),
        ({"first": [float("nan")] * 8}, "between 0 and 1"),
        ({"first": [1.0] * 7}, "its 8 units"),
        ({"frist": [1.0] * 8}, "no group 'frist'"),
    ],
)
def test_masks_that_say_nothing_sensible_change_nothing(values: dict[str, list[float]], says: str) -> None:
    masks = graphprune.masked(_small(), X)
    with pytest.raises(UsageError, match=says):
        masks.set({"second": [0.5] * 12, **values})
    assert bool((masks.mask == 1).all())


def test_a_threshold_that_leaves_nothing_of_a_group_is_refused() -> None:
    masks = graphprune.masked(_small(), X)
    masks.set({"first": [0.1] * 8})
    with pytest.raises(UsageError, match="All masks of first are below"):
        masks.rewrite()
