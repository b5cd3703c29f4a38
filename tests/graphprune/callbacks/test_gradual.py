"""Masks that close on a schedule: as far and as often as it says, at the shares of the training that it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import graphprune
from graphprune.callbacks import GradualPruning
from graphprune.compiling import Masked
from graphprune.errors import TargetError, UsageError

X = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _masks() -> Masked:
    torch.manual_seed(0)
    return graphprune.masked(nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4)).double(), X)


@pytest.mark.parametrize(("schedule", "left"), [("cubic", [64, 40, 32, 32]), ("linear", [64, 53, 42, 32])])
def test_each_cut_goes_as_far_as_the_schedule_says(schedule: str, left: list[int]) -> None:
    """After cut t of 3: 1 - (1 - t/3)^3 of the way to half, or t/3; rounded down to whole units."""
    masks = _masks()
    pruning = GradualPruning(masks, "channels=50%", cuts=3, begin=0.2, end=0.8, schedule=schedule)
    found = []
    for done in (0.2, 0.41, 0.61, 0.81):
        pruning.step(done)
        found.append(int(masks.mask[masks.groups.prunable[0].units].sum()))
    expected = [int(64 * (1 - 0.5 * (1 - (1 - t / 3) ** (3 if schedule == "cubic" else 1))) + 1e-9) for t in range(4)]
    assert found == expected and left[0] == found[0] and left[-1] == found[-1]


def test_masks_change_when_a_cut_is_due_and_at_no_other_step() -> None:
    pruning = GradualPruning(_masks(), "params=50%", cuts=5, begin=0.1, end=0.6)
    due = [number for number in range(100) if pruning.step(number / 100)]
    assert due == [20, 30, 40, 50, 60]
    assert not pruning.step(1.0)


def test_a_training_that_goes_on_takes_the_cut_where_it_stands() -> None:
    """Steps that were left out, as those before a checkpoint, are not made up for one by one."""
    masks, other = _masks(), _masks()
    assert GradualPruning(masks, cuts=10, end=1.0).step(0.75)
    whole = GradualPruning(other, cuts=10, end=1.0)
    for number in range(8):
        whole.step(number / 10)
    assert torch.equal(masks.mask, other.mask)


def test_a_training_that_goes_on_from_a_checkpoint_does_not_cut_again_before_the_next_cut_is_due() -> None:
    """The weights are others by then, and so would the units be: the training would end with another model."""
    masks, other = _masks(), _masks()
    first, second = (GradualPruning(found, "channels=50%", cuts=4, end=1.0) for found in (masks, other))
    assert first.step(0.3)
    other.load_state_dict(masks.state_dict())
    with torch.no_grad():
        other.module.get_parameter("0.weight").copy_(masks.module.get_parameter("0.weight").flip(0))
    assert not second.step(0.4) and torch.equal(masks.mask, other.mask)
    assert second.step(0.5) and not second.step(0.5)
    other.load_state_dict(masks.state_dict())
    assert not second.step(0.4) and second.step(0.5)  # and back to it


def test_another_schedule_on_the_same_masks_makes_its_own_cuts() -> None:
    masks = _masks()
    GradualPruning(masks, "channels=50%", cuts=4).step(1.0)
    assert GradualPruning(masks, "channels=25%", cuts=4).step(1.0)
    assert int(masks.mask[masks.groups.prunable[0].units].sum()) == 16


def test_the_least_important_units_close_and_the_rewrite_computes_the_same() -> None:
    masks = _masks()
    with torch.no_grad():
        masks.module.get_parameter("0.weight")[::2] *= 1e-3
        masks.module.get_parameter("2.weight")[:, ::2] *= 1e-3
    GradualPruning(masks, "channels=50%", cuts=1).step(1.0)
    assert masks.of("0").tolist() == [0.0, 1.0] * 32
    assert torch.allclose(masks.rewrite().model(X), masks(X), atol=1e-12)


def _deep() -> Masked:
    torch.manual_seed(0)
    layers = [nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)]
    return graphprune.masked(nn.Sequential(*layers).double(), X)


def _left(masks: Masked) -> list[int]:
    return [int(masks.of(name).sum()) for name in ("0", "2", "4")]


def test_layers_whose_width_is_given_close_as_far_as_the_others() -> None:
    masks = _deep()
    pruning = GradualPruning(masks, keep={"0": "50%", "2": 8}, cuts=2, begin=0.0, end=1.0, schedule="linear")
    found = []
    for done in (0.5, 1.0):
        pruning.step(done)
        found.append(_left(masks))
    assert found == [[48, 20, 16], [32, 8, 16]]  # the last one stays whole: there is no target
    assert torch.allclose(masks.rewrite().model(X), masks(X), atol=1e-12)


def test_a_target_is_met_by_the_layers_of_which_nothing_was_said() -> None:
    masks = _deep()
    GradualPruning(masks, {"params": "60%", "macs": "70%"}, keep={"*": "100%", "2": "25%", "4": "100%"}, cuts=3).step(1.0)
    assert _left(masks) == [64, 8, 16]
    masks = _deep()
    GradualPruning(masks, "params=60%", keep={"0": "100%"}, cuts=3).step(1.0)
    assert _left(masks)[0] == 64 and sum(_left(masks)) < 112
    assert sum(p.numel() for p in masks.rewrite().model.parameters()) <= 0.6 * sum(p.numel() for p in masks.parameters())


def test_a_cut_on_the_way_is_in_reach_if_the_last_one_is() -> None:
    """Widths on the way are rounded down: a group of two has one unit at half of the way, which the target there needs."""
    torch.manual_seed(0)
    masks = graphprune.masked(nn.Sequential(nn.Linear(8, 2), nn.ReLU(), nn.Linear(2, 4, bias=False)).double(), X)
    pruning = GradualPruning(masks, "params=50%", keep={"0": "50%"}, cuts=2, begin=0.0, end=1.0, schedule="linear")
    assert pruning.step(0.5) and int(masks.of("0").sum()) == 1


def test_an_absolute_target_is_met() -> None:
    masks = _masks()
    GradualPruning(masks, "params=500", cuts=2).step(1.0)
    slim = masks.rewrite().model
    assert 480 < sum(p.numel() for p in slim.parameters()) <= 500


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"schedule": "square"}, UsageError, "no schedule 'square'. Schedules: cubic, linear"),
        ({"cuts": 0}, UsageError, "make no schedule"),
        ({"begin": 0.5, "end": 0.5}, UsageError, "make no schedule"),
        ({"end": 1.5}, UsageError, "make no schedule"),
        ({"target": "macs"}, UsageError, "has no '='"),
        ({"target": "weight=50%"}, UsageError, "no target 'weight'"),
        ({"target": {"macs": 0.5, "latency": "3ms"}}, UsageError, "Masks save no time"),
        ({"keep": {"1": "50%"}}, UsageError, "matches no layer that makes channels"),
        ({"keep": {"0": "150%"}}, UsageError, "says 150%"),
        ({"target": "latency=50%"}, UsageError, "Masks save no time"),
        ({"criterion": "no"}, UsageError, "no"),
        ({"criterion": "taylor"}, UsageError, "data"),
        ({"select": "no"}, UsageError, "no"),
        ({"target": "params=10"}, TargetError, "cannot be met"),
    ],
)
def test_what_no_cut_could_follow_is_refused_before_the_training(options: Any, error: type[Exception], message: str) -> None:
    masks = _masks()
    with pytest.raises(error, match=message):
        GradualPruning(masks, **options)
    assert bool((masks.mask == 1).all())


@pytest.mark.parametrize("done", [-0.1, 1.5, 3])
def test_the_number_of_an_epoch_is_no_share_of_the_training(done: float) -> None:
    """It would close all masks at once, without a word."""
    masks = _masks()
    with pytest.raises(UsageError, match=r"epoch / epochs"):
        GradualPruning(masks).step(done)
    assert masks.mask.all()


def test_a_model_without_masks_is_refused() -> None:
    with pytest.raises(UsageError, match=r"graphprune\.masked"):
        GradualPruning(nn.Linear(8, 4))  # type: ignore[arg-type]
