"""The race has the winner that running every cut on every batch has, and runs less."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.calibration import Batch, Calibration
from graphprune.channels.groups import Floats
from graphprune.errors import UsageError
from graphprune.ir.program import Inputs
from graphprune.passes.selection.trials import race
from graphprune.passes.selection.trials.race import Cut, Race, Winner

DATA = Calibration([torch.zeros(1)])


class Planted:
    """A sweep with a known loss for each batch (row) and cut; the last column is the program's own."""

    def __init__(self, losses: Floats, bounded: bool = True) -> None:
        self.losses, self.bounded, self.runs = losses, bounded, 0

    def run(self, batch: Batch, trials: Sequence[Any], *, whole: bool) -> tuple[list[float], float]:
        row = self.losses[int(batch.target)]
        self.runs += len(trials)
        return [float(row[trial]) for trial in trials], float(row[-1]) if whole else np.nan


def raced(planted: Planted, sizes: Sequence[int], saved: Sequence[float], objective: str = "loss") -> tuple[Winner, int]:
    batches = [Batch(Inputs((torch.zeros(size),)), number) for number, size in enumerate(sizes)]
    silenced: list[Any] = list(range(len(saved)))
    cuts = [Cut(one, amount) for one, amount in zip(silenced, saved, strict=True)]
    sweep: Any = planted
    return Race(sweep, cuts, DATA, objective).run(batches)


NUMBERS = st.floats(0, 4, width=16)


@settings(max_examples=200, derandomize=True, database=None)
@given(st.data(), st.integers(1, 5), st.integers(1, 6), st.sampled_from(list(race.OBJECTIVES)))
def test_the_winner_is_that_of_running_everything(data: st.DataObject, batches: int, cuts: int, objective: str) -> None:
    row = st.lists(NUMBERS, min_size=cuts + 1, max_size=cuts + 1)
    losses = np.array(data.draw(st.lists(row, min_size=batches, max_size=batches)))
    sizes = np.array(data.draw(st.lists(st.integers(1, 4), min_size=batches, max_size=batches)))
    saved = np.array(data.draw(st.lists(st.sampled_from([1.0, 2.0, 4.0]), min_size=cuts, max_size=cuts)))
    totals = (losses * sizes[:, None]).sum(0)
    rise = totals[:-1] if objective == "loss" else (totals[:-1] - totals[-1]) / saved
    for bounded in (True, False):
        planted = Planted(losses, bounded)
        winner, dropped = raced(planted, sizes.tolist(), saved.tolist(), objective)
        assert rise[winner.index] == pytest.approx(rise.min(), abs=1e-12)
        assert winner.loss == pytest.approx(totals[winner.index] / sizes.sum())
        assert winner.before == pytest.approx(totals[-1] / sizes.sum())
        assert planted.runs <= batches * cuts and (bounded or (planted.runs == batches * cuts and not dropped))


def test_the_first_of_equals_wins() -> None:
    winner, _ = raced(Planted(np.array([[2.0, 1.0, 1.0, 0.5], [2.0, 1.0, 1.0, 0.5]])), [1, 1], [1.0, 1.0, 1.0])
    assert winner.index == 1


def test_a_cut_is_dropped_once_it_cannot_win() -> None:
    """Two cuts lose more on the first batches than others do on all. That is only known to be the end where no loss is negative."""
    losses = np.ones((5, 6))
    losses[0, 3:5] = 9.0
    losses[1:, 3:5] = 0.5
    planted = Planted(losses)
    winner, dropped = raced(planted, [1] * 5, [1.0] * 5)
    assert winner.index == 0 and dropped == 2 and planted.runs == 2 * 5 + 3 * 3
    losses[4, 3] = -9.0
    assert raced(Planted(losses, bounded=False), [1] * 5, [1.0] * 5)[0].index == 3


def test_those_that_can_still_win_are_run_to_the_end() -> None:
    """Three cuts seem best, and are not."""
    losses = np.array([[1.0, 1.0, 1.0, 2.0, 0.0], [1.0, 1.0, 1.0, 2.0, 0.0], [9.0, 9.0, 9.0, 0.0, 0.0]])
    winner, dropped = raced(Planted(losses), [1] * 3, [1.0] * 4)
    assert winner.index == 3 and not dropped


def test_a_loss_that_is_not_finite_never_wins_and_is_refused_where_all_are() -> None:
    losses = np.array([[np.nan, np.inf, 3.0, 1.0], [1.0, 1.0, 3.0, 1.0]])
    assert raced(Planted(losses), [1, 1], [1.0, 1.0, 1.0])[0].index == 2
    assert raced(Planted(losses, bounded=False), [1, 1], [1.0, 1.0, 1.0])[0].index == 2
    with pytest.raises(UsageError, match="is nan"):
        raced(Planted(losses[:, [0, 0, 3]]), [1, 1], [1.0, 1.0])
    with pytest.raises(UsageError, match="is nan"):
        raced(Planted(losses[:, [2, 0]]), [1, 1], [1.0])


def test_processes_with_a_part_of_the_data_each_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process has the other part: here cut 0 is best, in all data cut 1."""
    mine, other = np.array([[1.0, 2.0, 1.0], [1.0, 2.0, 1.0]]), np.array([8.0, 2.0, 2.0, 2.0])
    assert raced(Planted(mine), [1, 1], [1.0, 1.0])[0].index == 0
    monkeypatch.setattr(race, "gathered", lambda item: [item, 2 if isinstance(item, int) else other])
    winner, _ = raced(Planted(mine), [1, 1], [1.0, 1.0])
    assert winner.index == 1 and winner.loss == pytest.approx((4.0 + 2.0) / (2 + 2))
