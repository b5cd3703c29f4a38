"""Sections: the facts that the page shows are those of the analysis, the plan and the run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import graphprune
from graphprune import Plan
from graphprune.cli.loading import Request as Source
from graphprune.cli.output import Output
from graphprune.errors import PlanError, UsageError
from graphprune.reporting import Material, Request, gather, sections_of
from graphprune.reporting.facts import Section
from graphprune.reporting.sections.widths import layer_widths
from tests.graphprune.reporting.conftest import ROUNDS, MakeRun


class Two(nn.Module):
    """Two convolutions and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.b(self.a(x).relu()).relu().mean((2, 3)))
        return y


class Looks(nn.Module):
    """Its forward looks at data, so that only its parts are pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.body(x).mean((2, 3))
        return y if y.sum() > 0 else -y


SOURCE = f"{__name__}:Two"
INPUT = "1x3x8x8"


def sections(material: Material) -> dict[str, Section]:
    return {section.key: section for section in sections_of(material)}


def material(subject: Path, against: str = "", **more: object) -> Material:
    with Output(quiet=True) as output:
        return gather(Request(subject, Source(against, shape=INPUT, **more)), output)  # type: ignore[arg-type]


@pytest.fixture
def pruned(tmp_path: Path) -> graphprune.PruneResult:
    torch.manual_seed(0)
    result = graphprune.prune(Two(), torch.zeros(1, 3, 8, 8), target="macs=50%", source=SOURCE)
    graphprune.save(result, tmp_path / "slim.safetensors")
    result.plan.save(tmp_path / "plan.json")
    return result


def test_widths_and_costs_are_those_of_the_pruning(pruned: graphprune.PruneResult, tmp_path: Path) -> None:
    found = material(tmp_path / "slim.safetensors", SOURCE)
    assert found.original is not None
    assert (found.original.before, found.original.after) == (pruned.report.before, pruned.report.after)
    assert found.widths == pruned.report.widths
    rows = sections(found)["widths"].tables[0].rows
    shapes = {name: tensor.shape for name, tensor in pruned.model.named_parameters()}
    assert [(row[0], int(row[2]), int(row[5])) for row in rows] == [
        (name, *shapes[f"{name}.weight"][:2]) for name in ("a", "b", "head")
    ]


def test_widths_need_no_original(pruned: graphprune.PruneResult, tmp_path: Path) -> None:
    found = sections(material(tmp_path / "plan.json"))
    assert [row[0] for row in found["widths"].tables[0].rows] == ["a", "b", "head"]
    assert "--against" in found["coupling"].missing[0].what
    assert "--against" in found["summary"].missing[1].what


def test_layers_come_in_natural_order_where_only_the_plan_is_there() -> None:
    names = ["l10.weight", "l9.weight", "l9.bias"]
    plan = Plan(kept={"l9.weight": {0: [1]}}, model=dict(zip(names, ("float32[4, 2]", "float32[3, 2]", "float32[3]"), strict=True)))
    assert layer_widths(plan) == {"l9": ((3, 1), (2, 2)), "l10": ((4, 4), (2, 2))}


def test_the_drawing_says_what_each_layer_makes_and_reads(pruned: graphprune.PruneResult, tmp_path: Path) -> None:
    data = sections(material(tmp_path / "slim.safetensors", SOURCE))["coupling"].charts[0].data
    nodes = {node["id"]: node for node in data["nodes"]}
    names = [group["name"] for group in data["groups"]]
    assert [names[place] for place in nodes["a"]["makes"]] == ["a"]
    assert names.index("a") in nodes["b"]["reads"]
    assert nodes["a"]["width"] == (8, pruned.model.get_parameter("a.weight").shape[0])
    (made,) = nodes["head"]["makes"]
    assert "output" in data["groups"][made]["reason"]
    assert ["a", "b"] in data["edges"]


def test_importance_counts_every_unit_once(pruned: graphprune.PruneResult, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(Two().state_dict(), tmp_path / "weights.pt")
    found = sections(material(tmp_path / "slim.safetensors", SOURCE, weights=tmp_path / "weights.pt"))["importance"]
    data = found.charts[0].data
    for group in data["groups"]:
        full, kept = pruned.report.widths[group["name"]]
        assert (sum(group["kept"]), sum(group["removed"])) == (kept, full - kept)
    assert "Every kept unit scores higher" in found.lead
    assert np.all(np.diff(data["edges"]) > 0)


def a_scored_run(folder: Path, data: str) -> Path:
    """A run on saved weights whose plan was made by a criterion of data, with a recipe that names other data."""
    torch.manual_seed(0)
    model = Two()
    torch.save(model.state_dict(), folder / "weights.pt")
    batches = [torch.randn(4, 3, 8, 8)]
    result = graphprune.prune(model, torch.zeros(1, 3, 8, 8), target="macs=50%", criterion="attention", data=batches)
    run = folder / "run"
    run.mkdir()
    result.plan.save(run / "plan.json")
    (run / "rounds.jsonl").write_text("")
    weights = folder / "weights.pt"
    (run / "recipe.toml").write_text(f"[model]\nsource = '{SOURCE}'\nweights = '{weights}'\n[data]\nsource = \"{data}\"\n")
    return run


def test_a_run_is_scored_on_the_data_of_its_recipe(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).random((20, 3, 8, 8), dtype=np.float32), y=np.arange(20) % 2)
    run = a_scored_run(tmp_path, str(tmp_path / "data.npz"))
    found = sections(material(run, SOURCE))["importance"]
    assert not found.missing and found.lead.startswith("Scores by attention") and "weights.pt" in found.lead


def test_data_that_only_a_recipe_names_run_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = a_scored_run(tmp_path, "os:system('touch graphprune_mark')")
    (lack,) = sections(material(run, SOURCE))["importance"].missing
    assert "--trust-pickle" in lack.what and "--calibrate" in lack.what and lack.remedy == ""
    assert not (tmp_path / "graphprune_mark").exists()
    assert "Return one to three data sets" in sections(material(run, SOURCE, trust_pickle=True))["importance"].missing[0].what
    assert (tmp_path / "graphprune_mark").exists()


def test_a_missing_accuracy_asks_for_what_is_missing(pruned: graphprune.PruneResult, tmp_path: Path) -> None:
    """Not for the images that the user gave."""
    images = tmp_path / "data.npz"
    np.savez(images, x=np.zeros((2, 3, 8, 8), dtype=np.float32), y=np.arange(2))
    for subject, against, given, wanted in (
        ("slim.safetensors", SOURCE, None, "--data"),
        ("slim.safetensors", "", images, "the original"),
        ("plan.json", SOURCE, images, "slim model"),
    ):
        lack = sections(material(tmp_path / subject, against, data=given))["summary"].missing[-1]
        assert lack.what == "The accuracy is not known." and wanted in lack.remedy


def test_fresh_weights_are_not_scored(pruned: graphprune.PruneResult, tmp_path: Path) -> None:
    """The artifact names its source, but not the weights: what they would say is not what was pruned by."""
    found = sections(material(tmp_path / "slim.safetensors", trust_pickle=True))
    assert not found["importance"].charts and "not at hand" in found["importance"].missing[0].what
    assert found["coupling"].charts


def test_a_plan_of_another_model_is_refused_where_the_user_named_the_model(pruned: graphprune.PruneResult, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="does not fit"):
        material(tmp_path / "plan.json", "torch.nn:Conv2d(3, 4, 3)")


def test_an_original_that_only_the_file_names_may_be_missing(tmp_path: Path) -> None:
    result = graphprune.prune(Two(), torch.zeros(1, 3, 8, 8), target="macs=50%", source="gone.module:model")
    graphprune.save(result, tmp_path / "slim.safetensors")
    found = material(tmp_path / "slim.safetensors")
    assert found.original is None and "gone.module" in found.no_original
    assert sections(found)["widths"].charts


def test_rounds_tell_which_were_rolled_back(make_run: MakeRun) -> None:
    found = sections(material(make_run()))
    assert "Rolled back: 1." in found["rounds"].lead
    assert [row["status"] for row in found["rounds"].charts[0].data] == ["dense", "rolled back", "final"]
    tiles = {tile.label: tile.change for tile in found["summary"].tiles}
    assert tiles == {"Parameters": "60.0%", "MACs": "60.0%", "Accuracy, last round": "-5.00 points"}
    assert found["summary"].tables[1].rows == [("macs", "50.0%", "60.0%", "120.0%")]
    assert [row[:3] for row in found["widths"].tables[0].rows] == [["a", "8", "5"], ["b", "16", "12"]]


def test_a_run_that_trained_its_dense_model_is_not_scored_by_other_weights(make_run: MakeRun) -> None:
    folder = make_run()
    about = {"version": 1, "method": "iterative", "options": json.dumps({"trained": False}), "seed": "0"}
    (folder / "journal.jsonl").write_text(json.dumps(about) + "\n")
    found = sections(material(folder, SOURCE))
    assert not found["importance"].charts and "trained its dense model itself" in found["importance"].missing[0].what


def test_a_run_without_rounds_says_so(make_run: MakeRun) -> None:
    found = sections(material(make_run(rounds=())))
    assert "no round" in found["rounds"].missing[0].what


def test_runs_of_a_folder_are_compared(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("runs/cifar-one")
    make_run("runs/cifar-two", rounds=ROUNDS[:1], method="laasp")
    found = sections(material(tmp_path / "runs"))
    rows = found["runs"].tables[0].rows
    assert [(row[0], row[1], row[2], row[-1]) for row in rows] == [
        ("cifar-one", "adaptive", "finished", "60.0%"),
        ("cifar-two", "laasp", "not finished", "100.0%"),
    ]
    front, heat = found["runs"].charts
    assert [run["name"] for run in front.data["runs"]] == ["one", "two"]
    assert [0, 0, 5 / 8, 5, 8] in heat.data["cells"]


def test_a_model_that_is_cut_half_trained_is_no_dense_model(make_run: MakeRun, tmp_path: Path) -> None:
    """Its accuracy is nothing to compare with, as the command line has it, which shows a dash."""
    make_run("runs/early", rounds=(replace(ROUNDS[0], status="begun"), ROUNDS[2]), method="growing")
    make_run("runs/late", rounds=ROUNDS)
    rows = sections(material(tmp_path / "runs"))["runs"].tables[0].rows
    assert [row[5] for row in rows] == ["-", "90.00%"]
    (tile,) = [one for one in sections(material(tmp_path / "runs" / "early"))["summary"].tiles if "last round" in one.label]
    assert tile.after == "85.00%" and not tile.before


def test_what_is_no_subject_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run"):
        material(tmp_path)
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(UsageError, match="nothing to report on"):
        material(tmp_path / "x.txt")


def test_commands_say_all_that_the_pruning_took(pruned: graphprune.PruneResult, tmp_path: Path) -> None:
    texts = {text.caption: text.text for text in sections(material(tmp_path / "slim.safetensors"))["again"].texts}
    prune, apply = texts["Commands"].splitlines()
    assert prune.startswith(f"graphprune prune {SOURCE} --input {INPUT} --pipeline") and "macs=50%" in prune
    assert apply == f"graphprune apply {SOURCE} plan.json --input {INPUT} -o slim.safetensors"
    assert json.loads(texts["plan.json"]) == json.loads(pruned.plan.model_dump_json())


def test_a_model_that_was_pruned_in_parts_is_rated_as_a_whole(tmp_path: Path) -> None:
    """The file holds the parts; the original's code and the file together are the slim model."""
    result = graphprune.prune(Looks(), torch.zeros(1, 3, 8, 8), target="macs=50%")
    graphprune.save(result, tmp_path / "slim.safetensors")
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 3, 8, 8), dtype=np.float32), y=np.zeros(4, dtype=np.int64))
    found = material(tmp_path / "slim.safetensors", f"{__name__}:Looks", data=tmp_path / "d.npz")
    assert found.accuracy is not None and found.accuracy[2] == 4
    assert "parts body" in sections(found)["summary"].lead
    assert found.widths == result.report.widths
    with pytest.raises(UsageError, match="--input"), Output(quiet=True) as output:
        gather(Request(tmp_path / "slim.safetensors", Source(f"{__name__}:Looks")), output)


def test_code_that_only_the_file_names_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source may be any function of any module. Named by the user, it is called."""
    monkeypatch.chdir(tmp_path)
    source = "os:system('touch graphprune_mark')"
    result = graphprune.prune(Two(), torch.zeros(1, 3, 8, 8), target="macs=50%", source=source)
    graphprune.save(result, tmp_path / "slim.safetensors")
    found = material(tmp_path / "slim.safetensors")
    assert found.original is None and f"{source}, is code" in found.no_original
    assert not (tmp_path / "graphprune_mark").exists()
    with pytest.raises(UsageError, match="gives a int"):
        material(tmp_path / "slim.safetensors", source)
    assert (tmp_path / "graphprune_mark").exists()


def test_a_run_cannot_say_that_its_pickles_are_trusted(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    torch.save(Two(), run / "whole.pt")
    (run / "rounds.jsonl").write_text("")
    (run / "recipe.toml").write_text(f'[model]\nsource = "{run / "whole.pt"}"\ntrust_pickle = true\n')
    found = material(run)
    assert found.original is None and "can run any code" in found.no_original
