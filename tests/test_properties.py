"""Properties of every pruning, on random networks and random plans.

``GRAPHPRUNE_EXAMPLES=2000`` draws that many networks anew instead of the fixed set.
"""

from __future__ import annotations

import os

import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

import graphprune
from graphprune.plans.plan import Plan
from tests.checking import analyse, check_plan, max_error, run
from tests.random_nets import RandomNet, networks

MANY = int(os.environ.get("GRAPHPRUNE_EXAMPLES", "0"))
POLICIES = st.fixed_dictionaries(
    {},
    optional={
        "heads": st.sampled_from(["whole", "head_dim"]),
        "conv_groups": st.sampled_from(["within", "whole"]),
        "norm_groups": st.sampled_from(["within", "whole"]),
    },
)


def profile(examples: int) -> settings:
    """A fixed set of examples, or as many new ones as the environment asks for."""
    return settings(
        max_examples=MANY or examples,
        derandomize=not MANY,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        print_blob=bool(MANY),
    )


def images(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(batch), dtype=torch.float64)


@profile(70)
@given(networks(), st.integers(0, 1000), POLICIES)
def test_random_plans_are_carried_out_exactly(model: RandomNet, seed: int, policy: dict[str, str]) -> None:
    """Oracle, recounted costs, another batch size, a second and a third pruning, and an untouched original."""
    note(str(model))
    found = analyse(model, images(2), policy=policy)
    statistics = any(group.statistics for group in found.groups.prunable)
    check_plan(found, found.random_plan(seed), other=images(3), zeros=not statistics)


@profile(30)
@given(networks(), st.integers(0, 1000))
def test_a_plan_says_everything(model: RandomNet, seed: int) -> None:
    """Through JSON and back, a plan makes the same model bit for bit."""
    note(str(model))
    found = analyse(model, images(2))
    plan = found.random_plan(seed)
    again = Plan.parse(plan.model_dump_json())
    assert again == plan
    first = graphprune.apply_plan(model, images(2), plan, verify=False).model
    second = graphprune.apply_plan(model, images(2), again, verify=False).model
    assert first.code == second.code
    one, two = first.state_dict(), second.state_dict()
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert max_error(run(first, images(2)), run(second, images(2))) == 0.0


@profile(20)
@given(networks(), st.floats(0.3, 0.9), st.sampled_from(["channels", "params", "macs"]))
def test_selection_is_verified_and_under_its_target(model: RandomNet, share: float, kind: str) -> None:
    """Whatever the network, a target is met and verified, or refused with how far the model can go."""
    note(str(model))
    try:
        result = graphprune.prune(model, images(2), target={kind: share}, criterion="l2")
    except graphprune.errors.TargetError as error:
        assert "can go down to" in str(error)
        return
    assert result.report.verification is not None and result.report.verification.error < 1e-10
    assert result.plan.achieved[kind] <= share + 1e-6
