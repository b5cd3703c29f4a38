"""The knapsack pass keeps the most score that widths within the targets can keep, and they hold of the rewritten model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import graphprune
from graphprune.costs.cost import CostModel
from graphprune.errors import TargetError, UsageError
from graphprune.passes.selection.bounds import Bounds, Limit
from graphprune.passes.selection.knapsack import KnapsackPass
from graphprune.passes.selection.local_search import top
from graphprune.passes.selection.optimum import Search
from graphprune.passes.selection.target import KINDS, parse_target
from graphprune.pipeline.analysis_manager import AnalysisManager
from graphprune.pipeline.text import format_pipeline, parse_pipeline
from graphprune.scores import Scores
from tests.checking import counted_macs
from tests.passes.selection.asking import (
    IMAGE,
    Planted,
    all_widths,
    as_widths,
    ask,
    best_score,
    kept_score,
    residual,
    small,
    widths_by,
)
from tests.random_nets import RandomNet, networks
from tests.test_properties import images, profile
from tests.zoo.case import net


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "latency"])
@pytest.mark.parametrize("share", [0.9, 0.62, 0.5, 0.35])
def test_with_pairs_it_is_the_optimum_of_all_widths(kind: str, share: float) -> None:
    """Concatenated channels too, whose terms are of three groups; peak memory, the largest of several sums."""
    step = f"knapsack{{{kind}={share},pairwise=yes}}"
    question = ask(small(), step)
    found = widths_by(small(), step)
    assert question.bounds.met(found)
    assert kept_score(question, found) == pytest.approx(best_score(question), abs=1e-9)


@pytest.mark.parametrize("targets", ["macs=50%,params=60%", "macs=0.6,memory=0.8,channels=0.7", "weight_bytes=0.5,flops=40%"])
@pytest.mark.parametrize("pairwise", ["yes", "auto"])
def test_several_targets_together_have_one_optimum(targets: str, pairwise: str) -> None:
    step = f"knapsack{{{targets},pairwise={pairwise}}}"
    question = ask(small(), step)
    found = widths_by(small(), step)
    assert question.bounds.met(found)
    assert kept_score(question, found) == pytest.approx(best_score(question), abs=1e-9)


@pytest.mark.parametrize("solver", ["auto", "dynamic", "milp"])
@pytest.mark.parametrize("target", ["macs=70%", "macs=45%", "macs=25%", "params=50%", "params=60%,macs=40%", "memory=60%"])
def test_taken_apart_and_put_right_it_is_near_the_optimum(solver: str, target: str) -> None:
    """Sums over groups cannot promise the optimum of joint costs. On all 26,880 widths of this net it is within half a percent."""
    step = f"knapsack{{{target},solver={solver},pairwise=no}}"
    question = ask(residual(), step)
    found = widths_by(residual(), step)
    assert question.bounds.met(found)
    assert kept_score(question, found) >= 0.995 * best_score(question)


@pytest.mark.parametrize("solver", ["auto", "dynamic", "milp"])
def test_costs_that_are_sums_need_no_pairs_for_the_optimum(solver: str) -> None:
    step = f"knapsack{{channels=50%,solver={solver},pairwise=no}}"
    question = ask(residual(), step)
    assert kept_score(question, widths_by(residual(), step)) == pytest.approx(best_score(question))
    assert sum(widths_by(residual(), step)) == 26


def test_on_a_chain_the_dynamic_programme_takes_pairs_too() -> None:
    def forward(self: Any, x: torch.Tensor) -> Any:
        return self.d(self.c(self.b(self.a(x)).relu()).relu())

    torch.manual_seed(0)
    layers = {"a": nn.Linear(9, 7), "b": nn.Linear(7, 8), "c": nn.Linear(8, 6), "d": nn.Linear(6, 2)}
    model, inputs = net(forward, **layers), torch.zeros(1, 9, dtype=torch.float64)
    for solver in ("dynamic", "milp"):
        step = f"knapsack{{params=50%,solver={solver},pairwise=yes}}"
        question = ask(model, step, inputs)
        assert kept_score(question, widths_by(model, step, inputs)) == pytest.approx(best_score(question))


@pytest.mark.parametrize("target", ["macs=60%", "params=40%", "memory=75%"])
@pytest.mark.parametrize("options", ["", ",round_to=4", ",min_channels=3,max_ratio=0.7"])
def test_it_keeps_no_less_than_any_order_of_removal(target: str, options: str) -> None:
    """Uniform, global and isomorphic rankings, and the greedy pass, at the same target."""
    ours = f"knapsack{{{target},pairwise=no{options}}}"
    question = ask(residual(), ours)
    kept = kept_score(question, widths_by(residual(), ours))
    steps = [f"select{{{target},ranking={how}{options}}}" for how in ("local", "global", "isomorphic")]
    others = [kept_score(question, widths_by(residual(), step)) for step in [*steps, f"greedy{{{target}{options}}}"]]
    assert kept >= max(others) - 1e-9
    assert kept > min(others) + 1e-3, "and the orders do differ"


@pytest.mark.parametrize("solver", ["dynamic", "milp"])
def test_no_single_unit_more_fits(solver: str) -> None:
    step = f"knapsack{{macs=37%,solver={solver},pairwise=no}}"
    question, found = ask(residual(), step), np.array(widths_by(residual(), step))
    more = found + np.eye(found.size, dtype=np.int64)
    wider = more[(more <= question.groups.widths).all(axis=1)]
    assert len(wider) and not question.bounds.met(wider).any()


@profile(12)
@given(networks(), st.sampled_from(["macs=60%", "params=50%", "macs=70%,params=70%"]))
def test_targets_hold_on_recount_and_the_proof_passes_on_random_networks(model: RandomNet, target: str) -> None:
    program = graphprune.capture(model, images(1))
    try:
        result = graphprune.run_pipeline(program, f"channels,score,knapsack{{{target}}},rewrite,verify", model=model)
    except TargetError:
        with pytest.raises(TargetError):  # then no order of removal meets it either
            graphprune.run_pipeline(program, f"channels,score,select{{{target}}},rewrite", model=model)
        return
    report = result.report
    assert report.verification is not None and report.verification.passed
    kept = {"macs": report.after.macs / report.before.macs, "params": report.after.parameters / report.before.parameters}
    assert report.after.parameters == sum(p.numel() for p in result.model.parameters())
    for part in target.split(","):
        kind, share = part.split("=")
        assert kept[kind] <= float(share[:-1]) / 100 + 1e-12


def test_the_target_holds_on_torch_s_own_count() -> None:
    result = graphprune.run_pipeline(
        graphprune.capture(residual(), IMAGE), "channels,score,knapsack{macs=50%},rewrite,verify", model=residual()
    )
    assert counted_macs(result.model, IMAGE) <= 0.5 * counted_macs(residual(), IMAGE)


def test_units_without_a_score_stay() -> None:
    """Two of the first group's, then all of them; and a budget that only they could meet is out of reach."""
    first = ask(small(), "knapsack{channels=80%}").groups.prunable[0].units
    assert {0, 2} <= set(kept_of(first[[0, 2]], "40%")["a.weight"][0])
    assert "a.weight" not in kept_of(first, "60%")
    with pytest.raises(TargetError, match="can go down to"):
        kept_of(first, "40%")


def kept_of(silent: Any, share: str) -> Any:
    """What of the small net is kept where these units have no score."""
    question = ask(small(), "knapsack{channels=80%}")
    values = question.scores.values.copy()
    values[silent] = np.nan
    program = question.program.with_(scores={"some": Scores("some", values, {})})
    step = KnapsackPass(channels=share)
    plan = step.run(program, AnalysisManager().view(program, step)).plan
    assert plan is not None
    return plan.kept


# ------------------------------------------------------------------------------------------------------ staircases


def planted(costs: list[list[float]], most: float) -> Bounds:
    measure = Planted(tuple(np.array(cost, dtype=np.float64) for cost in costs), terms=[(g,) for g in range(len(costs))])
    return Bounds((Limit(parse_target("macs", 0.5), measure, most),), np.array([len(cost) - 1 for cost in costs]))


@pytest.mark.parametrize("solver", ["auto", "dynamic", "milp"])
@pytest.mark.parametrize("together", ["no", "yes"])
def test_a_width_that_costs_more_than_a_wider_one_is_never_chosen(solver: str, together: str) -> None:
    """A staircase with bumps: 5 and 6 of the first group cost more than its 7 and 8, whatever the budget."""
    bumpy = [0.0, 1, 2, 3, 4, 9, 9, 5, 5, 12]
    smooth = [0.0, 1, 2, 3, 4]
    for most in (3.0, 6.0, 7.0, 9.0, 10.0, 12.0, 14.0):
        for value in (1.0, -1.0):
            bounds = planted([bumpy, smooth], most)
            choices = all_widths([9, 4], value)
            wide, _ = as_widths(choices, Search(choices, bounds, solver, together, 1000).run())
            assert wide not in (5, 6)
            assert not any(cost < bumpy[wide] for cost in bumpy[wide:])


def test_narrow_and_slow_is_no_way_out_even_if_nothing_must_go() -> None:
    """The full width costs less than those below: it stays, and so does a full model that meets its budget."""
    choices, bounds = all_widths([4]), planted([[0.0, 3, 3, 3, 2]], 2.5)
    assert as_widths(choices, Search(choices, bounds, "auto", "no", 100).run()) == [4]


def test_auto_rounding_takes_the_steps_of_the_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kept widths are those that the measure names, or the full one; measures without steps allow all."""
    plain = CostModel.measures

    class WithSteps:
        def __init__(self, measure: Any) -> None:
            self.measure = measure

        def __getattr__(self, name: str) -> Any:
            return getattr(self.measure, name)

        def __call__(self, widths: Any) -> Any:
            return self.measure(widths)

        def steps(self, group: int) -> Any:
            return [3, 7, 9]

    assert ask(residual(), "knapsack{macs=50%,round_to=auto}").widths[0].tolist() == list(range(1, 13))
    monkeypatch.setattr(CostModel, "measures", lambda self, latency: {**plain(self), "macs": WithSteps(plain(self)["macs"])})
    for step in ("knapsack{macs=50%,round_to=auto}", "select{macs=50%,round_to=auto}", "greedy{macs=50%,round_to=auto}"):
        sizes = [12, 10, 14, 16]
        found = widths_by(residual(), step)
        assert all(width in (3, 7, 9, size) for width, size in zip(found, sizes, strict=True)) and found != sizes
    question = ask(residual(), "knapsack{macs=50%,round_to=auto,min_channels=4}")
    assert question.widths[1].tolist() == [7, 9, 10]


# --------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"macs": 0.5, "solver": "guess"},
        {"macs": 0.5, "pairwise": "maybe"},
        {"macs": 0.5, "buckets": 0},
        {"macs": 0.5, "round_to": 0},
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="knapsack"):
        KnapsackPass(**options)


def test_its_text_reads_back() -> None:
    text = "knapsack{macs=50%,memory=20MiB,round_to=auto,solver=milp,pairwise=no,buckets=500}"
    assert format_pipeline(parse_pipeline(text)) == text


def test_a_target_out_of_reach_says_how_far_it_goes() -> None:
    with pytest.raises(TargetError, match=r"macs=10% cannot be met: .* can go down to [\d.]+%"):
        widths_by(small(), "knapsack{macs=10%,min_channels=3}")


@pytest.mark.parametrize("target", ["macs=100%", "memory=100%", "memory=100%,pairwise=no", "params=100%,macs=100%,solver=dynamic"])
def test_a_target_of_everything_removes_nothing(target: str) -> None:
    """Of peak memory there is then no sum that binds."""
    assert widths_by(small(), f"knapsack{{{target}}}") == [6, 5, 4]
    assert top(all_widths([3, 2])).tolist() == [2, 1]


@pytest.mark.parametrize("name", ["knapsack", "greedy", "threshold"])
def test_prune_takes_the_selection_pass_by_name(name: str) -> None:
    """And says so in the plan; a ranking is for ``select`` only, and passes that do not select are refused."""
    result = graphprune.prune(small(), IMAGE, target="macs=50%", select=name, round_to=2, verify=False)
    assert f"{name}{{" in result.plan.pipeline and "round_to=2" in result.plan.pipeline
    assert [after for _, after in result.report.widths.values()] == widths_by(small(), f"{name}{{macs=50%,round_to=2}}")
    with pytest.raises(UsageError, match="has no ranking"):
        graphprune.prune(small(), IMAGE, select=name, ranking="local")
    with pytest.raises(UsageError, match=r"does not select by a target\. Choose from select, knapsack"):
        graphprune.prune(small(), IMAGE, select="rewrite")
    with pytest.raises(UsageError, match="did you mean 'knapsack'"):
        graphprune.prune(small(), IMAGE, select="knapsak")
