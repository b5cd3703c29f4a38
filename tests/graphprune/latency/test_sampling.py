"""Which widths are measured: few, that find every edge of a staircase, and the same ones after an interruption."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.latency.model import staircases
from graphprune.latency.sampling import divided, pending, spread
from graphprune.latency.table import LatencyTable, Sample
from graphprune.latency.timing import Timing
from tests.planted_latency import chain, conv_ms, empty_table, filled, stair


def _stairs(widths: Sequence[int]) -> float:
    return 5 + stair(widths[0], 48) * 0.1 + stair(widths[1], 32) * 0.05


def test_bisection_finds_every_edge_of_a_staircase_with_few_measurements() -> None:
    """Widths 1 to 192 and 1 to 128, stairs of 48 and 32: all edges exactly, with a fraction of the 320 widths."""
    table = filled(empty_table({"a": 192, "b": 128}, mode="model", step=1), _stairs)
    for one, block, height in zip(staircases(table), (48, 32), (4.8, 1.6), strict=True):
        full = int(table.full[one.group])
        rows = np.tile(table.full, (full, 1)).astype(np.float64)
        rows[:, one.group] = np.arange(1, full + 1)
        expected = [(np.ceil(width / block) - 1) * height for width in range(1, full + 1)]
        np.testing.assert_allclose(one(rows), expected, atol=1e-9)
    assert len(table.samples) < 60


def test_a_flat_group_is_not_divided() -> None:
    table = filled(empty_table({"a": 192, "b": 128}, mode="model", step=1), lambda widths: 5 + stair(widths[0], 96))
    alone = [sample for sample in table.samples if sample.widths[0] == 192 and sample.widths[1] < 128]
    assert [sample.widths[1] for sample in alone if not sample.held_out] == [1]


def test_times_within_their_spread_are_one_stair() -> None:
    """A difference that noise explains is not bisected; the same one without noise is."""

    def table(noise: float) -> LatencyTable:
        def timing(widths: Sequence[int]) -> Timing:
            ms = 10 + widths[0] / 64
            return Timing(median_ms=ms, low_ms=ms - noise, high_ms=ms + noise, runs=9)

        done = empty_table({"a": 64, "b": 64}, mode="model", step=1)
        while wanted := pending(done):
            done = done.plus([Sample(widths=one.widths, whole=timing(one.widths)) for one in wanted])
        return done

    assert len(table(2.0).samples) < len(table(0.0).samples)


@pytest.mark.parametrize("mode", ["layers", "model"])
def test_an_interrupted_run_goes_on_as_it_would_have(mode: str) -> None:
    """Cut anywhere, in the middle of a round too, the samples are those of the run that was not cut."""
    sizes = {"a": 40, "b": 64, "c": 24}

    def nodes(widths: Sequence[int]) -> dict[str, float]:
        lengths = zip(widths[1:], widths, strict=False)
        return {"n0": conv_ms(widths[0], 3)} | {f"n{i + 1}": conv_ms(out, inward) for i, (out, inward) in enumerate(lengths)}

    def whole(widths: Sequence[int]) -> float:
        return 1 + sum(nodes(widths).values())

    layers = nodes if mode == "layers" else (lambda widths: {})
    start = empty_table(sizes, nodes=chain(list(sizes.values())), mode=mode, samples=16, step=4)
    complete = filled(start, whole, layers)
    for count in range(len(complete.samples)):
        assert pending(complete.first(count))[0].widths == complete.samples[count].widths
        assert filled(complete.first(count), whole, layers) == complete


def test_layers_mode_measures_as_many_models_as_asked_and_holds_some_out() -> None:
    start = empty_table({"a": 40, "b": 64}, nodes=chain([40, 64]), samples=20)
    table = filled(start, lambda widths: 1.0, lambda widths: {"n0": 1.0, "n1": 1.0})
    assert len(table.samples) == 20
    assert table.samples[0].widths == (40, 64) and table.samples[1].widths == (1, 1)
    assert 2 <= sum(sample.held_out for sample in table.samples) < 5


@given(st.lists(st.integers(1, 300), min_size=1, max_size=6), st.integers(1, 12))
@settings(deadline=None)
def test_spread_covers_each_group_evenly(sizes: list[int], count: int) -> None:
    """Every group has one width in each of ``count`` equal parts of its range, and none outside of it."""
    widths = spread(np.array(sizes), count, 0)
    assert widths.min() >= 1 and (widths <= sizes).all()
    for column, size in zip(widths.T, sizes, strict=True):
        if size % count == 0:
            assert sorted((column - 1) * count // size) == list(range(count))


def test_division_goes_where_the_largest_step_is() -> None:
    widths, rest = np.array([1, 20, 40, 64]), np.array([0.0, 0.0, 3.0, 3.0])
    assert divided(widths, rest, 64, 1, 2)[0] == 30
    assert divided(widths, rest, 64, 30, 2).tolist() == [64, 64], "no interval is wide enough"
