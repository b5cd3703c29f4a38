"""Questions that selection passes are asked on small models, and their best answers by brute force."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphprune
from graphprune.channels.groups import Floats, Ints
from graphprune.passes.selection.decision import Budgeted, Question
from graphprune.passes.selection.solvers.problem import Choices
from graphprune.pipeline.analysis_manager import AnalysisManager
from graphprune.pipeline.pass_manager import PassManager
from graphprune.pipeline.text import parse_pipeline
from tests.zoo.case import conv, net, pooled

IMAGE = torch.zeros(1, 3, 8, 8, dtype=torch.float64)


def small() -> nn.Module:
    """Three groups of 6, 5 and 4 channels, two of them concatenated."""

    def forward(self: Any, x: Tensor) -> Any:
        y = F.relu(self.a(x))
        return pooled(self.head, F.relu(self.c(torch.cat([y, self.b(y)], 1))))

    torch.manual_seed(1)
    return net(forward, a=conv(3, 6), b=conv(6, 5), c=conv(11, 4), head=nn.Linear(4, 2))


def residual() -> nn.Module:
    """Four groups of 12, 10, 14 and 16 channels: a chain with a residual sum."""

    def forward(self: Any, x: Tensor) -> Any:
        y = F.relu(self.stem(x))
        y = y + self.b(F.relu(self.a(y)))
        return pooled(self.head, F.relu(self.d(F.relu(self.c(y)))))

    torch.manual_seed(2)
    parts = {"stem": conv(3, 12), "a": conv(12, 10), "b": conv(10, 12), "c": conv(12, 14), "d": conv(14, 16)}
    return net(forward, **parts, head=nn.Linear(16, 2))


def ask(model: nn.Module, step: str, inputs: Any = IMAGE, score: str = "score") -> Question:
    """What a selection pass, given as text, is asked about a model."""
    program = PassManager(parse_pipeline(f"channels,{score}")).run(graphprune.capture(model, inputs))
    (made,) = parse_pipeline(step)
    assert isinstance(made, Budgeted)
    return made.question(program, AnalysisManager().view(program, made))


def widths_by(model: nn.Module, step: str, inputs: Any = IMAGE, score: str = "score") -> list[int]:
    """The widths that a selection pass chooses, after the rewrite."""
    result = graphprune.run_pipeline(graphprune.capture(model, inputs), f"channels,{score},{step},rewrite", model=model)
    return [after for _, after in result.report.widths.values()]


def kept_score(question: Question, widths: Any) -> float:
    """The sum of the scores of the most important units, of each group as many as it is wide."""
    values = question.scores.values
    parts = [np.sort(values[g.units])[::-1][:width] for g, width in zip(question.groups.prunable, widths, strict=True)]
    return float(sum(part.sum() for part in parts))


def best_score(question: Question) -> float:
    """The most that any allowed widths keep within the bounds, by trying all."""
    every = np.array(list(product(*(widths.tolist() for widths in question.widths))))
    fits = every[question.bounds.met(every)]
    return max(kept_score(question, widths) for widths in fits)


@dataclass(frozen=True)
class Planted:
    """A measure with a cost for each width of each group: the sum of these. Costs may fall and rise as they like."""

    costs: tuple[Floats, ...]  # of each group, by width from 0 on
    name: str = "macs"
    unit: str = ""
    rows: Any = None
    stepped: Any = None
    terms: Any = field(default=())

    def parts(self, widths: Any) -> Floats:
        given = np.asarray(widths).astype(np.int64)
        return np.stack([cost[given[..., group]] for group, cost in enumerate(self.costs)], axis=-1)

    def __call__(self, widths: Any) -> Floats:
        total: Floats = self.parts(widths).sum(axis=-1)
        return total


def all_widths(sizes: list[int], value: float = 1.0) -> Choices:
    """Every width from one on; each unit is worth a little less than the one before."""
    widths = tuple(np.arange(1, size + 1) for size in sizes)
    return Choices(widths, tuple(np.cumsum(value / np.arange(1.0, size + 1)) for size in sizes))


def as_widths(choices: Choices, items: Ints) -> list[int]:
    found: list[int] = choices.at(items).tolist()
    return found
