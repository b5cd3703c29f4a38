"""score: distributions of importance, by several criteria, as tables, JSON and pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import graphprune
from graphprune.cli.digits import small_cnn
from graphprune.cli.importance import Importance, histogram, rank_correlations
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.passes.scoring.score import ScorePass
from graphprune.pipeline.analysis_manager import AnalysisManager
from graphprune.pipeline.pass_manager import PassManager

Cli = Callable[..., Any]
SOURCE = "graphprune.cli.digits:small_cnn"


@pytest.fixture
def digits(folder: Path) -> Path:
    """Random images as large as the demo's, with labels."""
    random = np.random.default_rng(0)
    path = folder / "images.npz"
    np.savez(path, x=random.random((40, 1, 8, 8), dtype=np.float32), y=np.arange(40) % 10)
    return path


def test_scores_are_those_of_the_pass(cli: Cli, weights: Path) -> None:
    data = cli("score", SOURCE, "--weights", weights, "--input", "1x1x8x8", "--json").data
    model = small_cnn()
    from safetensors.torch import load_file

    model.load_state_dict(load_file(weights))
    program = graphprune.capture(model, torch.zeros(1, 1, 8, 8))
    done = PassManager([ScorePass(normalise="none")]).run(program)
    for group in AnalysisManager().get(done, ChannelGroups).prunable:
        found = data["criteria"]["l2"][group.name]
        assert found["units"] == group.size
        assert found["scores"] == pytest.approx(done.scores["l2"].values[group.units].tolist())


def test_criteria_of_activations_need_data_and_take_them(
    cli: Cli, weights: Path, digits: Path, refused: Callable[..., str]
) -> None:
    arguments = ("score", SOURCE, "--weights", weights, "--input", "1x1x8x8", "--criterion", "attention", "--criterion", "taylor")
    assert "needs calibration data" in refused(*arguments)
    data = cli(*arguments, "--calibrate", digits, "--samples", "20", "--json").data
    assert set(data["criteria"]) == {"attention", "taylor"}
    assert -1 <= data["rank_correlation"]["attention and taylor"] <= 1
    ran = cli(*arguments, "--calibrate", digits)
    assert "Scores by attention" in ran.out and "Agreement within groups" in ran.out


def test_a_picture_is_drawn(cli: Cli, weights: Path, folder: Path) -> None:
    ran = cli("score", SOURCE, "--weights", weights, "--input", "1x1x8x8", "--plot", "scores.png")
    assert ran.code == 0 and (folder / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_bad_requests_change_nothing(weights: Path, refused: Callable[..., str]) -> None:
    arguments = ("score", SOURCE, "--weights", weights, "--input", "1x1x8x8")
    assert "ends in none of" in refused(*arguments, "--plot", "scores.txt")
    assert "There is no criterion 'l3'" in refused(*arguments, "--criterion", "l3")
    assert "No prunable group matches 'layer9'" in refused(*arguments, "--pattern", "layer9")
    assert "There is no data file" in refused(*arguments, "--calibrate", "none.npz")


def test_prune_takes_calibration_data(cli: Cli, weights: Path, digits: Path, folder: Path) -> None:
    ran = cli(
        *("prune", SOURCE, "--weights", weights, "--input", "1x1x8x8", "-o", "slim.safetensors", "--plan", "plan.json"),
        *("--criterion", "0.5*l2+0.5*taylor", "--calibrate", digits, "--samples", "16"),
    )
    assert ran.code == 0, ran.err
    plan = graphprune.Plan.load(folder / "plan.json")
    assert plan.scores["0.5*l2+0.5*taylor"]["calibration"] == str(digits)


def test_histograms_show_every_score() -> None:
    assert histogram(np.array([0.0, 1.0])) == "█" + " " * 14 + "█"
    assert "▁" in histogram(np.array([0.0] * 1000 + [1.0])), "one of a thousand still shows"
    assert histogram(np.zeros(0)) == "no scores"


def test_rank_correlations_are_taken_within_groups() -> None:
    rising, falling = np.arange(5.0), -np.arange(5.0)
    one = Importance("one", {"a": rising, "b": rising + 100, "c": np.zeros(3)})
    other = Importance("other", {"a": rising**3, "b": falling, "c": np.ones(3)})
    assert rank_correlations([one, other]) == {"one and other": pytest.approx(0.0)}
    assert rank_correlations([one, one])["one and one"] == pytest.approx(1.0)
    flat = Importance("flat", {name: np.full_like(values, np.nan) for name, values in one.groups.items()})
    assert rank_correlations([one, flat]) == {"one and flat": None}


def test_prune_compensates_and_says_so(cli: Cli, weights: Path, digits: Path, refused: Callable[..., str]) -> None:
    arguments = ("prune", SOURCE, "--weights", weights, "--input", "1x1x8x8", "-o", "slim.safetensors", "--compensate")
    assert "'compensate' needs calibration data" in refused(*arguments, "least-squares")
    assert "There is no compensation 'median'" in refused(*arguments, "median", "--calibrate", digits)
    ran = cli(*arguments, "least-squares", "--calibrate", digits)
    assert ran.code == 0 and "Compensated" in ran.out and "verify --trained" in ran.out
    data = cli(*arguments, "least-squares", "--calibrate", digits, "--json").data
    assert data["compensation"] and all(one["after"] <= one["before"] for one in data["compensation"])
    assert cli("verify", SOURCE, "slim.safetensors", "--weights", weights, "--input", "1x1x8x8", "--trained").code == 0
    assert cli("verify", SOURCE, "slim.safetensors", "--weights", weights, "--input", "1x1x8x8").code == 1
