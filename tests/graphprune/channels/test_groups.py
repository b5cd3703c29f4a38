"""Units and groups: partitions that do not depend on chance, sizes as expressions, frozen units with reasons."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from graphprune.channels.groups import FROZEN
from graphprune.channels.labels import axes_of
from tests.checking import Analysed, analyse, random_units
from tests.zoo import attention, convolutions, norms, wiring
from tests.zoo.case import CASES, conv

assert all((attention, convolutions, norms, wiring))
IMAGE = torch.zeros(1, 3, 8, 8)


def zoo(name: str) -> Analysed:
    built = CASES[name]()
    return analyse(built.model, built.inputs(2), policy=built.policy)


@pytest.mark.parametrize("name", CASES)
def test_every_unit_of_a_parameter_is_in_exactly_one_group(name: str) -> None:
    groups = zoo(name).groups
    units = np.concatenate([g.units for g in (*groups.prunable, *groups.frozen)])
    assert np.unique(units).size == units.size
    weights = [value for name, value in groups.trace.parameters.items() if name in groups.trace.weights]
    owned = {int(u) for value in weights for f in value.fields for u in groups.unit_of[f.ravel()]}
    assert owned <= set(units.tolist())
    for group in groups.prunable:
        assert group.reason is None and (groups.group_of[group.units] == group.index).all() and group.members
    for group in groups.frozen:
        assert group.reason is not None and str(group.reason) and (groups.group_of[group.units] == FROZEN).all()


@pytest.mark.parametrize("name", CASES)
def test_lengths_are_expressions_in_the_widths(name: str) -> None:
    """Of every tensor of the model, under random plans: constant + sum of coefficient x width, as numbers and as sympy."""
    groups = zoo(name).groups
    for seed in range(2):
        kept = random_units(groups, seed)
        widths = kept.widths()
        symbols = {g.symbol: int(w) for g, w in zip(groups.prunable, widths, strict=True)}
        for value in groups.trace.parameters.values():
            for field in value.fields:
                axis, mask = groups.vectors.axis(field), kept.vector(groups.vectors.index(field))
                assert axes_of(field) == (axis,)
                constant, terms = groups.linear(field)
                assert mask.sum() == constant + sum(n * widths[g] for g, n in terms.items())
                assert mask.sum() == int(groups.length(field).subs(symbols))


@pytest.mark.parametrize("name", CASES)
def test_every_index_of_a_member_belongs_to_as_many_units_as_it_says(name: str) -> None:
    groups = zoo(name).groups
    for group in groups.prunable:
        for member in group.members:
            field = groups.trace.parameters[member.tensor].on(member.axis)
            assert field is not None
            units = groups.unit_of[field.ravel()]
            assert all((units == unit).sum() == member.multiplicity for unit in group.units)


@pytest.mark.parametrize("name", ["dense_block", "fused_qkv", "shuffle_unit_with_halves", "two_option_a_shortcuts_in_a_row"])
def test_two_analyses_agree(name: str) -> None:
    one, two = zoo(name).groups, zoo(name).groups
    assert [(g.name, g.units.tolist(), g.members) for g in one.prunable] == [
        (g.name, g.units.tolist(), g.members) for g in two.prunable
    ]
    assert (one.unit_of == two.unit_of).all()


def test_the_coupling_graph_joins_groups_and_axes() -> None:
    groups = zoo("plain_chain").groups
    graph = groups.graph()
    assert {n for n, d in graph.nodes(data=True) if d["kind"] == "group"} == {"group:0", "group:1"}
    assert set(graph.neighbors("group:0")) >= {"a.weight[0]", "norm.running_var[0]", "b.weight[1]"}
    assert graph.nodes["group:0"]["width"] == 8
    assert any(d["kind"] == "frozen" and "output" in d["reason"] for _, d in graph.nodes(data=True))


def test_groups_are_found_by_the_name_of_a_layer() -> None:
    groups = zoo("plain_chain").groups
    assert {g.name for g in groups["norm"]} == {"a"}


@pytest.mark.parametrize(("pattern", "left"), [("0", [6]), ("0.weight", [6]), ("1", [6]), ("2.*", []), ("?.running_mean", [6])])
def test_what_is_excluded_is_frozen_with_that_reason(pattern: str, left: list[int]) -> None:
    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), conv(8, 6), conv(6, 2))
    found = analyse(model, IMAGE, exclude=(pattern,))
    assert [g.size for g in found.groups.prunable] == left
    assert f"excluded by {pattern!r}" in " ".join(str(g.reason) for g in found.groups.frozen)


def test_reasons_name_the_node_and_the_line_of_the_model() -> None:
    found = zoo("softmax_over_channels")
    reason = next(g.reason for g in found.groups.frozen if g.name == "a" and g.size == 6)
    assert reason is not None and reason.node == "softmax" and "softmax" in reason.operator
    assert reason.source.partition(":")[0].endswith("norms.py") or "norms.py" in reason.source


def test_depth_costs_no_recursion() -> None:
    """A chain of 400 layers, deeper than Python's stack would like."""
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(400)])
    found = analyse(model, torch.zeros(1, 4))
    assert len(found.groups.prunable) == 399


def test_a_residual_stream_is_one_unit_per_channel_however_long() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(3, 5)
            self.blocks = nn.ModuleList([nn.Linear(5, 5) for _ in range(50)])
            self.head = nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            for block in self.blocks:
                x = x + block(x)
            result: torch.Tensor = self.head(x)
            return result

    found = analyse(Deep(), torch.zeros(1, 3))
    assert [g.size for g in found.groups.prunable] == [5]
    assert len(found.groups.prunable[0].members) == 2 + 50 * 3 + 1
