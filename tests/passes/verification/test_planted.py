"""The oracle sees errors in every operator that it has a handler for: results rolled by one channel, positions moved by one."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch

import graphprune
from tests.checking import analyse
from tests.zoo import attention, gates, heads, networks, places, positions, shared_heads, weights
from tests.zoo.case import CASES

assert all((attention, gates, heads, networks, places, positions, shared_heads, weights))

# Structure of the zoo, call in it (its name), and the axis of its result that is rolled.
ROLLED: dict[str, tuple[str, str, int]] = {
    "unfold": ("unfolded_and_folded", "unfold", 1),
    "fold": ("unfolded_and_folded", "fold", 1),
    "bilinear": ("bilinear_layer", "pair", 1),
    "grid_sample": ("sampled_at_points", "grid_sample", 1),
    "attention of grouped queries": ("grouped_queries_of_torch", "scaled_dot_product_attention", 1),
    "complex numbers": ("rotary_complex_by_positions_of_every_head", "flatten", -1),
    "masked_fill": ("normalised_after_a_mask", "masked_fill", 2),
    "where": ("normalised_after_a_mask", "where", 2),
    "gather": ("tokens_chosen_by_score", "gather", 2),
    "repeat": ("normalised_after_a_mask", "norm", 2),
    "tril": ("masked_features", "bmm", 1),
}


def _pruned(name: str, seed: int = 1) -> tuple[Any, Any, Any, Any]:
    case = CASES[name]()
    inputs = case.inputs(2)
    found = analyse(case.model, inputs, policy=case.policy)
    plan = found.random_plan(seed)
    return case, inputs, plan, graphprune.apply_plan(case.model, inputs, plan, verify=False).model


def _called(slim: Any, name: str) -> Any:
    return next(node for node in slim.graph.nodes if node.name.startswith(name))


@pytest.mark.parametrize("name", ROLLED)
def test_a_rolled_result_is_found_where_it_is(name: str) -> None:
    structure, call, axis = ROLLED[name]
    for seed in range(6):
        case, inputs, plan, slim = _pruned(structure, seed)
        assert graphprune.verify(case.model, slim, plan, inputs).passed
        node = _called(slim, call)
        with slim.graph.inserting_after(node):
            rolled = slim.graph.call_function(torch.roll, (node, 1, axis))
        node.replace_all_uses_with(rolled)
        rolled.args = (node, 1, axis)
        # The name of the result is that of the call, so that it is compared with it.
        node.name, rolled.name = f"{node.name}_before", node.name
        slim.recompile()
        verdict = graphprune.verify(case.model, slim, plan, inputs)
        if not verdict.passed:
            assert rolled.name in verdict.failure
            return
    pytest.fail("no plan keeps two channels that differ")


def test_a_position_that_did_not_follow_is_found() -> None:
    for seed in range(4):
        case, inputs, plan, slim = _pruned("one_channel_taken_by_position", seed)
        node = next(n for n in slim.graph.nodes if n.target is operator.getitem)
        rows, place = node.args[1]
        node.args = (node.args[0], (rows, place - 1 if place else 1))
        slim.recompile()
        assert not graphprune.verify(case.model, slim, plan, inputs).passed


def test_bounds_of_a_write_that_did_not_follow_are_found() -> None:
    for seed in range(3):
        case, inputs, plan, slim = _pruned("shifted_in_time", seed)
        node = next(n for n in slim.graph.nodes if n.target is operator.setitem)
        index = list(node.args[1])
        index[2] = slice(index[2].start, index[2].stop + 1)
        node.args = (node.args[0], tuple(index), node.args[2])
        slim.recompile()
        assert not graphprune.verify(case.model, slim, plan, inputs).passed


def test_a_step_from_another_start_is_found() -> None:
    case, inputs, plan, slim = _pruned("every_second_channel")
    node = next(n for n in slim.graph.nodes if n.target is operator.getitem)
    node.args = (node.args[0], (slice(None), slice(1, None, 2)))
    slim.recompile()
    verdict = graphprune.verify(case.model, slim, plan, inputs)
    assert not verdict.passed and node.name in verdict.failure


def test_weights_of_another_length_are_found() -> None:
    case, inputs, plan, slim = _pruned("weight_norm")
    node = _called(slim, "_weight_norm_1")
    with slim.graph.inserting_after(node):
        other = slim.graph.call_function(torch.mul, (node, 1.0 + 1e-6))
    node.replace_all_uses_with(other)
    other.args = (node, 1.0 + 1e-6)
    slim.recompile()
    assert not graphprune.verify(case.model, slim, plan, inputs).passed
