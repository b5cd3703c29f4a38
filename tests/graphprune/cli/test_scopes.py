"""Models that do not trace as a whole: their parts are found or named, pruned in place, saved, and put back."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import graphprune
from graphprune.errors import ArtifactError

Cli = Callable[..., Any]

# A forward that looks at data around two parts that do not, and a weight of its own; it takes a list of images.
DETECTOR = """
import torch
from torch import nn

class Detector(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 8, 3))
        self.head = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        self.scale = nn.Parameter(torch.rand(4))

    def forward(self, images, clamp=False):
        found = self.backbone(torch.stack(images)).mean((2, 3))
        if found.sum() > 0:
            found = found.abs()
        return self.head(found) * self.scale if not clamp else self.head(found).clamp(0)
"""
MODEL = ("own_detector:Detector", "--input", "[3x12x12,3x12x12]")


@pytest.fixture
def detector(folder: Path) -> Callable[[], torch.nn.Module]:
    """A file with the model's code in the current folder, and a maker of the model with weights of its own each time."""
    (folder / "own_detector.py").write_text(DETECTOR)

    def make(**options: Any) -> torch.nn.Module:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(folder)
            model: torch.nn.Module = importlib.import_module("own_detector").Detector(**options)
        return model.eval()

    return make


Maker = Callable[..., torch.nn.Module]


def test_the_scopes_that_are_found_are_told_and_written(cli: Cli, detector: Maker) -> None:
    ran = cli("prune", *MODEL, "--target", "channels=50%", "-o", "slim.safetensors")
    assert ran.code == 0, ran.err
    assert "does not trace as a whole; pruned in place: backbone, head." in ran.out and "Verified" in ran.out
    assert "In the way: Detector.forward does not trace: it looks at the values of a tensor" in ran.out
    assert 'slim = graphprune.load("slim.safetensors", original)' in ran.out
    data = cli("prune", *MODEL, "--target", "channels=50%", "-o", "slim.safetensors", "--json").data
    assert data["scopes"] == ["backbone", "head"] and data["verification"]["passed"]


def test_the_file_loads_into_the_original_and_is_the_slim_model(cli: Cli, detector: Maker) -> None:
    """Whatever weights the original has that it is loaded into; the original stays as it is."""
    cli("prune", *MODEL, "--target", "channels=50%", "--ranking", "local", "-o", "slim.safetensors")
    original, other = detector(), detector()
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    slim = graphprune.load("slim.safetensors", other)
    assert slim.get_submodule("backbone.0").out_channels == 4 and slim.get_submodule("head.0").out_features == 8
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    with torch.no_grad():
        original.load_state_dict({**original.state_dict(), "scale": slim.get_parameter("scale")})
    images = [torch.randn(3, 12, 12) for _ in range(3)]
    assert slim(images).shape == (3, 4)
    assert torch.equal(slim.get_parameter("scale"), graphprune.load("slim.safetensors", original).get_parameter("scale"))
    assert torch.equal(slim(images), graphprune.load("slim.safetensors", original)(images))


def test_a_result_that_was_trained_on_is_saved_as_it_is_now(detector: Maker, folder: Path) -> None:
    model, images = detector(), [torch.randn(3, 12, 12)]
    result = graphprune.prune(model, (images,), target="channels=50%")
    with torch.no_grad():
        for parameter in result.model.parameters():
            parameter.add_(0.1)
    graphprune.save(result, folder / "slim.safetensors")
    assert torch.equal(graphprune.load(folder / "slim.safetensors", detector())(images), result.model(images))


def test_apply_and_verify_know_the_scopes_from_the_plan(cli: Cli, detector: Maker) -> None:
    assert cli("prune", *MODEL, "-o", "plan.json").code == 0
    ran = cli("apply", MODEL[0], "plan.json", *MODEL[1:], "-o", "slim.safetensors")
    assert ran.code == 0 and "Pruned in place: backbone, head." in ran.out
    assert "Verified" in cli("verify", MODEL[0], "slim.safetensors", *MODEL[1:]).out
    asked = cli("verify", MODEL[0], "slim.safetensors")
    assert asked.code == 2 and "Give it with --input" in asked.err


def test_a_file_of_other_weights_does_not_verify(cli: Cli, detector: Maker) -> None:
    cli("prune", *MODEL, "-o", "slim.safetensors")
    ran = cli("verify", MODEL[0], "slim.safetensors", *MODEL[1:], "--seed", "1")
    assert ran.code == 1 and "is not the plan's slice of the original" in ran.err


def test_named_scopes_are_taken_alone(cli: Cli, detector: Maker) -> None:
    ran = cli("prune", *MODEL, "--scope", "head", "--target", "channels=50%", "-o", "slim.safetensors", "--json")
    assert ran.data["scopes"] == ["head"] and list(ran.data["widths"]) == ["head.0"]
    slim = graphprune.load("slim.safetensors", detector())
    assert slim.get_submodule("backbone.0").out_channels == 8 and slim.get_submodule("head.0").out_features == 8
    by_text = cli("prune", *MODEL, "--scope", "head", "--pipeline", "score,select{channels=50%},rewrite", "-o", "p.json", "--json")
    assert by_text.data["scopes"] == ["head"] and graphprune.Plan.load("p.json").scopes == ["head"]


def test_a_whole_model_may_be_pruned_in_one_of_its_parts(cli: Cli) -> None:
    ran = cli("prune", "graphprune.cli.digits:small_cnn", "--input", "1x1x8x8", "--scope", "block", "-o", "slim.safetensors")
    assert ran.code == 0 and "Pruned in place: block." in ran.out and "does not trace" not in ran.out


def test_a_plan_alone_is_written_for_any_model(cli: Cli) -> None:
    ran = cli("prune", "graphprune.cli.digits:small_cnn", "--input", "1x1x8x8", "-o", "plan.json")
    assert ran.code == 0 and "Carry it out with: graphprune apply graphprune.cli.digits:small_cnn plan.json" in ran.out
    assert "size on disk" not in ran.out and graphprune.Plan.load("plan.json").kept


def test_inspect_says_how_the_model_was_traced(cli: Cli, detector: Maker) -> None:
    ran = cli("inspect", *MODEL)
    assert "not as a whole; in scopes: backbone, head" in ran.out and "and 4 outside the scopes" in ran.out
    data = cli("inspect", *MODEL, "--json").data
    assert data["scopes"] == ["backbone", "head"] and data["parameters_outside"] == 4
    named = cli("inspect", *MODEL, "--scope", "head")
    assert "in scopes: head" in named.out and "not as a whole" not in named.out
    assert "in the way" in ran.out and "in the way" not in named.out
    assert "as a whole" in cli("inspect", "graphprune.cli.digits:small_cnn", "--input", "1x1x8x8").out


@pytest.mark.parametrize("named", ["nowhere", "backbone.9"])
def test_a_scope_that_does_not_exist_is_named(cli: Cli, detector: Maker, named: str) -> None:
    ran = cli("inspect", *MODEL, "--scope", named)
    assert ran.code == 2 and f"{named!r} is no submodule of Detector" in ran.err


def test_no_exported_program_is_written_of_parts(refused: Callable[..., str], detector: Maker) -> None:
    assert "Write a .safetensors file" in refused("prune", *MODEL, "-o", "slim.pt2")


def test_a_file_of_parts_is_no_model_of_its_own(cli: Cli, detector: Maker) -> None:
    cli("prune", *MODEL, "-o", "slim.safetensors")
    with pytest.raises(ArtifactError, match=r"graphprune.load\(path, model\)"):
        graphprune.load("slim.safetensors")
    ran = cli("prune", "slim.safetensors", "-o", "slimmer.safetensors")
    assert ran.code == 2 and "no code to run them" in ran.err and not Path("slimmer.safetensors").exists()


@pytest.mark.parametrize("other", [{"width": 6}, None])
def test_a_file_of_parts_does_not_load_into_another_model(cli: Cli, detector: Maker, other: dict[str, int] | None) -> None:
    cli("prune", *MODEL, "--scope", "head", "-o", "slim.safetensors")
    model = torch.nn.Linear(2, 2) if other is None else detector(**other)
    with pytest.raises(ArtifactError, match=r"does not go with this .* pruned: own_detector:Detector"):
        graphprune.load("slim.safetensors", model)


@pytest.mark.usefixtures("detector")
def test_scores_are_of_the_named_scopes_alone(cli: Cli) -> None:
    ran = cli("score", *MODEL, "--scope", "backbone", "--json")
    assert ran.code == 0, ran.err
    assert list(ran.data["criteria"]["l2"]) == ["backbone.0"]
