"""Measurements put a model right: towards the terms that were off, no further than they say, and most where it matters."""

from __future__ import annotations

import numpy as np
import pytest

from graphprune.latency.correction import Seen, corrected
from tests.planted_latency import Chain

SIZES = (32, 48, 64)
FULL = np.array(SIZES)
MODEL = Chain(SIZES, (0.5, 1, 1, 1))
TRUTH = Chain(SIZES, (0.5, 1.3, 0.8, 1.1))
UNKNOWN = np.full(4, np.nan)


def seen(widths: list[int], error: float = 0.0, *, layers: bool = False) -> Seen:
    """What a clock that makes no mistakes says."""
    parts = TRUTH.parts(widths) if layers else UNKNOWN
    return Seen(np.array(widths), float(TRUTH(widths)), error, parts)


def test_without_measurements_nothing_changes() -> None:
    found = corrected(MODEL, [], FULL, near=2.0)
    assert (found.factors == 1).all() and found([16, 24, 32]) == MODEL([16, 24, 32])
    assert found.terms == MODEL.terms and (found.name, found.unit) == ("latency", "ms")


def test_what_was_seen_is_predicted_and_its_neighbours_are_nearer_to_the_truth() -> None:
    one = seen([16, 40, 32])
    found = corrected(MODEL, [one], FULL, near=one.ms)
    assert found(one.widths) == pytest.approx(one.ms, rel=0.005)
    beside = [15, 42, 30]
    assert abs(found(beside) / TRUTH(beside) - 1) < abs(MODEL(beside) / TRUTH(beside) - 1) / 4


def test_times_of_layers_say_which_terms_were_off() -> None:
    one = seen([16, 24, 32], layers=True)
    found = corrected(MODEL, [one], FULL, near=one.ms)
    np.testing.assert_allclose(found.factors[1:], TRUTH.factors[1:], atol=0.03)
    whole = corrected(MODEL, [seen([16, 24, 32])], FULL, near=one.ms)
    assert np.abs(whole.factors[1:] - TRUTH.factors[1:]).max() > 0.1, "the sum alone does not"


def test_an_uncertain_measurement_moves_it_less() -> None:
    sure, unsure = (corrected(MODEL, [seen([32, 12, 40], error)], FULL, near=1.0) for error in (0.0, 0.5))
    assert 0 < np.abs(unsure.factors - 1).max() < np.abs(sure.factors - 1).max() / 3


def test_of_two_that_contradict_each_other_the_one_near_the_target_counts() -> None:
    near = Seen(np.array([16, 24, 32]), 2.0, 0.0, UNKNOWN)
    far = Seen(np.array([16, 24, 32]), 4.0, 0.0, UNKNOWN)
    found = corrected(MODEL, [near, far], FULL, near=2.0)
    assert abs(found([16, 24, 32]) - 2.0) < 0.1


def test_no_layer_becomes_free() -> None:
    nothing = Seen(FULL, 0.01, 0.0, np.array([np.nan, 1e-9, 1e-9, 1e-9]))
    assert (corrected(MODEL, [nothing] * 5, FULL, near=0.01).factors > 0).all()
