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
    both = Measured(4.0, 10.0, 0.001).pooled(Measured(5.0, 10.0, 0.1))
    assert both.share == pytest.approx(0.4, rel=1e-3) and both.error < 0.001


def test_exact_ones_have_a_mean() -> None:
    assert Measured(4.0, 10.0).pooled(Measured(4.0, 10.0)).share == pytest.approx(0.4)
