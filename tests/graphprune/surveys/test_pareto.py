"""Sweeps: every point is what pruning at that budget does; an interrupted sweep ends as an uninterrupted one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import graphprune
from graphprune.errors import UsageError
from graphprune.surveys.pareto import Front, Point, Sweep, sweep

IMAGE = torch.zeros(2, 3, 8, 8)


def model(width: int = 12) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 16, 3), nn.ReLU(), nn.Conv2d(16, 10, 1), nn.Flatten(), nn.Linear(160, 4)
    ).eval()


@pytest.mark.parametrize("metric", ["macs", "params", "memory"])
def test_each_point_is_what_pruning_at_that_budget_keeps(metric: str) -> None:
    front = sweep(model(), IMAGE, Sweep(metric=metric, points=3, least=0.4, ways=("global", "local")))
    assert [(p.way, round(p.asked, 3)) for p in front.points] == [(w, s) for s in (0.8, 0.6, 0.4) for w in ("global", "local")]
    for point in front.points:
        target = {metric: point.asked * (1 + 1e-9)}
        result = graphprune.prune(model(), IMAGE, target=target, ranking=point.way, verify=False)
        assert point.widths == {name: after for name, (_, after) in result.report.widths.items()}
        assert point.shares["macs"] == pytest.approx(result.report.after.macs / result.report.before.macs)
        assert point.shares["memory"] == pytest.approx(result.report.after.activation_bytes / result.report.before.activation_bytes)
        assert point.shares[metric] <= point.asked * (1 + 1e-6)


def test_the_score_kept_is_that_of_the_kept_filters_by_hand() -> None:
    """By l1 of whole units without scaling, computed here from the weights."""
    first, second = nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, 3], [4, 4, 4]]))
        second.weight.fill_(1.0)
        units = first.weight.abs().sum(1) + second.weight.abs().sum(0)
    net = nn.Sequential(first, second)
    front = sweep(
        net, torch.zeros(1, 3), Sweep(metric="channels", points=1, least=0.5), criterion="l1", reduction="sum", normalise="none"
    )
    assert front.points[0].widths == {"0": 2}
    assert front.points[0].score == pytest.approx(float(units.sort().values[2:].sum() / units.sum()))


def test_by_default_the_last_point_is_one_unit_of_each_group() -> None:
    front = sweep(model(), IMAGE, Sweep(points=4))
    assert front.points[-1].reached and set(front.points[-1].widths.values()) == {1}
    asked = [point.asked for point in front.points]
    assert np.allclose(np.diff(asked), asked[1] - asked[0]) and asked[0] < 1


@pytest.mark.parametrize("options", [{}, {"round_to": 4}])
def test_what_is_kept_holds_at_every_point(options: dict[str, Any]) -> None:
    """Points lie between what is left with the other layers whole, and with one unit of each."""
    task = Sweep(points=3, ways=("global", "greedy"), keep={"0": 0.5}, options=options)
    front = sweep(model(), IMAGE, task)
    wide = 8 if options else 6
    assert {point.widths["0"] for point in front.points if point.reached} == {wide}
    assert front.points[0].reached and front.points[-1].reached is not bool(options)  # one unit is no multiple of 4
    whole = graphprune.prune(model(), IMAGE, keep={"0": 0.5}, verify=False, **options).report
    most, asked = whole.after.macs / whole.before.macs, [point.asked for point in front.points[::2]]
    assert most - asked[0] == pytest.approx(asked[0] - asked[1]) and 4 <= front.points[0].widths["2"] < 16


def test_a_front_is_gone_on_with_by_what_kept_the_same_alone() -> None:
    """Fronts of before go on, too."""
    front = sweep(model(), IMAGE, Sweep(points=1, least=0.1))
    assert "keep" not in front.settings
    with pytest.raises(UsageError, match="made with keep 'left out', not"):
        sweep(model(), IMAGE, Sweep(points=1, least=0.1, keep={"0": 1.0}), known=front)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Sweep(keep={"9": 0.5}), "keep='9' matches no layer"),
        (Sweep(keep={"*": 0.5}, least=0.9), "are left at most: least=0.9 is no less"),
    ],
)
def test_what_cannot_be_kept_is_refused(task: Sweep, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sweep(model(), IMAGE, task)


def test_a_budget_that_cannot_be_met_is_said() -> None:
    front = sweep(model(), IMAGE, Sweep(points=2, least=0.01, options={"max_ratio": 0.5}))
    assert [point.reached for point in front.points] == [True, False]
    assert front.points[1].score is None and len(front.best) == 1


def test_an_interrupted_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    task = Sweep(points=4, ways=("global", "local"))
    whole = sweep(model(), IMAGE, task)
    path = tmp_path / "front.json"

    def stop(front: Front) -> None:
        front.save(path)
        if len(front.points) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(model(), IMAGE, task, save=stop)
    added: list[int] = []
    resumed = sweep(model(), IMAGE, task, known=Front.load(path), save=lambda front: added.append(len(front.points)))
    assert resumed == whole and added == [4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"what": Sweep(metric="params", points=2)}, "metric"),
        ({"what": Sweep(points=3)}, "points"),
        ({"criterion": "l1"}, "criterion"),
        ({"exclude": ["0"]}, "exclude"),
        ({"seed": 3}, "seed"),
    ],
)
def test_a_sweep_does_not_go_on_from_one_of_something_else(changes: dict[str, Any], named: str) -> None:
    known = sweep(model(), IMAGE, Sweep(points=2))
    given: dict[str, Any] = {"what": Sweep(points=2), "known": known, **changes}
    with pytest.raises(UsageError, match=named):
        sweep(model(), IMAGE, **given)
    with pytest.raises(UsageError, match="another model"):
        sweep(model(14), IMAGE, Sweep(points=2), known=known)


def test_the_front_has_no_point_that_another_one_beats() -> None:
    def point(cost: float, score: float) -> Point:
        return Point(way="global", asked=cost, shares={"macs": cost}, score=score)

    points = [point(0.9, 0.95), point(0.8, 0.96), point(0.5, 0.7), point(0.5, 0.6), point(0.4, 0.7)]
    front = Front(metric="macs", model={}, settings={}, costs={}, points=points)
    assert [(p.asked, p.score) for p in front.best] == [(0.8, 0.96), (0.4, 0.7)]
    first, _, *rows = str(front).splitlines()
    assert first.startswith("5 points") and [row.split() for row in rows] == [
        ["global", "80.0%", "-", "96.0%"],
        ["global", "40.0%", "-", "70.0%"],
    ]


@pytest.mark.parametrize("options", [{"metric": "mac"}, {"points": 0}, {"least": 1.5}, {"ways": ("globl",)}, {"ways": ("score",)}])
def test_sweeps_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Sweep(**options)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"metric": "macs"}', '{"schema_version": 2}'])
def test_a_file_that_is_no_front(tmp_path: Path, text: str) -> None:
    path = tmp_path / "front.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="no valid front"):
        Front.load(path)


def test_a_model_with_nothing_to_prune() -> None:
    with pytest.raises(UsageError, match="no prunable group"):
        sweep(nn.Linear(3, 2), torch.zeros(1, 3))


def test_a_front_whose_points_lack_its_metric_is_refused(tmp_path: Path) -> None:
    point = {"way": "global", "asked": 0.5, "score": 0.5, "shares": {"params": 0.5}}
    front = {"metric": "macs", "model": {}, "settings": {}, "costs": {}, "points": [point]}
    (tmp_path / "f.json").write_text(json.dumps(front))
    with pytest.raises(UsageError, match="no share of macs"):
        Front.load(tmp_path / "f.json")
