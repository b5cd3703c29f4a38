"""A scoring context of one layer: criteria see that layer's weights, and what reads its channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphprune.channels.filters import find_filters
from graphprune.criteria import Criterion, ScoringContext, find_criterion
from graphprune.errors import MemoryShortError
from graphprune.passes.scoring.expression import parse_criterion
from graphprune.passes.scoring.score import combined
from tests.checking import analyse
from tests.passes.selection.asking import IMAGE, residual


@pytest.mark.parametrize("tensor", ["stem.weight", "b.weight"])
def test_the_layers_of_a_residual_sum_are_ranked_each_by_itself(tensor: str) -> None:
    """Of layer b, whose two axes are one group's with those of other layers, only the axis that it makes counts."""
    model = residual()
    found = analyse(model, IMAGE)
    filters = find_filters(found.program, found.groups)
    maker = next(f for f in filters if f.makes and f.tensor == tensor)
    context = ScoringContext(found.program, found.groups, filters=filters).of(maker)
    rows = found.program.tensors[tensor].detach().flatten(1).numpy()
    apart = np.sqrt(((rows[:, None] - rows[None]) ** 2).sum(-1)).sum(1) / (len(rows) - 1)
    for name, wanted in {"l1": np.abs(rows).sum(1), "l2": np.sqrt((rows**2).sum(1)), "euclidean": apart}.items():
        values = find_criterion(name)(context)
        assert values[maker.units] == pytest.approx(wanted)
        assert np.isnan(np.delete(values, maker.units)).all()
    assert {f.tensor for f in context.filters} >= {tensor, "a.weight", "c.weight"}
    assert [f.tensor for f in context.filters if f.makes] == [tensor]


def test_a_sum_of_criteria_of_one_layer() -> None:
    found = analyse(residual(), IMAGE)
    filters = find_filters(found.program, found.groups)
    whole = ScoringContext(found.program, found.groups, filters=filters)
    maker = next(f for f in filters if f.makes and f.tensor == "a.weight")
    values = combined(parse_criterion("0.5*l1+0.5*l2"), whole.of(maker), "default", "max")[maker.units]
    parts = [combined(parse_criterion(name), whole.of(maker), "default", "max")[maker.units] for name in ("l1", "l2")]
    assert values == pytest.approx((parts[0] + parts[1]) / 2)
    assert not np.allclose(values, combined(parse_criterion("0.5*l1+0.5*l2"), whole, "default", "max")[maker.units])


def _criterion(error: Exception) -> Criterion:
    def fails(context: ScoringContext) -> Any:
        raise error

    return Criterion("hungry", fails, lambda: (), "mean", False, lambda: False)


def test_a_criterion_that_runs_out_of_memory_says_so_and_other_errors_are_its_own() -> None:
    short = RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: 2 bytes.")
    context: Any = None
    with pytest.raises(MemoryShortError, match="while criterion hungry made its values"):
        _criterion(short)(context)
    with pytest.raises(RuntimeError, match="shapes"):
        _criterion(RuntimeError("shapes"))(context)
