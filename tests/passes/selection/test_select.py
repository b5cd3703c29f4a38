"""Selection: exactly the fewest removals that meet the target, in the ranking's order, within the floors; refusals that explain."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphprune
from graphprune.costs.cost import CostModel
from graphprune.criteria import ScoringContext, find_criterion
from graphprune.errors import TargetError, UsageError
from graphprune.passes.scoring.score import normalised
from graphprune.passes.selection.ranking import RANKINGS, rank
from graphprune.passes.selection.select import SelectPass
from graphprune.passes.selection.target import parse_target, split_target
from tests.checking import Analysed, analyse, counted_macs
from tests.zoo.case import conv, net, pooled

IMAGE = torch.zeros(1, 3, 8, 8, dtype=torch.float64)


def small() -> nn.Module:
    """Three groups: 6, 5 and 4 channels."""

    def forward(self: Any, x: Tensor) -> Any:
        y = F.relu(self.a(x))
        return pooled(self.head, F.relu(self.c(torch.cat([y, self.b(y)], 1))))

    return net(forward, a=conv(3, 6), b=conv(6, 5), c=conv(11, 4), head=nn.Linear(4, 2))


def scores(found: Analysed, criterion: str = "l2", how: str = "max") -> np.ndarray[Any, Any]:
    context = ScoringContext(found.program, found.groups)
    return normalised(find_criterion(criterion)(context), found.groups, how)


def widths(result: graphprune.PruneResult) -> list[int]:
    return [after for _, after in result.report.widths.values()]


@pytest.mark.parametrize(
    ("kind", "share"), [*product(("channels", "params", "macs", "flops", "weight_bytes", "memory"), [0.9, 0.5, 0.31])]
)
def test_global_selection_is_the_shortest_prefix(kind: str, share: float) -> None:
    """Brute force: removing one unit fewer misses the target; the removed units are the lowest scores that may go."""
    model = small()
    found = analyse(model, IMAGE)
    result = graphprune.prune(model, IMAGE, target={kind: share}, criterion="l2", verify=False)
    cost = CostModel(found.program, found.groups)
    measure = cost.measures()[kind]
    ranking = rank(scores(found), found.groups, "global", np.ones(3, dtype=np.int64))
    full = float(measure(found.groups.widths))
    met = [
        float(measure(ranking.widths_after(count, found.groups.widths))) <= share * full for count in range(ranking.units.size + 1)
    ]
    count = met.index(True)
    assert widths(result) == ranking.widths_after(count, found.groups.widths).tolist()
    assert float(measure(widths(result))) <= share * full
    assert count == 0 or not met[count - 1]
    assert result.plan.achieved[kind] == pytest.approx(float(measure(widths(result))) / full, abs=1e-6)
    gone = {int(unit) for unit in ranking.units[:count]}
    kept_values = [scores(found)[u] for g in found.groups.prunable for u in g.units if int(u) not in gone]
    removable = [scores(found)[u] for u in ranking.units[count:]]
    assert not gone or not removable or max(scores(found)[u] for u in gone) <= min(removable)
    assert len(kept_values) == sum(widths(result))


def test_global_selection_is_the_best_subset_of_units_by_score() -> None:
    """With room for none of the floors to matter, no other set of the same size removes less importance."""
    model = small()
    found = analyse(model, IMAGE)
    result = graphprune.prune(model, IMAGE, target="channels=80%", verify=False)
    removed = sum(found.groups.widths) - sum(widths(result))
    assert removed == 3
    values = np.sort(np.concatenate([scores(found)[g.units] for g in found.groups.prunable]))
    plan = result.plan
    lost = sum(
        float(scores(found)[u])
        for g in found.groups.prunable
        for i, u in enumerate(g.units)
        if i not in plan.kept.get(f"{g.name}.weight", {}).get(0, range(g.size))
    )
    assert lost == pytest.approx(float(values[:removed].sum()))


@pytest.mark.parametrize("share", [0.3, 0.5, 0.75])
def test_local_ranking_shrinks_all_groups_alike(share: float) -> None:
    result = graphprune.prune(small(), IMAGE, target={"channels": share}, ranking="local", verify=False)
    shares = [after / before for before, after in result.report.widths.values()]
    assert max(shares) - min(shares) <= 1 / 4 + 1e-9
    assert sum(widths(result)) <= share * 15


def test_local_ranking_keeps_the_most_important_of_each_group() -> None:
    model = small()
    found = analyse(model, IMAGE)
    plan = graphprune.prune(model, IMAGE, target="channels=50%", ranking="local", verify=False).plan
    for group in found.groups.prunable:
        kept = plan.kept[f"{group.name}.weight"][0]
        order = np.argsort(scores(found)[group.units])
        assert kept == sorted(order[len(order) - len(kept) :].tolist())


def test_isomorphic_ranking_ranks_among_groups_of_one_structure() -> None:
    """Two layers of one structure are one pool: the order in it is that of the scores."""

    def forward(self: Any, x: Tensor) -> Any:
        return self.head(F.relu(self.b(F.relu(self.a(x)))))

    model = net(forward, a=nn.Linear(8, 8), b=nn.Linear(8, 8), head=nn.Linear(8, 2))
    found = analyse(model, torch.zeros(1, 8, dtype=torch.float64))
    values = scores(found, how="none")
    ranking = rank(values, found.groups, "isomorphic", np.ones(2, dtype=np.int64))
    pooled_values = values[ranking.units]
    assert (np.diff(pooled_values) >= -1e-12).all(), "one pool: by score"
    assert set(RANKINGS) == {"global", "local", "isomorphic"}


@pytest.mark.parametrize("how", sorted(RANKINGS))
@pytest.mark.parametrize("criterion", ["l1", "l2", "random"])
def test_every_ranking_and_criterion_meets_its_target_and_verifies(how: str, criterion: str) -> None:
    model = small()
    result = graphprune.prune(model, IMAGE, target="macs=60%", criterion=criterion, ranking=how)
    assert result.report.verification is not None and result.report.verification.passed
    assert counted_macs(result.model, IMAGE) == result.report.after.macs <= 0.6 * counted_macs(model, IMAGE)


@pytest.mark.parametrize("how", sorted(RANKINGS))
def test_ties_fall_to_the_later_of_equals_in_the_same_way_each_time(how: str) -> None:
    model = small()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    plans = [graphprune.prune(model, IMAGE, target="channels=60%", ranking=how, verify=False).plan for _ in range(3)]
    assert plans[0].kept == plans[1].kept == plans[2].kept


def test_seeds_decide_random_criteria() -> None:
    kept = [
        graphprune.prune(small_fixed(), IMAGE, target="channels=50%", criterion="random", seed=s, verify=False).plan.kept
        for s in (1, 1, 2)
    ]
    assert kept[0] == kept[1] != kept[2]


def small_fixed() -> nn.Module:
    torch.manual_seed(3)
    return small()


@pytest.mark.parametrize("step", [2, 4])
def test_rounding_leaves_multiples_and_is_exact_to_one_step(step: int) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        return pooled(self.head, F.relu(self.b(F.relu(self.a(x)))))

    model = net(forward, a=conv(3, 16), b=conv(16, 12), head=nn.Linear(12, 2))
    found = analyse(model, IMAGE)
    cost = CostModel(found.program, found.groups)
    result = graphprune.prune(model, IMAGE, target="macs=40%", round_to=step, verify=False)
    assert all(width % step == 0 and width > 0 for width in widths(result))
    limit = 0.4 * float(cost.macs(found.groups.widths))
    assert float(cost.macs(widths(result))) <= limit
    larger = [widths(result)[0] + step, widths(result)[1]], [widths(result)[0], widths(result)[1] + step]
    assert any(float(cost.macs(w)) > limit for w in larger), "one step more in some group would miss"


def test_groups_too_narrow_for_a_step_are_no_silent_skip() -> None:
    with pytest.raises(TargetError, match=r"100\.0%"):
        graphprune.prune(small(), IMAGE, target="channels=90%", round_to=8, verify=False)


def test_heads_of_eight_are_multiples_of_eight() -> None:
    """round_to counts channels, not units: a unit of 8 channels may go by itself."""

    def forward(self: Any, x: Tensor) -> Any:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 32))

    model = net(forward, qkv=nn.Linear(5, 96), proj=nn.Linear(32, 2))
    x = torch.zeros(1, 3, 5, dtype=torch.float64)
    result = graphprune.prune(model, x, target="channels=75%", round_to=8)
    assert widths(result) == [3]


def test_floors_hold() -> None:
    result = graphprune.prune(small(), IMAGE, target="channels=60%", min_channels=3, verify=False)
    assert all(width >= 3 for width in widths(result)) and sum(widths(result)) <= 9
    result = graphprune.prune(small(), IMAGE, target="channels=60%", max_ratio=0.5, verify=False)
    assert all(after >= before / 2 for before, after in result.report.widths.values())


@pytest.mark.parametrize(
    "options", [{"min_channels": 4}, {"max_ratio": 0.1}, {"exclude": ["a", "b", "c"]}, {"exclude": ["*"]}, {"round_to": 16}]
)
def test_a_target_out_of_reach_says_how_far_it_goes(options: dict[str, Any]) -> None:
    with pytest.raises(TargetError, match=r"Target channels=0.3 cannot be met: .* can go down to [\d.]+%") as caught:
        graphprune.prune(small(), IMAGE, target={"channels": 0.3}, **options)
    assert "In the way" in str(caught.value)


def test_the_way_is_named_after_what_stands_in_it() -> None:
    with pytest.raises(TargetError, match="excluded by 'a'"):
        graphprune.prune(small(), IMAGE, target="params=20%", exclude=["a"], min_channels=4)


def test_a_model_that_does_not_trace_as_a_whole_is_told_what_to_do() -> None:
    """Single layers are its scopes, of which nothing can go: its own code uses what the first one makes."""

    def forward(self: Any, x: Tensor) -> Any:
        return torch.nonzero(self.b(self.a(x).relu()) > 0)

    with pytest.raises(TargetError, match=r"does not trace: it looks at the values .* Make one submodule of the layers"):
        graphprune.prune(net(forward, a=conv(3, 6), b=conv(6, 4)), torch.randn(1, 3, 8, 8).double(), target="channels=50%")


def test_the_least_that_is_promised_can_be_reached() -> None:
    """The share in the message is a target that works."""
    with pytest.raises(TargetError) as caught:
        graphprune.prune(small(), IMAGE, target="macs=0.1%", verify=False)
    share = float(str(caught.value).split("go down to ")[1].split("%")[0])
    assert graphprune.prune(small(), IMAGE, target=f"macs={share + 0.1:.1f}%", verify=False).plan


def test_several_targets_are_met_together() -> None:
    model = small()
    result = graphprune.prune(model, IMAGE, target={"params": 0.6, "macs": 0.7, "channels": 0.9}, verify=False)
    achieved = result.plan.achieved
    assert achieved["params"] <= 0.6 and achieved["macs"] <= 0.7 and achieved["channels"] <= 0.9


def test_a_target_of_everything_removes_nothing() -> None:
    result = graphprune.prune(small(), IMAGE, target="macs=100%", verify=False)
    assert result.plan.kept == {} and widths(result) == [6, 5, 4]


def test_what_is_excluded_stays_whole() -> None:
    result = graphprune.prune(small(), IMAGE, target="channels=60%", exclude=["b"], verify=False)
    assert result.model.get_parameter("b.weight").shape[0] == 5
    assert "b" not in result.report.widths


def test_an_exclusion_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"'nothing\.\*' matches no parameter"):
        graphprune.prune(small(), IMAGE, exclude=["nothing.*"])


def test_amounts_are_targets_too() -> None:
    model = small()
    result = graphprune.prune(model, IMAGE, target="params=300", verify=False)
    assert result.report.after.parameters <= 300 < result.report.before.parameters
    result = graphprune.prune(model, IMAGE, target="macs=20k", verify=False)
    assert result.report.after.macs <= 20_000


@pytest.mark.parametrize(
    "text",
    [
        "macs=0",
        "macs=0%",
        "macs=101%",
        "macs=-3%",
        "macs=half",
        "channels=1.5",
        "macs=",
        "flips=50%",
        "macs",
        "macs=5MiB",
        "memory=3ms",
    ],
)
def test_targets_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError):
        parse_target(*split_target(text))


@pytest.mark.parametrize(
    ("kind", "text", "limit"),
    [("macs", "50%", 500.0), ("macs", "0.5", 500.0), ("params", "1", 1000.0), ("macs", "100%", 1000.0), ("params", "2k", 2000.0),
     ("macs", "1.5M", 1.5e6), ("params", "12", 12.0), ("macs", "1e2", 100.0), ("params", ".25", 250.0),
     ("weight_bytes", "2MB", 2e6), ("memory", "1.5KiB", 1536.0), ("memory", "50%", 500.0), ("flops", "3G", 3e9)],
)  # fmt: skip
def test_what_targets_allow_of_a_thousand(kind: str, text: str, limit: float) -> None:
    assert parse_target(kind, text).limit(1000.0) == pytest.approx(limit)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"macs": 0.5, "ranking": "best"},
        {"macs": 0.5, "round_to": 0},
        {"macs": 0.5, "max_ratio": 0.0},
        {"macs": 0.5, "min_channels": 0},
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        SelectPass(**options).targets  # noqa: B018  (a bad target shows when it is read)


@pytest.mark.parametrize("how", RANKINGS)
def test_units_without_a_score_go_last(how: str) -> None:
    """Whole groups and single units; and what is known is ranked as if they were not there."""
    found = analyse(small(), IMAGE)
    values = np.random.default_rng(0).random(found.groups.unit_count)
    silent, partly, whole = found.groups.prunable
    values[silent.units] = np.nan
    values[partly.units[[0, 3]]] = np.nan
    ranking = rank(values, found.groups, how, np.zeros(3, dtype=np.int64))
    known = int((~np.isnan(values[ranking.units])).sum())
    assert known == partly.size - 2 + whole.size
    assert not np.isnan(values[ranking.units[:known]]).any() and np.isnan(values[ranking.units[known:]]).all()
    for group in (partly, whole):
        own = values[ranking.units[:known][ranking.groups[:known] == group.index]]
        assert (np.diff(own) >= 0).all()


@pytest.mark.parametrize("how", ["mean", "max", "gaussian"])
def test_units_without_a_score_have_no_part_in_normalisation(how: str) -> None:
    found = analyse(small(), IMAGE)
    group = found.groups.prunable[0]
    values = np.full(found.groups.unit_count, np.nan)
    values[group.units[1:]] = [1.0, 2.0, 3.0, 4.0, 5.0]
    result = normalised(values, found.groups, how)[group.units]
    assert np.isnan(result[0])
    wanted = {"mean": np.arange(1, 6) / 3, "max": np.arange(1, 6) / 5, "gaussian": (np.arange(1, 6) - 3) / np.sqrt(2)}
    assert result[1:] == pytest.approx(wanted[how])


def test_the_isomorphic_rank_is_that_among_known_units() -> None:
    """Two groups of one structure pool their units: a group's own scale has no part in it, and silent units do not shift ranks."""

    def forward(self: Any, x: Tensor) -> Any:
        return pooled(self.head, F.relu(self.b(F.relu(self.a(x))))) + pooled(self.side, F.relu(self.c(x)))

    parts = {"a": conv(3, 4), "b": conv(4, 4), "c": conv(3, 4), "head": nn.Linear(4, 2), "side": nn.Linear(4, 2)}
    found = analyse(net(forward, **parts), IMAGE)
    a, b, c = found.groups.prunable
    values = np.full(found.groups.unit_count, np.nan)
    values[a.units], values[b.units], values[c.units[:2]] = [1, 2, 3, 4], [5, 6, 7, 8], [100, 0.5]
    keys = RANKINGS["isomorphic"](values, found.groups, [g.units[np.argsort(values[g.units])] for g in (a, b, c)])
    assert keys[0].tolist() == [0.2, 0.3, 0.4, 0.5] and keys[1].tolist() == [0.6, 0.7, 0.8, 0.9]
    assert keys[2][:2].tolist() == [0.1, 1.0] and np.isnan(keys[2][2:]).all()
