"""Of a group of the original, such as the heads of an attention, the last unit stays whole in later rounds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import graphprune
from graphprune.errors import TargetError
from graphprune.passes.scoring.score import ScorePass
from graphprune.passes.selection.select import SelectPass
from graphprune.runs.bench import Bench
from graphprune.runs.loop import Loop
from graphprune.runs.task import Task
from tests.loops import INPUT, DigitsLoop


class Attending(nn.Module):
    """A row of the image is a token; four heads of three positions, and a classifier. (n, 1, 8, 8) to (n, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 48)
        self.qkv = nn.Linear(48, 36)
        self.proj = nn.Linear(12, 48)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (n, 1, 8, 8) and (n, 10)."""
        x = self.embed(x[:, 0])
        n, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, 4, 3).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, 12)
        scores: Tensor = self.head((x + self.proj(y)).mean(1))
        return scores


def test_rounds_after_a_single_head_is_left_make_a_plan_of_the_original() -> None:
    torch.manual_seed(0)
    loop, model = DigitsLoop(2, count=64), Attending()
    bench = Bench(Task(model, torch.zeros(INPUT), Loop(loop.train, loop.evaluate)), {})
    stage = bench.dense()
    for channels in ("25%", "50%"):
        stage = bench.prune(stage, [ScorePass("l2"), SelectPass(channels=channels, ranking="local")])
    widths = bench.widths(stage)
    assert widths["qkv"] == 1 and widths["embed"] < 12, "the second round cut others"
    assert stage.plan is not None
    assert "[0]" not in stage.plan.pipeline, "what stays for that reason is no exclusion of the user's"
    with pytest.raises(TargetError, match=r"qkv \(the run keeps the last unit of qkv \(qkv.weight\)\)"):
        bench.prune(stage, [ScorePass("l2"), SelectPass(macs="0.1%")])
    again = graphprune.apply_plan(model, torch.zeros(INPUT), stage.plan)
    assert {name: after for name, (_, after) in again.report.widths.items()} == widths
