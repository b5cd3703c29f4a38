"""Several measurements of the same models are one, in which the surer ones count more."""

from __future__ import annotations

import numpy as np
import pytest

from graphprune.latency.source import Measured


def test_two_equally_sure_measurements_give_their_mean_with_less_error() -> None:
    both = Measured(4.0, 10.0, 0.02, np.array([1.0, np.nan])).pooled(Measured(4.2, 10.5, 0.02, np.array([3.0, np.nan])))
    assert both.share == pytest.approx(0.4) and both.slim == pytest.approx((4.0 * 4.2) ** 0.5)
    assert both.error == pytest.approx(0.02 / 2**0.5)
    assert both.parts is not None and both.parts[0] == 2.0


def test_a_sure_one_outweighs_an_unsure_one() -> None:
    both = Measured(4.0, 10.0, 0.001).pooled(Measured(4.3, 10.0, 0.1))
    assert both.share == pytest.approx(0.4, rel=1e-3) and both.error < 0.001


def test_two_that_differ_by_more_than_they_say_are_less_sure_than_either() -> None:
    """Six per cent apart, of 0.5 % each: the mean is off by half of that as likely as not."""
    both = Measured(4.0, 10.0, 0.005).pooled(Measured(4.24, 10.0, 0.005))
    assert both.error == pytest.approx(np.log(1.06) / 2)
    alike = Measured(4.0, 10.0, 0.005).pooled(Measured(4.02, 10.0, 0.005))
    assert alike.error == pytest.approx(0.005 / 2**0.5)


def test_exact_ones_have_a_mean() -> None:
    assert Measured(4.0, 10.0).pooled(Measured(4.0, 10.0)).share == pytest.approx(0.4)
