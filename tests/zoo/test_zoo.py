"""Each structure of the zoo: the groups found are those expected, and random plans are carried out exactly."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch

from graphprune.ir.program import Program
from graphprune.tracing import capture
from tests.checking import Analysed, analyse, check_plan, grouped, max_error, run
from tests.zoo import (
    across_channels,
    attention,
    convolutions,
    gates,
    graphs,
    heads,
    networks,
    norms,
    places,
    positions,
    shared_heads,
    time_steps,
    weights,
    wiring,
)
from tests.zoo.case import CASES, Case

assert all(
    (
        across_channels,
        attention,
        convolutions,
        gates,
        graphs,
        heads,
        networks,
        norms,
        places,
        positions,
        shared_heads,
        time_steps,
        weights,
        wiring,
    )
)


def names_and_sizes(groups: list[tuple[str, int]]) -> dict[str, int]:
    """Group names (a second group of the same name gets ``#2``) and sizes."""
    seen: Counter[str] = Counter()
    found = {}
    for name, size in groups:
        seen[name] += 1
        found[name if seen[name] == 1 else f"{name}#{seen[name]}"] = size
    return found


@cache
def captured(name: str) -> tuple[Case, Any, Program]:
    """A structure, its inputs and its capture, which no rule has a part in."""
    torch.manual_seed(0)
    case = CASES[name]()
    inputs = case.inputs(2)
    return case, inputs, capture(case.model, inputs)


@cache
def subject(name: str) -> tuple[Case, Analysed]:
    """A structure, analysed once for all of its tests (none may change it)."""
    case, inputs, program = captured(name)
    return case, grouped(case.model, inputs, program, policy=case.policy)


@pytest.mark.parametrize("name", CASES)
def test_groups_are_those_expected(name: str) -> None:
    case, found = subject(name)
    assert names_and_sizes([(g.name, g.size) for g in found.groups.prunable]) == dict(case.groups)
    for (tensor, axis), text in case.frozen.items():
        reasons = found.frozen_reasons(tensor, axis)
        assert any(text in reason for reason in reasons), f"{tensor}[{axis}] is frozen by {reasons or 'nothing'}"


@pytest.mark.parametrize("name", CASES)
def test_capture_computes_what_the_model_computes(name: str) -> None:
    case, found = subject(name)
    assert max_error(run(found.program.module, found.program.inputs), run(case.model, found.inputs)) == 0.0


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_random_plans_are_exact(name: str, seed: int) -> None:
    case, found = subject(name)
    torch.manual_seed(seed)
    statistics = any(group.statistics for group in found.groups.prunable)
    check_plan(
        found,
        found.random_plan(seed),
        other=case.inputs(3) if case.batch else None,
        zeros=case.zeros and not statistics,
        macs=case.macs,
        again=seed == 0,
    )


@pytest.mark.parametrize("name", ["separate_projections", "fused_qkv", "rotary_halves", "linear_attention"])
def test_heads_and_then_positions_of_the_heads_that_are_left(name: str) -> None:
    """Both policies for one site, one after the other: what is left is heads x positions."""
    case, whole = subject(name)
    slim = check_plan(whole, whole.random_plan(0), zeros=False, again=False)
    positions = analyse(slim, whole.inputs, policy={"heads": "head_dim"})
    smaller = check_plan(positions, positions.random_plan(1), other=case.inputs(3), zeros=False, again=False)
    models: list[Any] = [case.model, slim, smaller]
    widths = [model.proj.in_features for model in models]
    assert widths[0] > widths[1] > widths[2]
    heads = widths[1] // 4
    assert widths[1] == heads * 4 and widths[2] % heads == 0
