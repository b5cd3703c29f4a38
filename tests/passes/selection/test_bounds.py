"""Targets as bounds: met exactly where every measure is within its limit, with a bound for each sum of which one is the largest."""

from __future__ import annotations

import numpy as np
import pytest

from graphprune.passes.selection.bounds import make_bounds
from graphprune.passes.selection.linearised import additive, changes, pair_count, pairwise
from graphprune.passes.selection.target import KINDS, parse_target
from tests.passes.selection.asking import ask, residual, small


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "latency"])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.2])
def test_widths_meet_a_target_where_no_load_is_over_one(kind: str, share: float) -> None:
    """Sums of peak memory that are left out because they are part of others, or never too large, decide nothing."""
    question = ask(residual(), f"knapsack{{{kind}={share}}}")
    bounds, measure = question.bounds, question.cost.measures()[kind]
    random = np.random.default_rng(0)
    widths = np.ceil(question.groups.widths * random.uniform(0.05, 1, size=(500, 1)) ** random.uniform(0.5, 1, size=(500, 4)))
    met = measure(widths) <= share * measure(question.groups.widths)
    assert bounds.met(widths).tolist() == met.tolist()
    assert (bounds.loads(widths) <= 1).all(axis=1).tolist() == met.tolist()
    assert 0 < met.sum() < 500


def test_several_targets_are_met_together() -> None:
    question = ask(residual(), "knapsack{macs=50%,memory=60%}")
    one = make_bounds([parse_target("macs", 0.5)], question.cost.measures(), question.groups.widths)
    other = make_bounds([parse_target("memory", 0.6)], question.cost.measures(), question.groups.widths)
    widths = np.random.default_rng(0).integers(1, question.groups.widths + 1, size=(300, 4))
    assert question.bounds.met(widths).tolist() == (one.met(widths) & other.met(widths)).tolist()
    assert np.allclose(question.bounds.loads(widths), np.concatenate([one.loads(widths), other.loads(widths)], axis=1))


@pytest.mark.parametrize("kind", ["channels", "params", "macs", "weight_bytes"])
def test_with_pairs_the_expansion_is_the_measure(kind: str) -> None:
    """Around any anchor, and where channels are concatenated, so that terms are of three groups."""
    for model in (small(), residual()):
        question = ask(model, f"knapsack{{{kind}=50%}}")
        choices = question.choices()
        sizes = np.array([widths.size for widths in choices.widths])
        random = np.random.default_rng(0)
        for anchor in random.integers(0, sizes, size=(3, sizes.size)):
            (constraint,) = pairwise(choices, question.bounds, anchor)
            for items in random.integers(0, sizes, size=(50, sizes.size)):
                slack = constraint.limit - constraint.cost(items)
                assert slack == pytest.approx(
                    float((question.bounds.most - question.bounds.amounts(choices.at(items)))[0]), abs=1e-6
                )
    assert pair_count(choices, question.bounds) == sum(sizes[a] * sizes[b] for a, b in question.bounds.pairs)
    assert (question.bounds.pairs == []) == (kind == "channels")


def test_taken_apart_the_full_and_the_narrowest_model_are_exact() -> None:
    """From the full model on, the scale is such that the narrowest choice saves what it does; from one that fits there is none."""
    question = ask(residual(), "knapsack{macs=50%}")
    choices, bounds = question.choices(), question.bounds
    full, least = np.array([w.size - 1 for w in choices.widths]), np.zeros(4, dtype=np.int64)
    (constraint,) = additive(choices, bounds, full)
    amounts = [float(bounds.amounts(choices.at(items))[0]) for items in (full, least)]
    part = (amounts[0] - bounds.most[0]) / (amounts[0] - amounts[1])
    assert constraint.limit / constraint.cost(least) == pytest.approx(part)
    middle = full // 3
    (constraint,) = additive(choices, bounds, middle)
    assert constraint.limit == bounds.most[0] - bounds.amounts(choices.at(middle))[0]
    assert changes(choices, bounds, middle)[1][middle[1], 0] == 0
