"""Costs: exact for every width, the same as formulas, as vectors and as counted by torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import graphprune
from graphprune.channels.groups import Kept
from graphprune.costs.cost import CostModel, Costs
from graphprune.rules import tensors_in, views_only
from tests.checking import Analysed, analyse, counted_macs, random_units
from tests.zoo import attention, convolutions, norms, wiring
from tests.zoo.case import CASES, conv

NAMES = [
    "plain_chain",
    "dense_block",
    "grouped_within",
    "transposed_grouped_within",
    "fused_qkv",
    "pixel_shuffle",
    "several_inputs_and_outputs",
]
assert all((attention, convolutions, norms, wiring))


def case(name: str) -> tuple[Analysed, CostModel]:
    built = CASES[name]()
    found = analyse(built.model, built.inputs(2), policy=built.policy)
    return found, CostModel(found.program, found.groups)


@pytest.mark.parametrize("name", NAMES)
def test_formulas_and_numbers_agree(name: str) -> None:
    found, cost = case(name)
    for seed in range(3):
        widths = random_units(found.groups, seed).widths()
        values = {group.symbol: int(width) for group, width in zip(found.groups.prunable, widths, strict=True)}
        assert int(cost.parameters.formula.subs(values)) == int(cost.parameters(widths))
        assert int(cost.macs.formula.subs(values)) == int(cost.macs(widths))


@pytest.mark.parametrize("name", NAMES)
def test_many_widths_at_once(name: str) -> None:
    found, cost = case(name)
    table = np.stack([random_units(found.groups, seed).widths() for seed in range(6)]).reshape(2, 3, -1)
    for measure in (*cost.measures().values(), cost.bytes_moved):
        together = measure(table)
        assert together.shape == (2, 3)
        assert all(together[i, j] == measure(table[i, j]) for i in range(2) for j in range(3))


def test_costs_fall_with_every_unit() -> None:
    found, cost = case("dense_block")
    full = found.groups.widths
    for index in range(full.size):
        less = full.copy()
        less[index] -= 1
        assert cost.parameters(less) < cost.parameters(full) and cost.macs(less) < cost.macs(full)
        assert cost.weight_bytes(less) < cost.weight_bytes(full)
        assert cost.memory(less) <= cost.memory(full)


def test_flops_are_two_for_each_mac() -> None:
    assert Costs(1, 21, 4, 8).flops == 42


def test_tied_weights_and_shared_modules_count_once_and_work_twice() -> None:
    layer = nn.Linear(6, 6)
    model = nn.Sequential(nn.Linear(3, 6), layer, nn.ReLU(), layer, nn.Linear(6, 2))
    x = torch.zeros(5, 3)
    found = analyse(model, x)
    cost = CostModel(found.program, found.groups)
    assert int(cost.parameters(found.groups.widths)) == sum(p.numel() for p in model.parameters()) == 24 + 42 + 14
    assert int(cost.macs(found.groups.widths)) == counted_macs(model, x) == 5 * (18 + 36 + 36 + 12)


def test_buffers_weigh_but_are_no_parameters() -> None:
    model = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4)).half().eval()
    found = analyse(model, torch.zeros(1, 3, 2, 2, dtype=torch.half))
    cost = CostModel(found.program, found.groups)
    parameters = 3 * 4 * 9 + 4 + 8
    assert int(cost.parameters(found.groups.widths)) == parameters
    assert int(cost.weight_bytes(found.groups.widths)) == 2 * (parameters + 8) + 8, "and a counter of eight bytes"


def test_bytes_moved_by_hand() -> None:
    """Every operator reads its operands and writes its result; views and what they look at move nothing."""
    model = nn.Sequential(nn.Linear(10, 60), nn.ReLU(inplace=True), nn.Unflatten(1, (6, 10)), nn.Flatten(), nn.Linear(60, 2))
    found = analyse(model, torch.zeros(3, 10))
    cost = CostModel(found.program, found.groups)
    first, last = 3 * 10 + 10 * 60 + 60 + 3 * 60, 3 * 60 + 60 * 2 + 2 + 3 * 2
    assert float(cost.bytes_moved(found.groups.widths)) == 4 * (first + 2 * 3 * 60 + last), "in place too it is read and written"


@pytest.mark.parametrize("name", ["shuffled_by_views", "shuffle_unit_with_halves"])
def test_a_shuffle_moves_what_one_copy_does(name: str) -> None:
    """At full width that is what the operators of the original read and write."""
    found, cost = case(name)
    operations = [one for step in found.groups.trace.tape.steps for one in step.operations if not views_only(one.operator)]
    tensors = [t for one in operations for t in tensors_in((*one.args, *one.kwargs.values(), one.output))]
    assert found.groups.trace.shuffles
    assert float(cost.bytes_moved(found.groups.widths)) == sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("name", ["plain_chain", "dense_block", "grouped_within", "several_inputs_and_outputs"])
def test_bytes_moved_of_a_rewritten_model(name: str) -> None:
    found, cost = case(name)
    plan = found.random_plan(1)
    result = graphprune.apply_plan(found.model, found.inputs, plan, verify=False)
    again = analyse(result.graph, found.inputs)
    counted = CostModel(again.program, again.groups).bytes_moved(again.groups.widths)
    assert float(cost.bytes_moved([after for _, after in result.report.widths.values()])) == float(counted)


@pytest.mark.parametrize("name", NAMES)
def test_a_term_depends_on_its_own_groups_and_on_no_others(name: str) -> None:
    found, cost = case(name)
    full = found.groups.widths
    for measure in (*cost.measures().values(), cost.bytes_moved):
        before = measure.parts(full)
        for group in range(full.size):
            if full[group] > 1:
                changed = np.flatnonzero(measure.parts(full - np.eye(full.size, dtype=np.int64)[group]) != before)
                assert set(changed) == {term for term, groups in enumerate(measure.terms) if group in groups}


@pytest.mark.parametrize("name", NAMES)
def test_a_measure_is_the_sum_of_its_terms_or_the_largest_of_several(name: str) -> None:
    found, cost = case(name)
    widths = np.stack([random_units(found.groups, seed).widths() for seed in range(4)])
    for measure in (*cost.measures().values(), cost.bytes_moved):
        parts = measure.parts(widths)
        sums = parts.sum(axis=-1) if measure.rows is None else (measure.rows @ parts.T).max(axis=0)
        assert measure(widths).tolist() == sums.tolist()


def test_any_number_of_width_vectors_is_evaluated_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    found, cost = case("dense_block")
    widths = np.stack([random_units(found.groups, seed).widths() for seed in range(20)])
    wanted = [[float(measure(row)) for row in widths] for measure in cost.measures().values()]
    monkeypatch.setattr("graphprune.costs.measures._AT_A_TIME", 7)
    assert [measure(widths).tolist() for measure in cost.measures().values()] == wanted


def test_a_model_without_prunable_channels_has_a_cost_too() -> None:
    found = analyse(nn.Linear(3, 2), torch.zeros(1, 3))
    cost = CostModel(found.program, found.groups)
    assert {kind: float(measure([])) for kind, measure in cost.measures().items()} == {
        "channels": 0, "params": 8, "macs": 6, "flops": 12, "weight_bytes": 32, "memory": 4 * 5
    }  # fmt: skip


def test_peak_activation_memory_by_hand() -> None:
    """While a layer runs, what it reads and what it makes are alive; what nobody reads any more is not."""
    model = nn.Sequential(nn.Linear(10, 100), nn.Linear(100, 50), nn.Linear(50, 2))
    found = analyse(model, torch.zeros(1, 10))
    cost = CostModel(found.program, found.groups)
    assert cost.memory(found.groups.widths) == 4 * 150
    assert cost.memory(np.array([20, 50])) == 4 * 70
    assert cost.memory(np.array([1, 1])) == 4 * 11


def test_views_and_in_place_operators_hold_no_memory_of_their_own() -> None:
    model = nn.Sequential(nn.Linear(10, 60), nn.ReLU(inplace=True), nn.Unflatten(1, (6, 10)), nn.Flatten(), nn.Linear(60, 2))
    found = analyse(model, torch.zeros(1, 10))
    assert CostModel(found.program, found.groups).memory(found.groups.widths) == 4 * 70


def test_full_and_kept_widths() -> None:
    found, _ = case("plain_chain")
    everything = Kept(found.groups, np.ones(found.groups.unit_count, dtype=bool))
    assert everything.widths().tolist() == found.groups.widths.tolist() == [8, 6]
