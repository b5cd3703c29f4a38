"""The greedy pass removes what a plain search would, step by step, and gets over level stretches of a measure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphprune.errors import TargetError, UsageError
from graphprune.passes.selection.bounds import Bounds, Limit
from graphprune.passes.selection.greedy import GreedyPass
from graphprune.passes.selection.local_search import grown, polished, shrunk, top
from graphprune.passes.selection.target import parse_target
from tests.passes.selection.asking import Planted, all_widths, as_widths, ask, kept_score, residual, small, widths_by


def plainly(question: Any) -> list[int]:
    """Every unit that is the least important of its group, tried one by one; the last ones come back where they fit."""
    values, measure, limit = question.scores.values, question.bounds.limits[0].measure, question.bounds.limits[0].most
    ordered = [np.sort(values[group.units])[::-1] for group in question.groups.prunable]
    widths = question.groups.widths.copy()
    one = np.eye(widths.size, dtype=np.int64)
    while measure(widths) > limit:
        steps = [g for g in range(widths.size) if widths[g] > 1]
        ratio = {g: ordered[g][widths[g] - 1] / (measure(widths) - measure(widths - one[g])) for g in steps}
        widths[min(ratio, key=lambda g: ratio[g])] -= 1
    while fitting := [g for g in range(widths.size) if widths[g] < ordered[g].size and measure(widths + one[g]) <= limit]:
        widths[max(fitting, key=lambda g: ordered[g][widths[g]])] += 1
    return list(widths.tolist())


@pytest.mark.parametrize("target", ["channels=50%", "params=60%", "macs=70%", "macs=30%", "weight_bytes=45%"])
def test_it_removes_what_a_plain_search_would(target: str) -> None:
    for model in (small, residual):
        assert widths_by(model(), f"greedy{{{target}}}") == plainly(ask(model(), f"greedy{{{target}}}"))


@pytest.mark.parametrize("targets", ["memory=50%", "macs=50%,params=40%", "memory=60%,channels=70%,flops=0.5"])
def test_all_targets_are_met_and_no_unit_more_fits(targets: str) -> None:
    """Peak memory too, of which a single step often saves nothing."""
    question = ask(residual(), f"greedy{{{targets}}}")
    found = np.array(widths_by(residual(), f"greedy{{{targets}}}"))
    more = found + np.eye(found.size, dtype=np.int64)
    assert question.bounds.met(found)
    assert not question.bounds.met(more[(more <= question.groups.widths).all(axis=1)]).any()


def test_floors_and_multiples_hold() -> None:
    found = widths_by(residual(), "greedy{macs=40%,round_to=4,min_channels=3}")
    assert all(width % 4 == 0 or width in (10, 14) for width in found) and min(found) >= 3
    with pytest.raises(TargetError, match="can go down to"):
        widths_by(residual(), "greedy{macs=5%,max_ratio=0.5}")
    with pytest.raises(UsageError, match="greedy needs a target"):
        GreedyPass()


def test_what_costs_much_goes_before_what_costs_little_for_the_same_score() -> None:
    """By MACs it keeps more score than by the number of channels, at the same MACs."""
    question = ask(residual(), "greedy{macs=50%}")
    by_macs = widths_by(residual(), "greedy{macs=50%}")
    ranked = widths_by(residual(), "select{macs=50%}")
    assert kept_score(question, by_macs) > kept_score(question, ranked)


def staircase(costs: list[list[float]], most: float) -> Bounds:
    measure = Planted(tuple(np.array(cost, dtype=np.float64) for cost in costs))
    return Bounds((Limit(parse_target("macs", 0.5), measure, most),), np.array([len(cost) - 1 for cost in costs]))


def test_level_stretches_are_passed_in_one_step() -> None:
    """Only every fourth unit of the first group saves anything, and nothing of the second does."""
    choices, bounds = all_widths([8, 3]), staircase([[0, 1, 1, 1, 1, 2, 2, 2, 2], [0, 5, 5, 5]], 6.0)
    assert as_widths(choices, shrunk(choices, bounds, top(choices))) == [4, 3]


def test_bumps_on_the_way_are_passed_too() -> None:
    """Narrower widths that cost more are steps down that save nothing; wide ones that cost less are taken instead."""
    choices, bounds = all_widths([6]), staircase([[0, 1, 2, 3, 9, 9, 8]], 3.0)
    assert as_widths(choices, shrunk(choices, bounds, top(choices))) == [3]
    bounds = staircase([[0, 1, 2, 7, 9, 4, 8]], 4.0)
    assert as_widths(choices, polished(choices, bounds, np.array([1]))) == [5], "beyond 3 and 4, which do not fit"


def test_only_together() -> None:
    """Two groups of which neither alone saves anything: the largest of two costs."""

    class Larger(Planted):
        def __call__(self, widths: Any) -> Any:
            return self.parts(widths).max(axis=-1)

    measure = Larger((np.arange(5.0), np.arange(5.0)))
    bounds = Bounds((Limit(parse_target("macs", 0.5), measure, 2.0),), np.array([4, 4]))
    choices = all_widths([4, 4])
    assert as_widths(choices, shrunk(choices, bounds, top(choices))) == [2, 2]
    assert as_widths(choices, grown(choices, bounds, np.array([0, 0]))) == [2, 2]
