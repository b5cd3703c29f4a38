"""Costs: exact for every width, the same as formulas, as vectors and as counted by torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from graphprune.cost import CostModel, Costs
from graphprune.groups import Kept
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
        assert int(cost.parameters_formula.subs(values)) == int(cost.parameters(widths))
        assert int(cost.macs_formula.subs(values)) == int(cost.macs(widths))


@pytest.mark.parametrize("name", NAMES)
def test_many_widths_at_once(name: str) -> None:
    found, cost = case(name)
    table = np.stack([random_units(found.groups, seed).widths() for seed in range(6)]).reshape(2, 3, -1)
    for measure in (cost.parameters, cost.macs, cost.weight_bytes, cost.channels):
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
        assert cost.activation_bytes(less) <= cost.activation_bytes(full)


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


def test_peak_activation_memory_by_hand() -> None:
    """While a layer runs, what it reads and what it makes are alive; what nobody reads any more is not."""
    model = nn.Sequential(nn.Linear(10, 100), nn.Linear(100, 50), nn.Linear(50, 2))
    found = analyse(model, torch.zeros(1, 10))
    cost = CostModel(found.program, found.groups)
    assert cost.activation_bytes(found.groups.widths) == 4 * 150
    assert cost.activation_bytes(np.array([20, 50])) == 4 * 70
    assert cost.activation_bytes(np.array([1, 1])) == 4 * 11


def test_views_and_in_place_operators_hold_no_memory_of_their_own() -> None:
    model = nn.Sequential(nn.Linear(10, 60), nn.ReLU(inplace=True), nn.Unflatten(1, (6, 10)), nn.Flatten(), nn.Linear(60, 2))
    found = analyse(model, torch.zeros(1, 10))
    assert CostModel(found.program, found.groups).activation_bytes(found.groups.widths) == 4 * 70


def test_full_and_kept_widths() -> None:
    found, _ = case("plain_chain")
    everything = Kept(found.groups, np.ones(found.groups.unit_count, dtype=bool))
    assert everything.widths().tolist() == found.groups.widths.tolist() == [8, 6]
