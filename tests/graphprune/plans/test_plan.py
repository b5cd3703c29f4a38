"""Plans: a round trip through JSON, and refusals that name the first thing that is wrong, before anything is changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import graphprune
from graphprune.errors import PlanError
from graphprune.plans.plan import Plan, composed, fingerprint, kept_units
from tests.checking import Analysed, analyse, state_hash
from tests.zoo.case import conv

IMAGE = torch.zeros(1, 3, 6, 6)


@pytest.fixture
def found() -> Analysed:
    return analyse(nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), conv(6, 4), conv(4, 2)).eval(), IMAGE)


def changed(plan: Plan, name: str, axis: int, indices: list[int] | None) -> Plan:
    kept: dict[str, dict[int, list[int]]] = {key: dict(axes) for key, axes in plan.kept.items()}
    if indices is None:
        del kept[name][axis]
    else:
        kept.setdefault(name, {})[axis] = indices
    return plan.model_copy(update={"kept": kept})


def test_units_become_indices_and_come_back(found: Analysed) -> None:
    for seed in range(5):
        plan = found.random_plan(seed)
        kept = kept_units(plan, found.groups)
        assert found.plan(kept).kept == plan.kept
        assert plan.kept["0.weight"][0] == plan.kept["1.running_mean"][0] == plan.kept["2.weight"][1]
        assert all(indices == sorted(set(indices)) and indices for axes in plan.kept.values() for indices in axes.values())


def test_slices_go_back_to_their_places_and_what_was_removed_is_zero(found: Analysed) -> None:
    plan = found.random_plan(1)
    for name, tensor in found.model.state_dict().items():
        kept = torch.ones_like(tensor)
        for axis, indices in plan.kept.get(name, {}).items():
            gone = [index for index in range(tensor.shape[axis]) if index not in indices]
            kept = kept.index_fill(axis, torch.tensor(gone, dtype=torch.long), 0)
        back = plan.unslice(name, plan.slice(name, tensor), tensor.shape)
        assert torch.equal(back, tensor * kept) and back.dtype == tensor.dtype


def test_a_file_and_back(found: Analysed, tmp_path: Path) -> None:
    result = graphprune.prune(found.model, IMAGE, target="macs=50%", criterion="random", seed=4)
    path = tmp_path / "plan.json"
    result.plan.save(path)
    again = Plan.load(path)
    assert again == result.plan
    data = json.loads(path.read_text())
    assert data["schema_version"] == 1 and data["target"] == {"macs": "50%"} and "select" in data["pipeline"]
    assert data["achieved"]["macs"] <= 0.5 and data["model"] == fingerprint(found.model)
    first, second = result.model.state_dict(), graphprune.apply_plan(found.model, IMAGE, path).model.state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: changed(plan, "0.weight", 0, []), "indices for axis 0 of 0.weight"),
        (lambda plan: changed(plan, "0.weight", 0, [0, 0]), "not ascending"),
        (lambda plan: changed(plan, "0.weight", 0, [2, 1]), "not ascending"),
        (lambda plan: changed(plan, "0.weight", 0, [0, 6]), "below 6"),
        (lambda plan: changed(plan, "0.weight", 4, [0]), "cuts axis 4 of 0.weight, of shape"),
        (lambda plan: changed(plan, "2.weight", 1, None), "contradicts itself"),
        (lambda plan: changed(plan, "0.weight", 0, [0, 1]), "contradicts itself"),
        (lambda plan: changed(plan, "3.weight", 0, [0]), "contradicts itself|must stay"),
        (lambda plan: changed(changed(plan, "3.weight", 0, [0]), "3.bias", 0, [0]), "must stay: it reaches the model's output"),
        (lambda plan: changed(plan, "0.weight", 1, [0, 1]), "must stay"),
        (lambda plan: changed(plan, "0.weight", 2, [0, 1]), "must stay"),
        (lambda plan: changed(plan, "9.weight", 0, [0]), "9.weight, which the model's forward does not use"),
        (lambda plan: changed(plan, "1.num_batches_tracked", 0, [0]), "num_batches_tracked"),
    ],
)
def test_a_plan_that_contradicts_itself_or_the_model(found: Analysed, change: Any, message: str) -> None:
    """Whatever is wrong, it is a PlanError that names it, and the model is as it was."""
    plan = change(found.random_plan(0))
    before = state_hash(found.model)
    with pytest.raises(PlanError, match=message):
        graphprune.apply_plan(found.model, IMAGE, plan)
    assert state_hash(found.model) == before


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), conv(6, 5), conv(5, 2)), r"2\.bias is float32\[5\] here and float32\[4\]"),
        (nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), conv(6, 4)), r"3\.bias is missing"),
        (nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), conv(6, 4), conv(4, 2), conv(2, 2)), r"4\.bias exists here"),
        (nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), conv(6, 4), conv(4, 2)).double(), "float64"),
    ],
)
def test_another_model_is_refused_naming_the_first_difference(found: Analysed, other: nn.Module, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        graphprune.apply_plan(other, IMAGE.to(next(other.parameters()).dtype), found.random_plan(0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no valid plan"),
        ("{", "is no valid plan"),
        ("[]", "is no valid plan"),
        ('{"kept": {}}', "model"),
        ('{"kept": {}, "model": {}, "surprise": 1}', "surprise"),
        ('{"kept": {"a": {"0": [-1]}}, "model": {}}', "kept.a"),
        ('{"kept": {"a": {"x": [1]}}, "model": {}}', "kept.a"),
        ('{"kept": {"a": {"-1": [1]}}, "model": {}}', "kept.a"),
        ('{"kept": {}, "model": {}, "schema_version": 2}', "schema_version"),
    ],
)
def test_texts_that_are_no_plan(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(PlanError, match=message):
        Plan.load(path)
    assert path.read_text() == text


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="Cannot read"):
        Plan.load(tmp_path / "missing.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match="Cannot read"):
        Plan.load(tmp_path / "binary")


def test_plans_one_after_the_other_are_one_plan_of_the_original(found: Analysed) -> None:
    first = found.random_plan(0)
    once = graphprune.apply_plan(found.model, IMAGE, first).graph
    then = analyse(once, IMAGE).random_plan(1)
    twice = graphprune.apply_plan(once, IMAGE, then).model
    both = Plan(kept=composed(first.kept, then.kept), model=fingerprint(found.program.module))
    straight = graphprune.apply_plan(found.model, IMAGE, both).model
    assert all(torch.equal(one, two) for one, two in zip(twice.parameters(), straight.parameters(), strict=True))
    assert composed({}, first.kept) == composed(first.kept, {}) == first.kept


def test_tied_tensors_are_cut_alike_or_not_at_all() -> None:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    found = analyse(nn.Sequential(nn.Linear(3, 6), first, nn.ReLU(), second, nn.Linear(6, 2)).eval(), torch.zeros(1, 3))
    plan = found.random_plan(0)
    assert plan.kept["1.weight"] == plan.kept["3.weight"]
    kept = {name: axes for name, axes in plan.kept.items() if name != "3.weight"}
    with pytest.raises(PlanError, match=r"cuts 1\.weight and 3\.weight differently"):
        kept_units(plan.model_copy(update={"kept": kept}), found.groups)


def test_a_plan_cannot_be_changed(found: Analysed) -> None:
    plan = found.random_plan(0)
    with pytest.raises(ValueError, match="frozen"):
        setattr(plan, "pipeline", "other")  # noqa: B010  (mypy knows that it cannot be set)


def test_a_plan_that_keeps_what_an_earlier_one_does_not_leave_is_refused() -> None:
    first, later = (Plan(kept={"w": {0: kept}}, model={}) for kept in ([0, 3], [0, 2]))
    with pytest.raises(PlanError, match="keeps index 2 of axis 0 of w, of which the earlier one leaves 2"):
        first.then(later)
