"""One-shot and iterative pruning: budgets are met on the schedule that was asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from graphprune.errors import UsageError
from graphprune.methods import MethodResult, growing, iterative
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


class _Taught(DigitsLoop):
    """A loop that takes a teacher, and notes whether it got one, in eval mode."""

    def __init__(self) -> None:
        super().__init__(1, count=200)
        self.seen: list[bool] = []

    def train(self, model: nn.Module, epochs: range, state: Any, /, teacher: nn.Module | None = None) -> Any:  # type: ignore[override]
        self.seen.append(teacher is not None and not teacher.training)
        return super().train(model, epochs, state)


@pytest.mark.parametrize(("options", "seen"), [({}, [False, True]), ({"distil": False}, [False, False])])
def test_a_loop_that_takes_a_teacher_gets_the_trained_dense_model_unless_told_not_to(
    options: dict[str, Any], seen: list[bool]
) -> None:
    loop = _Taught()
    _run(loop, trained=False, **options)
    assert loop.seen == seen


def test_distillation_that_is_not_possible_is_refused() -> None:
    with pytest.raises(UsageError, match="loop that takes a teacher"):
        _run(DigitsLoop(1, count=200), distil=True)
    loop = _Taught()
    how: dict[str, Any] = {"train": loop.train, "evaluate": loop.evaluate, "data": loop.data, "epochs": 2}
    with pytest.raises(UsageError, match="needs a trained model"):
        growing(Residual(), torch.zeros(INPUT), distil=True, **how)


def test_the_best_epoch_is_reported_beside_the_last() -> None:
    final = _run(DigitsLoop(3, count=300), trained=False).rounds[-1]
    assert final.best is not None and final.accuracy is not None and final.best >= final.accuracy


def test_a_pass_that_meets_no_targets_is_refused() -> None:
    with pytest.raises(UsageError, match="does not select by a target"):
        _run(DigitsLoop(1, count=200), select="verify")


def test_a_result_prints_its_rounds_and_the_slim_model_and_not_the_layers_of_the_dense_one() -> None:
    result = _run(DigitsLoop(1, count=200), target="macs=40%", final_epochs=0)
    first, *rows = repr(result).splitlines()
    assert first.split() == ["accuracy", "parameters", "MACs"] and rows[0].startswith("round 0 (dense)")
    assert repr(result).endswith(repr(result.pruned)) and "kernel_size" not in repr(result)
