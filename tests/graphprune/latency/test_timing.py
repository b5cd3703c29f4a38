"""A time says how sure it is: by the spread of copies where there are several, by its turns where there is one."""

from __future__ import annotations

import numpy as np
import pytest

from graphprune.latency.timing import Ratio, Timing, standard_error, uncertainty


def timing(*copies: float) -> Timing:
    """The time of these copies, whose turns were all alike."""
    ms = float(np.exp(np.log(copies).mean()))
    return Timing(median_ms=ms, low_ms=ms, high_ms=ms, runs=9, turns=3, copies_ms=copies)


@pytest.mark.parametrize("count", [2, 3, 7, 30])
def test_the_true_mean_lies_within_one_error_in_68_per_cent_of_all_cases(count: int) -> None:
    random = np.random.default_rng(count)
    samples = random.normal(5.0, 2.0, (4000, count))
    within = np.mean([abs(sample.mean() - 5.0) <= standard_error(sample) for sample in samples])
    assert within == pytest.approx(0.683, abs=0.025)


def test_copies_that_differ_make_a_time_unsure_though_every_turn_is_the_same() -> None:
    assert timing(1.0, 1.0, 1.0).error == 0
    assert timing(1.0, 1.1, 1.2).error == pytest.approx(standard_error(np.log([1.0, 1.1, 1.2]))) and timing(1.0, 1.1).error > 0.05


def test_of_one_copy_the_turns_tell() -> None:
    one = Timing(median_ms=10, low_ms=9, high_ms=11, runs=16, turns=16)
    assert one.spread == 0.1 and one.error == pytest.approx(1.858 * 0.1 / 4)


def test_a_ratio_compares_each_copy_with_the_one_beside_it() -> None:
    """What two copies have in common is no error of their ratio; of times that were not taken together both errors count."""
    slim, whole = timing(1.0, 1.2, 1.1), timing(2.0, 2.4, 2.2)
    assert slim.over(whole).value == pytest.approx(0.5) and slim.over(whole).error == pytest.approx(0, abs=1e-12)
    elsewhere = timing(2.0, 2.4, 2.2, 2.2)
    assert slim.over(elsewhere).error == pytest.approx(slim.error + elsewhere.error)


def test_of_several_times_the_most_uncertain_ratio_counts_and_of_one_its_own() -> None:
    steady, shaky = timing(1.0, 1.0, 1.0), timing(1.0, 1.3, 1.1)
    assert uncertainty([steady, steady]) == 0
    assert uncertainty([steady, shaky, steady]) == uncertainty([shaky]) == pytest.approx(shaky.error)


def test_a_ratio_is_shown_with_its_error_in_its_own_unit() -> None:
    assert str(Ratio(0.601, 0.005)) == "0.601 ± 0.003" and Ratio(0.601, 0.005).percent == "60.1% ± 0.3%"


def test_a_time_of_a_table_without_copies_is_still_read() -> None:
    assert Timing.model_validate({"median_ms": 2, "low_ms": 1.9, "high_ms": 2.1, "runs": 9}).copies_ms == ()
