"""The fitted latency: reproduces planted costs, is the sum of its parts, and never rewards a wider layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.errors import LatencyError
from graphprune.latency.fit import LayerTime, RisingTime, fit_layer
from graphprune.latency.model import LatencyModel, additivity, held_out_accuracy, staircases
from graphprune.latency.table import LatencyTable, Sample
from tests.planted_latency import chain, conv_ms, empty_table, exactly, filled

SIZES = {"a": 40, "b": 64, "c": 24}


def _nodes(widths: Sequence[int]) -> dict[str, float]:
    lengths = zip(widths[1:], widths, strict=False)
    return {"n0": conv_ms(widths[0], 3)} | {f"n{i + 1}": conv_ms(out, inward) for i, (out, inward) in enumerate(lengths)}


def _whole(widths: Sequence[int]) -> float:
    return 0.3 + 1.1 * sum(_nodes(widths).values())


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return filled(empty_table(SIZES, nodes=chain(list(SIZES.values())), samples=24), _whole, _nodes)


def test_a_planted_additive_cost_is_reproduced(table: LatencyTable) -> None:
    """At widths that were never measured, with the overhead and the factor on the layers' sum."""
    random = np.random.default_rng(5)
    widths = random.integers(1, list(SIZES.values()), size=(200, 3), endpoint=True)
    expected = [_whole(row) for row in widths.tolist()]
    np.testing.assert_allclose(LatencyModel(table)(widths), expected, rtol=0.01)
    tested = held_out_accuracy(table)
    assert tested is not None and tested.worst < 0.01


def test_the_sum_of_layers_is_compared_with_the_whole(table: LatencyTable) -> None:
    found = additivity(table)
    errors = [abs(sum(s.nodes.values()) / s.whole.median_ms - 1) for s in table.samples]
    assert found is not None and found.worst == pytest.approx(max(errors)) and found.worst > 0.1


@given(st.lists(st.tuples(*(st.integers(1, size) for size in SIZES.values())), min_size=1, max_size=4))
@settings(deadline=None, max_examples=30)
def test_latency_is_the_sum_of_its_parts_and_monotone(rows: list[tuple[int, ...]]) -> None:
    model = _model()
    widths = np.array(rows)
    parts = model.parts(widths)
    assert parts.shape == (len(rows), len(model.terms))
    np.testing.assert_allclose(parts.sum(axis=-1), model(widths))
    wider = np.minimum(widths + 1, list(SIZES.values()))
    assert (model.parts(wider) >= parts - 1e-12).all()


_known: list[LatencyModel] = []


def _model() -> LatencyModel:
    """Made once for all examples."""
    if not _known:
        _known.append(LatencyModel(filled(empty_table(SIZES, nodes=chain(list(SIZES.values())), samples=24), _whole, _nodes)))
    return _known[0]


def test_a_term_depends_on_its_groups_only(table: LatencyTable) -> None:
    model = LatencyModel(table)
    full = model.parts(table.full)
    for group in range(len(SIZES)):
        narrow = table.full.copy()
        narrow[group] = 1
        changed = np.flatnonzero(model.parts(narrow) != full)
        assert {place for place, term in enumerate(model.terms) if group in term} == set(changed.tolist())


def test_measured_layers_add_up_to_the_terms(table: LatencyTable) -> None:
    """On the scale of the whole model; what is outside of the layers was not measured."""
    model, widths = LatencyModel(table), [20, 32, 12]
    measured = model.parts_of(_nodes(widths))
    assert [bool(np.isnan(part)) for part in measured] == [term == () for term in model.terms]
    np.testing.assert_allclose(measured[1:], model.parts(widths)[1:], rtol=0.02)
    alone = LatencyModel(empty_table({"a": 4}, mode="model").plus([_sample((4,), 2.0), _sample((1,), 1.0)]))
    assert np.isnan(alone.parts_of({})).all()


def _sample(widths: tuple[int, ...], ms: float) -> Sample:
    return Sample(widths=widths, whole=exactly(ms))


@pytest.mark.parametrize("block", [1, 4, 16])
def test_the_block_that_a_device_works_in_is_found(block: int) -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(1, 128, size=(40, 2))
    time = fit_layer(lengths, [conv_ms(out, inward, block) for out, inward in lengths.tolist()])
    assert isinstance(time, LayerTime) and time.granularities == (block, 1)
    assert time([33, 50]) == pytest.approx(conv_ms(33, 50, block), rel=1e-6)


def test_a_cliff_is_followed() -> None:
    """A layer that costs three times as much from 64 channels on, as where a cache is passed; otherwise in proportion."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, 128, size=(40, 1))
    time = fit_layer(lengths, [length * (3.0 if length >= 64 else 1.0) for (length,) in lengths.tolist()])
    assert isinstance(time, RisingTime)
    assert time([50]) == pytest.approx(50, rel=0.1) and time([100]) == pytest.approx(300, rel=0.1)
    assert (np.diff(time(np.arange(1, 129)[:, None])) >= 0).all()


def test_a_few_long_times_of_a_busy_machine_do_not_bend_the_fit() -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(1, 128, size=(40, 2))
    times = np.array([conv_ms(out, inward, 1) for out, inward in lengths.tolist()])
    times[::8] *= 2
    time = fit_layer(lengths, times)
    assert time([100, 100]) == pytest.approx(conv_ms(100, 100, 1), rel=0.05)


def test_a_narrower_width_that_was_slower_costs_no_more_than_a_wider_one() -> None:
    """Width 30 measured 9 ms and width 40 only 8: whoever wants 30 keeps 40."""
    table = empty_table({"a": 64, "b": 8}, mode="model")
    times = {(64, 8): 10.0, (1, 1): 4.0, (1, 8): 5.0, (30, 8): 9.0, (40, 8): 8.0, (64, 1): 9.0}
    table = table.plus([Sample(widths=widths, whole=exactly(ms)) for widths, ms in times.items()])
    assert staircases(table)[0].ms.tolist() == [0.0, 3.0, 3.0, 5.0]
    model = LatencyModel(table)
    assert model([64, 8]) == pytest.approx(10.0) and model([1, 1]) == pytest.approx(4.0)
    assert model([30, 8]) == model([40, 8]) < model([41, 8]), "between measurements the next wider one counts"


def test_an_unfinished_table_is_no_model() -> None:
    with pytest.raises(LatencyError, match="not finished"):
        LatencyModel(empty_table({"a": 4}))
