"""``graphprune run`` and ``recipe``: a method on digits from end to end, gone on with, refused where it cannot be."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, load_model
from torch import nn

import graphprune
from graphprune.cli import main
from graphprune.cli.digits import small_cnn
from graphprune.errors import ArtifactError
from graphprune.methods import METHODS
from graphprune.training.data import load_training_data
from graphprune.training.settings import Training
from graphprune.training.trainer import Trainer

Cli = Callable[..., Any]

MODEL = "graphprune.cli.digits:small_cnn"
SHORT = ("--data", "digits", "--training", "digits", "--epochs", "2", "--set", "trained=false")
RUN = ("run", "iterative", MODEL, *SHORT, "--set", "rounds=2", "--set", "data.samples=64")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that is over."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main([*RUN, "--target", "params=50%", "-o", str(folder), "--tensorboard", "--plot", "svg", "--quiet"]) == 0
    return folder


def test_a_run_leaves_the_slim_model_its_plan_the_rounds_and_the_recipe(done: Path) -> None:
    names = {path.name for path in done.iterdir()}
    assert names == {
        *("recipe.toml", "journal.jsonl", "rounds.jsonl", "result.json", "plan.json", "slim.safetensors"),
        *("snapshots", "plots", "tensorboard"),
    }
    result = json.loads((done / "result.json").read_text())
    slim = graphprune.load(done / "slim.safetensors")
    assert sum(p.numel() for p in slim.parameters()) == result["slim"]["parameters"] <= result["dense"]["parameters"] / 2
    assert graphprune.Plan.load(done / "plan.json").kept
    rounds = [json.loads(line) for line in (done / "rounds.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rounds] == ["dense", "accepted", "final"] and rounds == result["rounds"]
    recipe = tomllib.loads((done / "recipe.toml").read_text())
    assert recipe["method"]["target"] == "params=50%" and recipe["training"]["optimiser"] == "adamw"


def test_what_stays_of_some_layers_is_said_and_told(cli: Cli, folder: Path) -> None:
    command = ("run", "iterative", MODEL, *SHORT, "--set", "final_epochs=0", "--set", "data.samples=64", "-o", "kept")
    ran = cli(*command, "--keep", "block.conv1=25%", "--plot", "none")
    assert ran.code == 0 and "Kept as asked: block.conv1=25%." in ran.out, ran.err
    widths = json.loads((folder / "kept" / "result.json").read_text())["widths"]
    assert {name for name, (old, new) in widths.items() if new < old} == {"block.conv1"}
    assert cli("report", "kept", "-o", "r.html").code == 0
    assert "what was to stay" in (folder / "r.html").read_text()
    other = cli(*command, "--keep", "block.conv1=50%", "--plot", "none")
    assert other.code != 0 and "keep" in other.err


def test_accuracies_are_those_of_the_saved_model_on_validation_and_on_test_data(done: Path) -> None:
    accuracy = json.loads((done / "result.json").read_text())["slim"]["accuracy"]
    trainer = Trainer(load_training_data("digits"), Training(epochs=2, batch_size=64), device="cpu")
    slim = graphprune.load(done / "slim.safetensors")
    assert accuracy["validation"] == trainer.evaluate(slim) <= accuracy["validation_best_epoch"]
    assert accuracy["test"] == trainer.test(slim) > 0.5


def test_test_samples_are_looked_at_once_for_each_model_and_only_at_the_end(
    folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    for name in ("test", "train", "evaluate"):
        original = getattr(Trainer, name)

        def told(self: Trainer, *args: Any, name: str = name, original: Any = original, **extras: Any) -> Any:
            events.append(name)
            return original(self, *args, **extras)

        monkeypatch.setattr(Trainer, name, told)
    assert cli(*RUN, "-o", "run", "--set", "rounds=1", "--epochs", "1").code == 0
    assert events[-2:] == ["test", "test"] and events.count("test") == 2 and {"train", "evaluate"} <= set(events)


def test_a_run_that_is_over_is_reported_again_without_training(done: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: Trainer, model: nn.Module, epochs: range, state: Any, teacher: nn.Module | None = None) -> Any:
        raise AssertionError("it is over")

    monkeypatch.setattr(Trainer, "train", never)
    monkeypatch.setattr(Trainer, "evaluate", never)
    before = {name: (done / name).read_bytes() for name in ("result.json", "plan.json", "journal.jsonl", "rounds.jsonl")}
    weights = load_file(done / "slim.safetensors")
    ran = cli("run", done / "recipe.toml", "--json", "--plot", "none")
    assert ran.code == 0, ran.err
    assert ran.data["rounds"] == json.loads(before["result.json"])["rounds"]
    assert [line.endswith("(done before)") for line in ran.err.splitlines()] == [True] * 3
    assert {name: (done / name).read_bytes() for name in before} == before
    again = load_file(done / "slim.safetensors")  # the order of a safetensors file's metadata is by chance
    assert again.keys() == weights.keys() and all(torch.equal(again[name], weights[name]) for name in weights)


def test_the_screen_shows_rounds_costs_accuracies_and_how_to_load(done: Path, cli: Cli) -> None:
    ran = cli("run", done / "recipe.toml", "--plot", "none")
    assert ran.code == 0
    for part in (
        "Rounds",
        "final",
        "parameters",
        "accuracy on validation data",
        "accuracy on test data",
        "points",
        "Verified against",
    ):
        assert part in ran.out
    assert ran.out.rstrip().endswith(f'Load the slim model with: model = graphprune.load("{done}/slim.safetensors")')


@pytest.mark.parametrize(
    "changed", [("--seed", "1"), ("--set", "training.lr=0.5"), ("--set", "rounds=3"), ("--set", "data.samples=9")]
)
def test_another_run_is_refused_in_the_same_folder(done: Path, cli: Cli, changed: tuple[str, str]) -> None:
    before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    ran = cli("run", done / "recipe.toml", *changed)
    assert ran.code == 2 and f"The run in {done} has [" in ran.err and "another --out" in ran.err and ran.err.count("\n") == 1
    assert {path: path.read_bytes() for path in done.rglob("*") if path.is_file()} == before


def test_what_does_not_change_the_result_may_change(done: Path, cli: Cli) -> None:
    assert cli("run", done / "recipe.toml", "--device", "cpu", "--quiet", "--plot", "none").code == 0


def test_pictures_and_logs_are_made(done: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert {path.name for path in (done / "plots").iterdir()} == {"rounds.svg", "widths.svg"}
    events = EventAccumulator(str(done / "tensorboard"))
    events.Reload()
    rounds = json.loads((done / "result.json").read_text())["rounds"]
    assert [event.value for event in events.Scalars("params")] == [row["params"] for row in rounds]
    assert [event.value for event in events.Scalars("accuracy")] == pytest.approx([row["accuracy"] for row in rounds])


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "method": (("run", "iteratve", MODEL, *SHORT, "-o", "run"), "did you mean 'iterative'?"),
    "recipe": (("run", "no.toml"), "Cannot read the recipe no.toml"),
    "no model": (("run", "iterative", *SHORT, "-o", "run"), "[model] source is missing"),
    "no data": (("run", "iterative", MODEL, "-o", "run"), "[data] source is missing"),
    "no folder": (("run", "iterative", MODEL, *SHORT), "[run] out is missing"),
    "option": ((*RUN, "-o", "run", "--set", "tolerance=1"), "tolerance: no option of iterative; adaptive, class-aware take it"),
    "value": ((*RUN, "-o", "run", "--set", "training.lr=0"), "--set training.lr=0: [training] lr = 0: Input should be greater"),
    "target": ((*RUN, "-o", "run", "--target", "50%"), "command line: [method] target"),
    "target of none": (("run", "class-aware", MODEL, *SHORT, "-o", "run", "--target", "macs=50%"), "no option of class-aware;"),
    "setting": ((*RUN, "-o", "run", "--set", "lr"), "--set lr is not NAME=VALUE"),
    "criterion": ((*RUN, "-o", "run", "--set", "criterion=l9"), "There is no criterion 'l9'"),
    "training": ((*RUN, "-o", "run", "--training", "x"), "There is no training recipe 'x'"),
    "source": (("run", "iterative", "torchvision:resnet81", *SHORT, "-o", "run"), "resnet81"),
    "policy": ((*RUN, "-o", "run", "--policy", "heads"), "--policy heads has no '='"),
    "exclude": ((*RUN, "-o", "run", "--exclude", "nothing.*"), "matches no parameter"),
    "channels": (("run", "iterative", "torchvision:resnet18", *SHORT, "-o", "run"), "does not take the samples [1, 8, 8]"),
    "classes": (("run", "iterative", f"{MODEL}", *SHORT[2:], "--data", "many.npz", "-o", "run"), "with 12 classes"),
    "data": ((*RUN, "-o", "run", "--data", "no.npz"), "no.npz"),
    "plot": ((*RUN, "-o", "run", "--plot", "gif"), "--plot gif is not known"),
    "device": ((*RUN, "-o", "run", "--device", "tpu"), "[run] device"),
    "file": ((*RUN, "-o", "slim.safetensors"), "slim.safetensors is a file"),
    "folder": ((*RUN, "-o", "full"), "The folder full holds other files and no run"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_changes_nothing_on_disk(case: str, refused: Callable[..., str], folder: Path) -> None:
    (folder / "full").mkdir()
    (folder / "full" / "notes.txt").write_text("mine")
    np.savez(folder / "many.npz", x=np.zeros((480, 1, 8, 8), np.float32), y=np.arange(480) % 12)
    arguments, expected = WRONG[case]
    assert expected in refused(*arguments)
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("missing", "option", "extra"), [("tensorboard", "--tensorboard", "tensorboard"), ("matplotlib", "--plot=png", "plot")]
)
def test_a_package_that_is_missing_is_named_with_its_extra(
    missing: str, option: str, extra: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert f'pip install "graphprune[{extra}]"' in refused(*RUN, "-o", "run", option)


def test_an_interruption_says_how_to_go_on_and_the_same_command_does(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = Trainer.train, iter(range(9))

    def interrupted(self: Trainer, *args: Any, **extras: Any) -> Any:
        if next(calls) == 3:  # both epochs of the dense model, and one of the final training
            raise KeyboardInterrupt
        return original(self, *args, **extras)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", interrupted)
        ran = cli(*RUN, "-o", "run")
    assert ran.code == 130
    assert (
        ran.err.splitlines()[-1] == "graphprune: interrupted. Go on with the same command, or with: graphprune run run/recipe.toml"
    )
    again = cli("run", "run/recipe.toml", "--json", "--plot", "none")
    assert again.code == 0 and again.err.count("(done before)") == 2
    assert again.data["rounds"] == cli(*RUN, "-o", "other", "--json", "--plot", "none").data["rounds"]


@pytest.mark.parametrize("trained", [True, False])
def test_a_model_that_comes_untrained_is_warned_about(trained: bool, cli: Cli) -> None:
    options = ("--set", f"trained={str(trained).lower()}", "--set", "rounds=1", "--epochs", "1", "--plot", "none")
    ran = cli(*RUN, *options, "-o", "run")
    assert ran.code == 0 and ("the model is hardly better than chance. Give --weights" in ran.err) is trained


def test_a_training_that_teaches_nothing_is_warned_about(cli: Cli) -> None:
    options = ("--set", "trained=false", "--set", "rounds=1", "--set", "training.lr=1e-9", "--epochs", "1", "--plot", "none")
    ran = cli(*RUN, *options, "-o", "run")
    assert ran.code == 0 and "the model is hardly better than chance. Train it for more --epochs." in ran.err


def test_a_model_that_no_artifact_holds_is_kept_as_weights(done: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ArtifactError("a class of its own")

    monkeypatch.setattr(graphprune, "save", refuse)
    ran = cli("run", done / "recipe.toml", "--plot", "none")
    assert ran.code == 0 and "weights.safetensors" in ran.out
    slim = graphprune.apply_plan(small_cnn(), torch.zeros(1, 1, 8, 8), done / "plan.json").model
    load_model(slim, str(done / "weights.safetensors"))
    (done / "weights.safetensors").unlink()
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(slim.eval()(x), graphprune.load(done / "slim.safetensors").eval()(x))


# -- recipe ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_recipe_prints_toml_that_is_a_recipe(name: str, cli: Cli) -> None:
    ran = cli("recipe", "--show", name)
    assert ran.code == 0 and ran.err == ""
    assert tomllib.loads(ran.out)["method"]["name"] == name
    assert tomllib.loads(ran.out)["training"] == cli("recipe", "--show", name, "--json").data["training"]


def test_recipe_lists_methods_and_trainings(cli: Cli) -> None:
    ran = cli("recipe")
    assert ran.code == 0 and all(name in ran.out for name in METHODS) and "cifar-short" in ran.out
    assert set(cli("recipe", "--json").data["methods"]) == set(METHODS)


def test_a_recipe_of_no_method_is_refused(cli: Cli) -> None:
    ran = cli("recipe", "--show", "adaptve")
    assert ran.code == 2 and "did you mean 'adaptive'?" in ran.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--set", "classes_share=0.01"), "the options of the method allow no cut"),
        (("--set", "classes_share=1", "--set", "tolerance=0", "--set", "regularise_epochs=0"), "lost more accuracy"),
    ],
)
def test_a_run_that_removes_nothing_says_why(options: tuple[str, ...], says: str, cli: Cli) -> None:
    cheap = ("--epochs", "1", "--set", "data.samples=64", "--set", "tune_epochs=1", "--set", "training.lr=1e-9", "--plot", "none")
    ran = cli("run", "class-aware", MODEL, *SHORT, *cheap, *options, "-o", "none")
    assert ran.code == 0 and "Nothing was removed: " in ran.out and says in ran.out
