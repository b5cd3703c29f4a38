"""SP-LAMP in stages: every stage an equal part of the way, by a knapsack that is optimal for its scores."""

from __future__ import annotations

import pytest
import torch

from graphprune import capture
from graphprune.latency.clock import Subject
from graphprune.methods import sp_lamp
from graphprune.runs.loop import Loop
from graphprune.runs.task import Task
from tests.loops import INPUT, DigitsLoop, Residual
from tests.planted_latency import PlantedClock


def test_stages_take_equal_parts_of_the_way() -> None:
    loop = DigitsLoop(2, count=200)
    how = {"train": loop.train, "evaluate": loop.evaluate, "epochs": 2}
    result = sp_lamp(
        Residual(32, 64),
        torch.zeros(INPUT),
        target="macs=40%",
        stages=3,
        stage_epochs=1,
        final_epochs=1,
        round_to=1,
        **how,  # type: ignore[arg-type]
    )
    dense, *rows = result.rounds
    for row, wanted in zip(rows, (0.8, 0.6, 0.4), strict=True):
        assert wanted - 0.04 < row.macs / dense.macs <= wanted
    assert loop.trained == [1, 1, 1]


def test_a_latency_is_met_as_measured_stage_by_stage() -> None:
    loop, clock = DigitsLoop(1, count=200), PlantedClock(overhead=0.05)
    task = Task(Residual(32, 64), torch.zeros(INPUT), Loop(loop.train, loop.evaluate), clock=clock)
    result = sp_lamp.run(task, sp_lamp.parse({"epochs": 1, "target": "latency=60%", "stages": 2, "stage_epochs": 0, "round_to": 1}))
    graphs = [capture(module, torch.zeros(INPUT)).module for module in (result.dense, result.model)]
    whole, slim = (sum(clock.nodes(Subject(graph, ())).values()) + 0.05 for graph in graphs)
    assert slim <= 0.61 * whole
    assert slim > 0.5 * whole
    rows = result.rounds[1:]
    assert [row.latency is not None and row.latency / whole for row in rows] == pytest.approx([0.8, slim / whole], abs=0.03)
