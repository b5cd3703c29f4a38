"""Class-aware pruning removes what matters for few classes, a tenth at most, while the accuracy holds."""

from __future__ import annotations

from itertools import pairwise
from math import nan
from typing import Any

import pytest
import torch
from torch import nn

from graphprune.errors import UsageError
from graphprune.methods import MethodResult, class_aware
from graphprune.runs.bench import Bench
from graphprune.runs.loop import Loop
from graphprune.runs.task import Task
from tests.loops import INPUT, DigitsLoop, Residual


def _dead(model: Residual, units: list[int]) -> Residual:
    """A model in which some inner units never fire: they matter for no class."""
    with torch.no_grad():
        model.bn1.weight[units] = 0
        model.bn1.bias[units] = -1
    return model


def _run(model: Residual, loop: DigitsLoop, **options: Any) -> MethodResult:
    how: dict[str, Any] = {"train": loop.train, "evaluate": loop.evaluate, "data": loop.data, "epochs": loop.epochs}
    return class_aware(model, torch.zeros(INPUT), **how, **options)


def test_units_that_matter_for_no_class_go_first() -> None:
    dead = [1, 4, 7, 11]
    result = _run(_dead(Residual(), dead), DigitsLoop(2, count=300, rate=1e-4), regularise_epochs=0, tune_epochs=1, tolerance=1.0)
    kept = result.plan.kept["conv1.weight"][0]
    assert not set(dead) & set(kept)
    assert len(kept) == 12  # and nothing else


def test_a_round_removes_its_share_at_most_and_the_stream_stays_whole() -> None:
    model, at_most = _dead(Residual(), list(range(12))), 0.3
    result = _run(model, DigitsLoop(2, count=200, rate=1e-4), regularise_epochs=0, tune_epochs=1, tolerance=1.0, at_most=at_most)
    inner = [row.widths["conv1"] for row in result.rounds]
    for before, after in pairwise(inner[:-1]):
        assert before - after == int(at_most * before)
    assert all(row.widths["stem"] == 12 for row in result.rounds)
    assert inner[-1] < 6


def test_a_model_without_convolutions_has_the_other_penalty_alone() -> None:
    loop = DigitsLoop(1, count=200, rate=1e-3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    how: dict[str, Any] = {"train": loop.train, "evaluate": loop.evaluate, "data": loop.data, "epochs": 1}
    rows = class_aware(model, torch.zeros(INPUT), tolerance=1.0, tune_epochs=1, max_rounds=2, **how).rounds
    assert [row.status for row in rows[:2]] == ["dense", "accepted"]


@pytest.mark.parametrize("last", [0.7, nan])
def test_a_round_that_loses_too_much_is_taken_back(last: float) -> None:
    class Falling(DigitsLoop):
        accuracies = iter([0.9, 0.9, last])

        def evaluate(self, model: torch.nn.Module, /) -> float:
            return next(self.accuracies, 0.9)

    model = _dead(Residual(), list(range(12)))
    result = _run(model, Falling(2, count=300, rate=1e-4), regularise_epochs=0, tune_epochs=1, tolerance=0.05)
    assert [row.status for row in result.rounds] == ["dense", "accepted", "rolled back", "final"]
    assert result.pruned.report.after.parameters == result.rounds[1].params


def test_penalties_act_in_training_and_their_cost_counts_as_loss() -> None:
    loop = DigitsLoop(2, count=300)
    weak = _run(Residual(), loop, l1=0.0, orthogonality=1e-9, tune_epochs=1, tolerance=0.0, max_rounds=1)
    strong = _run(Residual(), DigitsLoop(2, count=300), l1=1e-2, orthogonality=1e-9, tune_epochs=1, tolerance=0.0, max_rounds=1)

    def size(result: MethodResult) -> float:
        return float(sum(parameter.detach().abs().sum() for parameter in result.model.parameters()))

    assert size(strong) < 0.5 * size(weak)


def test_scores_before_and_after_are_kept_for_the_picture(tmp_path: Any) -> None:
    _run(Residual(), DigitsLoop(1, count=300), folder=tmp_path, tune_epochs=1, max_rounds=1)
    text = (tmp_path / "scores.json").read_text()
    assert "before regularisation" in text and "after regularisation" in text


def test_residual_groups_are_those_that_several_layers_make() -> None:
    loop = DigitsLoop(1)
    bench = Bench(Task(Residual(), torch.zeros(INPUT), Loop(loop.train, loop.evaluate)), {})
    (axis,) = bench.coupled
    assert axis in ("stem.weight[0]", "conv2.weight[0]")


def test_data_are_asked_for() -> None:
    loop = DigitsLoop(1)
    with pytest.raises(UsageError, match="class-aware looks at training samples"):
        class_aware(Residual(), torch.zeros(INPUT), train=loop.train, evaluate=loop.evaluate, epochs=1)
