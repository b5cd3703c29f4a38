"""Adaptive activation pruning keeps its promises: the accuracy stays within the tolerance, or the size is met."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from graphprune.errors import UsageError
from graphprune.methods import MethodResult, adaptive
from tests.loops import INPUT, DigitsLoop, Residual


class Scripted(DigitsLoop):
    """Training that does nothing, and accuracies as they are told: what is tested is the search."""

    def __init__(self, accuracies: list[float]) -> None:
        super().__init__(4, count=300)
        self.accuracies = iter(accuracies)
        self.given: list[dict[str, torch.Tensor]] = []

    def train(self, model: nn.Module, epochs: range, state: Any, /, **extras: nn.Module) -> Any:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.001)  # so that a restored model can be told from one that was trained on
        return None

    def evaluate(self, model: nn.Module, /) -> float:
        self.given.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return next(self.accuracies)


def _wide() -> nn.Module:
    """A model with so many units that a threshold can be anywhere."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 10))


def _search(accuracies: list[float], **options: Any) -> tuple[MethodResult, Scripted]:
    torch.manual_seed(1)
    loop = Scripted(accuracies)
    how: dict[str, Any] = {"train": loop.train, "evaluate": loop.evaluate, "data": loop.data, "recalibrate": False}
    settings: dict[str, Any] = {"first_step": 0.04, "share": "none", "epochs": 4, "tolerance": 0.01} | options
    return adaptive(_wide(), torch.zeros(INPUT), **how, **settings), loop


def test_thresholds_follow_accepted_and_rejected_rounds_as_in_algorithm_2() -> None:
    result, _ = _search([0.9, 0.9, 0.895, 0.5, 0.5, 0.9, 0.5, 0.5, 0.5, 0.9, 0.9], max_rounds=10)
    rows = result.rounds[1:]
    assert [row.status for row in rows[:5]] == ["accepted", "accepted", "rolled back", "rolled back", "accepted"]
    first, second, third, fourth, fifth = ((row.values["threshold"], row.values["step"]) for row in rows[:5])
    assert second == pytest.approx((first[0] + 0.04, 0.04))
    assert third == pytest.approx((second[0] + 0.04, 0.04))
    assert fourth == pytest.approx((second[0] + 0.02, 0.02))  # half, from where the last accepted one was
    assert fifth == pytest.approx((second[0] + 0.01, 0.01))
    assert rows[5].values["step"] == pytest.approx(0.01)  # an accepted step stays as it is


def test_three_failures_give_up_a_model_for_the_one_before_it() -> None:
    result, _ = _search([0.9, 0.9, 0.9, 0.5, 0.5, 0.5, 0.9], max_rounds=6)
    rows = result.rounds[1:]
    assert [row.status for row in rows] == ["accepted", "accepted", *["rolled back"] * 3, "accepted"]
    given_up, before = rows[4].values["step"], rows[0].values["threshold"]
    assert rows[5].values["step"] == pytest.approx(given_up / 2)
    assert rows[5].values["threshold"] >= before
    assert rows[5].params >= rows[1].params
    assert result.pruned.report.after.parameters == rows[1].params  # the smallest that was accepted, even if it led nowhere


def test_a_rejected_round_leaves_no_trace_in_the_weights() -> None:
    """The model of a round is cut from the last accepted weights: each has been trained as often as that and once more."""
    _, loop = _search([0.9, 0.9, 0.5, 0.5, 0.9], max_rounds=4, rewind=0.5)
    dense, first, *rest = loop.given
    scale = 1.001**2  # two epochs a round
    for tried in rest:
        kept = tried["2.weight"]
        assert torch.allclose(kept, torch.full_like(kept, scale**2))
    assert torch.allclose(first["2.weight"], torch.full_like(first["2.weight"], scale))
    assert torch.equal(dense["2.weight"], torch.ones(512))


def test_steps_by_size_remove_a_share_of_the_parameters_and_halve_where_they_fail() -> None:
    result, _ = _search([0.9, 0.9, 0.5, 0.9], max_rounds=3, first_step=None, step_share=0.1)
    dense, first, second, third = (row.params for row in result.rounds)
    unit = dense / 512
    assert first == pytest.approx(0.9 * dense, abs=2 * unit)
    assert second == pytest.approx(first - 0.1 * dense, abs=2 * unit)
    assert third == pytest.approx(first - 0.05 * dense, abs=2 * unit)


def test_the_search_ends_where_a_smaller_step_is_the_same_cut() -> None:
    result, _ = _search([0.9, 0.5, 0.5], max_rounds=9, first_step=None, step_share=1e-4)
    assert [row.status for row in result.rounds] == ["dense", "rolled back"]


def test_nothing_is_removed_where_every_cut_costs_too_much() -> None:
    result, _ = _search([0.9, *[0.5] * 9], max_rounds=9)
    assert result.plan.kept == {}
    assert result.pruned.report.after == result.pruned.report.before
    assert [row.status for row in result.rounds] == ["dense", *["rolled back"] * 3]


def test_the_accuracy_on_validation_data_stays_within_the_tolerance() -> None:
    loop = DigitsLoop(4)
    how: dict[str, Any] = {"train": loop.train, "evaluate": loop.evaluate, "data": loop.data, "epochs": 4, "trained": False}
    result = adaptive(Residual(16, 24), torch.zeros(INPUT), tolerance=0.02, max_rounds=6, rewind=0.25, **how)
    assert result.dense_accuracy is not None and result.dense_accuracy > 0.8
    assert loop.evaluate(result.model) >= result.dense_accuracy - 0.02
    assert result.pruned.report.after.parameters < 0.97 * result.pruned.report.before.parameters
    assert result.pruned.report.verification is not None and result.pruned.report.verification.passed


@pytest.mark.parametrize(("target", "share"), [("params=50%", "params"), ("macs=40%", "macs")])
def test_a_size_is_met_and_not_by_far_missed_below(target: str, share: str) -> None:
    loop = DigitsLoop(2, count=300)
    how: dict[str, Any] = {"train": loop.train, "evaluate": loop.evaluate, "data": loop.data, "epochs": 2}
    result = adaptive(Residual(32, 64), torch.zeros(INPUT), target=target, share=share, rounds=2, **how)
    before, after = result.pruned.report.before, result.pruned.report.after
    left = after.parameters / before.parameters if share == "params" else after.macs / before.macs
    wanted = float(target.split("=")[1].rstrip("%")) / 100
    assert wanted - 0.03 <= left <= wanted
    assert [row.status for row in result.rounds] == ["dense", "accepted", "final"]


def test_weights_can_be_rewound_to_an_early_epoch() -> None:
    loop = DigitsLoop(4, count=300)
    how: dict[str, Any] = {"train": loop.train, "evaluate": loop.evaluate, "data": loop.data, "epochs": 4, "trained": False}
    result = adaptive(Residual(16, 32), torch.zeros(INPUT), target="params=60%", rounds=1, rewind=0.5, rewind_weights=True, **how)
    assert loop.trained == [0, 1, 2, 3, 2, 3]
    assert result.rounds[-1].status == "final"


def test_data_are_asked_for() -> None:
    loop = DigitsLoop(1)
    with pytest.raises(UsageError, match="adaptive looks at training samples"):
        adaptive(Residual(), torch.zeros(INPUT), train=loop.train, evaluate=loop.evaluate, epochs=1)
