"""Each structure of the zoo: the groups found are those expected, and random plans are carried out exactly."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tests.checking import analyse, check_plan, max_error, run
from tests.zoo import attention, convolutions, norms, wiring
from tests.zoo.case import CASES

assert all((attention, convolutions, norms, wiring))


def names_and_sizes(groups: list[tuple[str, int]]) -> dict[str, int]:
    """Group names (a second group of the same name gets ``#2``) and sizes."""
    seen: Counter[str] = Counter()
    found = {}
    for name, size in groups:
        seen[name] += 1
        found[name if seen[name] == 1 else f"{name}#{seen[name]}"] = size
    return found


@pytest.mark.parametrize("name", CASES)
def test_groups_are_those_expected(name: str) -> None:
    case = CASES[name]()
    found = analyse(case.model, case.inputs(2), policy=case.policy)
    assert names_and_sizes([(g.name, g.size) for g in found.groups.prunable]) == dict(case.groups)
    for (tensor, axis), text in case.frozen.items():
        reasons = found.frozen_reasons(tensor, axis)
        assert any(text in reason for reason in reasons), f"{tensor}[{axis}] is frozen by {reasons or 'nothing'}"


@pytest.mark.parametrize("name", CASES)
def test_capture_computes_what_the_model_computes(name: str) -> None:
    case = CASES[name]()
    inputs = case.inputs(2)
    found = analyse(case.model, inputs, policy=case.policy)
    assert max_error(run(found.program.module, found.program.inputs), run(case.model, inputs)) == 0.0


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", CASES)
def test_random_plans_are_exact(name: str, seed: int) -> None:
    case = CASES[name]()
    torch.manual_seed(seed)
    found = analyse(case.model, case.inputs(2), policy=case.policy)
    statistics = any(group.statistics for group in found.groups.prunable)
    check_plan(
        found,
        found.random_plan(seed),
        other=case.inputs(3) if case.batch else None,
        zeros=case.zeros and not statistics,
        macs=case.macs,
        again=seed == 0,
    )
