"""LAASP cuts where the loss suffers least, whichever criterion says so, and trains between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import leaky_relu

from graphprune.methods import MethodResult, laasp
from tests.loops import INPUT, DigitsLoop, Residual


def _run(model: nn.Module, loop: DigitsLoop, **options: Any) -> MethodResult:
    how: dict[str, Any] = {"train": loop.train, "evaluate": loop.evaluate, "data": loop.data, "epochs": loop.epochs}
    return laasp(model, torch.zeros(INPUT), **how, **options)


def test_one_training_with_cuts_in_it_meets_the_target() -> None:
    loop = DigitsLoop(4, count=300)
    result = _run(Residual(16, 24), loop, target="macs=60%", start=0.5, delta=0.2, delta_epochs=1, step=8.0)
    before, after = result.pruned.report.before, result.pruned.report.after
    assert 0.6 - 0.12 <= after.macs / before.macs <= 0.6
    assert loop.trained == [0, 1, 2, 2, 3]  # until the start, after the first delta, and the rest
    assert [row.status for row in result.rounds] == ["begun", "accepted", "accepted", "final"]


def test_no_layer_loses_more_than_its_cap_over_all_cuts() -> None:
    result = _run(Residual(16, 24), DigitsLoop(1, count=200), trained=True, target="macs=45%", delta=0.2, step=8.0, max_ratio=0.5)
    widths = result.rounds[-1].widths
    assert widths["stem"] >= 8 and widths["conv1"] >= 12


class _Planted(nn.Module):
    """A hidden layer whose activation lets every unit say something, and scales with its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 20), nn.Linear(20, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.second(leaky_relu(self.first(x.flatten(1)), 0.1))
        return scores


def test_the_criterion_that_sees_what_is_redundant_is_chosen(tmp_path: Path) -> None:
    """The readout is the best one for 16 of the 20 units, a convex problem: to lose one of these can only cost."""
    model, loop = _Planted(), DigitsLoop(1, count=300)
    readout = torch.optim.LBFGS(model.second.parameters(), max_iter=60)
    with torch.no_grad():
        model.second.weight[:, :4] = 0.0
    model.second.weight.register_hook(lambda gradient: torch.cat([0 * gradient[:, :4], gradient[:, 4:]], 1))

    def loss() -> torch.Tensor:
        readout.zero_grad()
        found = loop.loss(model, torch.arange(300), None)
        found.backward()
        return found

    readout.step(loss)
    with torch.no_grad():
        # The first four units repeat the last four, and nobody reads them; the others are small, and read with large weights.
        model.first.weight[:4], model.first.bias[:4] = model.first.weight[16:], model.first.bias[16:]
        for part in (model.first.weight, model.first.bias):
            part[4:16] *= 0.05
        model.second.weight[:, 4:16] /= 0.05
    _run(model, loop, trained=True, target="macs=96%", delta=0.05, step=4.9, folder=tmp_path, recalibrate=False)
    steps = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()[1:]]
    (chosen,) = [step["result"]["plan"]["scores"]["loss-aware"] for step in steps if step["step"] == "choose"]
    first = json.loads(chosen["step 1"])
    assert first["criterion"] in ("euclidean", "cosine")
    assert set(first["units"]) <= {0, 1, 2, 3}
    assert first["loss"] == pytest.approx(first["before"])
