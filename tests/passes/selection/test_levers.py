"""Widths under levers: groups of one move together, only to numbers that go together, and as near to the bounds as that gets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import graphprune
from graphprune.api import run_pipeline
from graphprune.channels.levers import Lever, Levers, Numbers
from graphprune.errors import TargetError
from graphprune.passes.selection.levers import Lattice

FULL = np.array([8, 4, 64, 5])
ALL = [np.arange(1, width + 1) for width in FULL.tolist()]
HEADS = Lever((0, 1), 4, {("heads",): 4})
HIDDEN = Lever((2,), 64, {("hidden",): 64})


def _lattice(*levers: Lever, fits: Any = lambda numbers: True, widths: Any = ALL) -> Lattice:
    return Lattice(Levers(levers, fits), widths, FULL)


def _divides(numbers: Numbers) -> bool:
    return numbers[("hidden",)] % numbers[("heads",)] == 0


def test_groups_on_one_lever_move_together_and_others_stay_whole() -> None:
    """The widest asks for 3 of 4 steps; the last group is on no lever."""
    assert _lattice(HEADS, HIDDEN).rounded(np.array([2, 3, 33, 1])).tolist() == [6, 3, 33, 5]


def test_widths_that_a_group_may_not_have_are_passed_over() -> None:
    widths = [*ALL[:2], np.array([16, 32, 48, 64]), ALL[3]]
    assert _lattice(HEADS, HIDDEN, widths=widths).rounded(np.array([1, 1, 33, 1])).tolist() == [2, 1, 48, 5]


def test_numbers_that_do_not_go_together_are_raised_to_some_that_do() -> None:
    """Three heads do not divide 40: the finer lever goes up to 42. Without that condition it would stay."""
    wanted = np.array([6, 3, 40, 1])
    assert _lattice(HEADS, HIDDEN, fits=_divides).rounded(wanted).tolist() == [6, 3, 42, 5]
    assert _lattice(HEADS, HIDDEN).rounded(wanted).tolist() == [6, 3, 40, 5]


def test_what_a_coarse_lever_leaves_room_for_a_fine_one_takes() -> None:
    """A quarter less of the heads saved more than was asked; hidden takes what is left, in steps that three heads divide."""
    start = np.array([6, 3, 33, 5])
    assert _lattice(HEADS, HIDDEN).grown(start, lambda w: bool(w[1] <= 3 and w[2] <= 50)).tolist() == [6, 3, 50, 5]
    assert _lattice(HEADS, HIDDEN, fits=_divides).grown(start, lambda w: bool(w[1] <= 3 and w[2] <= 50)).tolist() == [6, 3, 48, 5]
    assert _lattice(HEADS, HIDDEN).grown(start, lambda w: False).tolist() == start.tolist()


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(5, 12), nn.Linear(12, 12), nn.Linear(12, 9), nn.Linear(9, 2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.d(self.c(self.b(self.a(x).relu()).relu()).relu())


@pytest.mark.parametrize("ranking", ["local", "global"])
def test_the_selection_meets_its_target_at_widths_of_the_levers(ranking: str) -> None:
    program = graphprune.capture(_Net(), torch.zeros(1, 5))
    bound = program.with_(levers=Levers((Lever((0, 1), 6, {("width",): 12}),), lambda numbers: True))
    steps = f"channels,score{{criterion=l2}},select{{params=61%,ranking={ranking}}},rewrite,verify"
    result = run_pipeline(bound, steps)
    widths = result.report.widths
    assert widths == {"a": (12, 8), "b": (12, 8), "c": (9, 9)}
    assert result.report.after.parameters <= 0.61 * result.report.before.parameters
    free = run_pipeline(program, steps).report.widths
    assert free["c"] != (9, 9)


def test_a_target_that_the_levers_do_not_reach_is_refused_with_the_way_out() -> None:
    program = graphprune.capture(_Net(), torch.zeros(1, 5))
    bound = program.with_(levers=Levers((Lever((2,), 9, {("last",): 9}),), lambda numbers: True))
    with pytest.raises(TargetError, match="--widths any"):
        run_pipeline(bound, "channels,score{criterion=l2},select{params=30%},rewrite")
