"""The threshold pass removes exactly the units at or below their layer's threshold, or finds the smallest that meets a target."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import graphprune
from graphprune.errors import TargetError, UsageError
from graphprune.passes.selection.threshold import ThresholdPass
from tests.passes.selection.asking import IMAGE, ask, small, widths_by

SCORE = "score{normalise=none}"
PARAMS = np.array([6 * 3 * 9, 5 * 6 * 9, 4 * 11 * 9])  # n_out x n_in x k^2 of the layers a, b, c
SHARES = {"params": PARAMS / PARAMS.sum(), "macs": PARAMS / PARAMS.sum(), "none": np.ones(3)}  # all see 8 x 8 places


def run(step: str, score: str = SCORE) -> graphprune.PruneResult:
    return graphprune.run_pipeline(graphprune.capture(small(), IMAGE), f"channels,{score},{step},rewrite", model=small())


def above(threshold: float, share: str, floor: int = 1) -> list[int]:
    """Widths by counting the scores above the layers' thresholds."""
    question = ask(small(), "select{macs=50%}", score=SCORE)
    scores = [question.scores.values[group.units] for group in question.groups.prunable]
    return [max(floor, int((own > threshold * part).sum())) for own, part in zip(scores, SHARES[share], strict=True)]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.5, 2.5, 4.0, 6.0, 100.0])
def test_units_at_or_below_the_threshold_of_their_layer_go(share: str, threshold: float) -> None:
    assert widths_by(small(), f"threshold{{threshold={threshold},share={share}}}", score=SCORE) == above(threshold, share)


def test_the_threshold_itself_goes() -> None:
    """Inclusive, as in the paper: with the score of a unit as the threshold that unit is gone."""
    question = ask(small(), "select{macs=50%}", score=SCORE)
    values = np.sort(question.scores.values[question.groups.prunable[0].units])
    found = widths_by(
        small(), f"threshold{{threshold={values[1]!r},share=none}}".replace("np.float64(", "").replace(")", ""), score=SCORE
    )
    assert found[0] == 4
    assert found == above(float(values[1]), "none")


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("target", ["macs=60%", "params=45%", "channels=70%", "memory=80%"])
def test_the_smallest_threshold_that_meets_the_target(share: str, target: str) -> None:
    """The plan says which it is; any below it, so one unit less, misses the target."""
    result = run(f"threshold{{{target},share={share}}}")
    question = ask(small(), f"threshold{{{target},share={share}}}", score=SCORE)
    (notes,) = result.plan.scores.values()
    threshold = float(notes["threshold"])
    widths = [after for _, after in result.report.widths.values()]
    assert widths == above(threshold, share) and notes["threshold_share"] == share
    assert question.bounds.met(widths)
    assert not question.bounds.met(above(np.nextafter(threshold, -np.inf), share))


def test_nothing_goes_where_nothing_must() -> None:
    assert run("threshold{macs=100%}").plan.kept == {}


def test_floors_and_multiples_hold() -> None:
    assert widths_by(small(), "threshold{threshold=1000,min_channels=3}", score=SCORE) == [3, 3, 3]
    assert widths_by(small(), "threshold{threshold=1000,round_to=2}", score=SCORE) == [2, 2, 2]
    with pytest.raises(TargetError, match="can go down to"):
        run("threshold{macs=1%}")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"threshold": 1.0, "macs": 0.5},
        {"threshold": float("nan")},
        {"macs": 0.5, "share": "width"},
        {"threshold": 1.0, "round_to": 0},
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="threshold"):
        ThresholdPass(**options)
