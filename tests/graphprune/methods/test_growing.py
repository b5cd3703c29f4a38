"""Growing regularisation: the penalty grows on what would go, and the cut is made when that no longer changes."""

from __future__ import annotations

import torch

from graphprune.methods import growing
from graphprune.methods.growing import grown, overlap
from graphprune.plans.plan import Plan
from tests.loops import INPUT, DigitsLoop, Residual


def _plan(*kept: int) -> Plan:
    return Plan(kept={"w": {0: list(kept)}}, model={})


def test_a_penalty_grows_on_what_goes_and_falls_back_on_what_stays() -> None:
    parameters = {"w": torch.zeros(4, 2)}
    first = grown({}, _plan(0, 1), 0.1, parameters)
    second = grown(first, _plan(0, 2), 0.1, parameters)
    torch.testing.assert_close(first["w"][0], torch.tensor([0.0, 0.0, 0.1, 0.1]))
    torch.testing.assert_close(second["w"][0], torch.tensor([0.0, 0.1, 0.0, 0.2]))


def test_overlap_is_intersection_over_union() -> None:
    assert overlap(_plan(0, 1), _plan(0, 1)) == 1
    assert overlap(_plan(0, 1, 2), _plan(1, 2, 3)) == 2 / 4


def test_the_penalty_presses_the_units_that_go_and_the_budget_is_met() -> None:
    loop = DigitsLoop(6, count=600)
    how = {"train": loop.train, "evaluate": loop.evaluate, "epochs": 6}
    result = growing(Residual(), torch.zeros(INPUT), strength=0.05, latest=0.7, start=0.2, **how)  # type: ignore[arg-type]
    assert result.pruned.report.after.macs <= 0.5 * result.pruned.report.before.macs
    assert loop.trained == [0, 1, 2, 3, 4, 5]  # one training, no epoch twice
    assert [row.status for row in result.rounds] == ["begun", "accepted", "final"]
