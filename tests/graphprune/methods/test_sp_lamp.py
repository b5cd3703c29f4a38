"""SP-LAMP in stages: every stage an equal part of the way, by a knapsack that is optimal for its scores."""

from __future__ import annotations

import torch

from graphprune.methods import sp_lamp
from tests.loops import INPUT, DigitsLoop, Residual


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
