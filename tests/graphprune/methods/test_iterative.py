"""One-shot and iterative pruning: budgets are met on the schedule that was asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from graphprune.errors import UsageError
from graphprune.methods import MethodResult, iterative
from tests.loops import INPUT, DigitsLoop, Residual


def _run(loop: DigitsLoop, **options: Any) -> MethodResult:
    how: dict[str, Any] = {"train": loop.train, "evaluate": loop.evaluate, "data": loop.data, "epochs": loop.epochs}
    return iterative(Residual(32, 64), torch.zeros(INPUT), **how, **options)


@pytest.mark.parametrize(("schedule", "ways"), [("cubic", [1 - (2 / 3) ** 3, 1 - (1 / 3) ** 3]), ("linear", [1 / 3, 2 / 3])])
def test_cuts_go_as_far_as_the_schedule_says(schedule: str, ways: list[float]) -> None:
    result = _run(DigitsLoop(1, count=200), target="macs=40%", rounds=3, schedule=schedule, final_epochs=0)
    dense, *rows = result.rounds
    for row, way in zip(rows, [*ways, 1.0], strict=True):
        left = row.macs / dense.macs
        assert 1 - 0.6 * way - 0.04 < left <= 1 - 0.6 * way


def test_trainings_take_the_end_of_the_schedule_and_the_last_one_all_of_it() -> None:
    loop = DigitsLoop(4, count=200)
    _run(loop, rounds=2, tune_epochs=1)
    assert loop.trained == [3, 0, 1, 2, 3]


@pytest.mark.parametrize(
    "options", [{"criterion": "random"}, {"ranking": "local"}, {"select": "knapsack"}, {"criterion": "taylor"}]
)
def test_any_criterion_and_selection_meets_the_budget(options: dict[str, str]) -> None:
    result = _run(DigitsLoop(1, count=200), target="params=50%", final_epochs=0, **options)
    assert result.pruned.report.after.parameters <= 0.5 * result.pruned.report.before.parameters


def test_distillation_gives_the_loop_the_dense_model() -> None:
    seen: list[bool] = []

    class Watching(DigitsLoop):
        def train(self, model: torch.nn.Module, epochs: range, state: Any, /, **extras: torch.nn.Module) -> Any:
            seen.append("teacher" in extras and not extras["teacher"].training)
            return super().train(model, epochs, state, **extras)

    _run(Watching(1, count=200), distil=True, trained=False)
    assert seen == [False, True]


def test_the_best_epoch_is_reported_beside_the_last() -> None:
    final = _run(DigitsLoop(3, count=300), trained=False).rounds[-1]
    assert final.best is not None and final.accuracy is not None and final.best >= final.accuracy


def test_a_pass_that_meets_no_targets_is_refused() -> None:
    with pytest.raises(UsageError, match="does not select by a target"):
        _run(DigitsLoop(1, count=200), select="verify")
