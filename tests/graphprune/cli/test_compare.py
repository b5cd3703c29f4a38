"""``graphprune compare``: costs, times and accuracy of two models at the same inputs, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graphprune.cli import comparing
from graphprune.cli.comparing import compare
from graphprune.cli.loading import Request
from graphprune.cli.output import Output
from graphprune.latency.clock import Subject
from graphprune.latency.copies import Effort
from graphprune.latency.timing import Timing, standard_error
from tests.graphprune.cli.conftest import SOURCE

Cli = Callable[..., Any]


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real clock, but two copies of each model: how exact times are is not tested."""
    monkeypatch.setattr(comparing, "SURE", Effort(precision=1, turns=1, least=2))


class Counting:
    """A clock by which a model takes a microsecond for each of its parameters and each sample."""

    def whole(self, subjects: Sequence[Subject]) -> list[Timing]:
        times = [sum(p.numel() for p in subject.module.parameters()) * len(subject.arguments[0]) / 1000 for subject in subjects]
        jitter = zip(times, ((0.99, 1.0, 1.01), (1.0, 1.0, 1.0)), strict=True)
        return [
            Timing(median_ms=ms, low_ms=ms, high_ms=ms, p95_ms=2 * ms, runs=3, copies_ms=tuple(ms * by for by in copies))
            for ms, copies in jitter
        ]

    def nodes(self, subject: Subject) -> dict[str, float]:
        raise AssertionError


def test_both_models_are_measured_at_every_batch() -> None:
    linear = "torch.nn:Linear(4, {})"
    with Output(quiet=True) as output:
        first, second = Request(linear.format(8), shape="2x4"), Request(linear.format(2))
        found = compare(first, second, output, batches=(1, 3), clock=Counting())
    assert [cost.parameters for cost in found.costs] == [40, 10]
    assert [cost.macs for cost in found.costs] == [64, 16]
    assert all(load.ratio.error == pytest.approx(standard_error([-0.01, 0, 0.01]), rel=0.01) for load in found.loads)
    assert [(load.batch, load.a.median_ms, load.b.median_ms) for load in found.loads] == [(1, 0.04, 0.01), (3, 0.12, 0.03)]


def test_a_slim_model_is_compared_with_its_original(cli: Cli, folder: Path) -> None:
    """At the inputs that the artifact brings; the figures are those of the pruning."""
    pruned = cli("prune", SOURCE, "--input", "2x1x8x8", "--target", "macs=50%", "-o", "slim.safetensors", "--json").data
    np.savez("d.npz", x=np.random.default_rng(0).random((8, 1, 8, 8), dtype=np.float32), y=np.arange(8))
    data = cli("compare", SOURCE, "slim.safetensors", "--data", "d.npz", "--json").data
    for side, when in (("a", "before"), ("b", "after")):
        assert {key: data[side][key] for key in ("parameters", "macs", "weight_bytes", "activation_bytes")} == {
            key: pruned[when][key] for key in ("parameters", "macs", "weight_bytes", "activation_bytes")
        }
        assert 0 <= data[side]["accuracy"] <= 1
    (load,) = data["latency"]
    assert load["batch"] == 2 and load["speedup"] == pytest.approx(load["a"]["median_ms"] / load["b"]["median_ms"])
    assert load["ratio"] == pytest.approx(1 / load["speedup"]) and load["ratio_error"] > 0 and load["a"]["error_ms"] > 0
    assert load["a"]["copies"] == load["b"]["copies"] >= 2
    assert load["a"]["p95_ms"] >= load["a"]["median_ms"] > 0


def test_inputs_that_a_file_holds_go_before_the_usual_ones_of_a_library(cli: Cli) -> None:
    """A model that was pruned at 32 pixels is not compared at 224 because the other one is of a library."""
    original = "torchvision:mobilenet_v3_small(num_classes=2)"
    cli("prune", original, "--input", "1x3x32x32", "-o", "slim.safetensors", "--no-verify", "-q")
    assert cli("compare", original, "slim.safetensors", "--json").data["inputs"] == "float32[1x3x32x32]"


def test_the_table_names_both_models(cli: Cli) -> None:
    ran = cli("compare", "torch.nn:Linear(4, 8)", "torch.nn:Linear(4, 2)", "--input", "1x4", "--batch", "1", "--batch", "2")
    assert ran.code == 0 and "A: torch.nn:Linear(4, 8), B: torch.nn:Linear(4, 2)" in ran.out
    assert "25.0%" in ran.out and ran.out.count(" x\n") == 2
    assert ran.out.count(" ± ") >= 2 and "2 or more places in memory" in ran.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("torch.nn:Linear(4, 8)", "torch.nn:Linear(5, 8)", "--input", "1x4"), "run"),
        (("torch.nn:Linear(4, 8)", "torch.nn:Linear(4, 8)"), "input shape"),
        (("torch.nn:Linear(4, 8)", "nothing.safetensors", "--input", "1x4"), "nothing.safetensors"),
        (("torch.nn:Linear(4, 8)", "torch.nn:Linear(4, 8)", "--input", "1x4", "--device", "tpu"), "tpu"),
        (("torch.nn:Linear(4, 8)", "torch.nn:Linear(4, 8)", "--input", "1x4", "--batch", "0"), "batch"),
    ],
)
def test_bad_input_is_refused(cli: Cli, arguments: tuple[str, ...], says: str) -> None:
    ran = cli("compare", *arguments)
    assert ran.code == 2 and says in ran.err and ran.out == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_times_are_those_of_the_device(cli: Cli) -> None:
    data = cli("compare", "torch.nn:Linear(4, 8)", "torch.nn:Linear(4, 2)", "--input", "1x4", "--device", "cuda", "--json").data
    assert data["environment"]["device"] == "cuda" and data["latency"][0]["speedup"] > 0
