"""The demo: everything in one command, and files that go on working without it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import graphprune
from graphprune.cli import demo
from graphprune.cli.accuracy import top1
from graphprune.cli.output import Output
from graphprune.sources.images import load_images

Cli = Callable[..., Any]

pytest.importorskip("sklearn")

STAGES = ("trained", "pruned", "compensated", "fine-tuned")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few epochs are enough to see that everything is connected."""
    monkeypatch.setattr(demo, "_EPOCHS", 2)
    monkeypatch.setattr(demo, "_TUNING_EPOCHS", 1)


def test_demo_prunes_verifies_and_saves_what_it_reports(cli: Cli, folder: Path, short: None) -> None:
    ran = cli("demo", "--json")
    assert ran.code == 0, ran.err
    data = ran.data
    assert tuple(data["accuracy"]) == STAGES and data["accuracy"]["trained"] > 0.5
    assert data["after"]["macs"] <= 0.5 * data["before"]["macs"]
    assert data["verification"]["passed"]
    out = folder / "graphprune-demo"
    assert {path.name for path in out.iterdir()} == {"model.safetensors", "slim.safetensors", "plan.json", "digits.npz"}
    images = load_images(out / "digits.npz")
    with Output(quiet=True) as output:
        assert top1(graphprune.load(out / "slim.safetensors"), images, output) == data["accuracy"]["fine-tuned"]


def test_what_the_demo_leaves_can_be_pruned_applied_and_verified(cli: Cli, folder: Path, short: None) -> None:
    assert cli("demo", "--out", "here").code == 0
    model = ("graphprune.cli.digits:small_cnn", "--weights", "here/model.safetensors")
    assert cli("prune", *model, "--data", "here/digits.npz", "--target", "macs=30%", "-o", "slim.safetensors").code == 0
    assert cli("apply", model[0], "here/plan.json", *model[1:], "--input", "1x1x8x8", "-o", "again.safetensors").code == 0
    assert cli("verify", *model, "here/slim.safetensors").code == 1  # it was trained since
    assert cli("verify", *model, "here/slim.safetensors", "--trained").code == 0


def test_demo_is_the_same_every_time(cli: Cli, short: None) -> None:
    first, second = (cli("demo", "--json").data for _ in range(2))
    assert first == second


def test_demo_prints_the_accuracies(cli: Cli, short: None) -> None:
    ran = cli("demo")
    assert all(stage in ran.out for stage in STAGES) and "Fine-tuning the slim model for 1 epochs" in ran.out
    assert ran.err == ""


def test_demo_without_scikit_learn_names_the_extra_and_makes_nothing(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    ran = cli("demo")
    assert ran.code == 2 and "pip install 'graphprune[demo]'" in ran.err
    assert list(folder.iterdir()) == []


def test_demo_refuses_a_folder_that_cannot_be(cli: Cli, folder: Path) -> None:
    (folder / "taken").write_text("a file")
    ran = cli("demo", "--out", "taken/demo")
    assert ran.code == 2 and "is a file" in ran.err
    assert (folder / "taken").read_text() == "a file"


def test_demo_finds_out_before_it_trains_that_a_file_cannot_be_written(cli: Cli, folder: Path) -> None:
    (folder / "demo" / "plan.json").mkdir(parents=True)
    ran = cli("demo", "--out", "demo")
    assert ran.code == 2 and "plan.json: it is a folder" in ran.err and ran.out == ""
