"""profile: a table of the latency by widths, on the real clock; whatever the times are, what is said of them is true."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from graphprune.cli import profiling
from graphprune.errors import DeviceError
from graphprune.latency.batch import Load
from graphprune.latency.clock import DeviceClock
from graphprune.latency.copies import Effort
from graphprune.latency.model import LatencyModel
from graphprune.latency.table import LatencyTable
from graphprune.passes.latency import source
from graphprune.passes.latency.profile import profile_latency

Cli = Callable[..., Any]
SOURCE = ("graphprune.cli.digits:small_cnn", "--input", "1x1x8x8")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real clock, but two turns for each model: how exact times are is not tested."""
    hurried = Effort(precision=1, turns=1, least=2)
    monkeypatch.setattr(profiling, "DeviceClock", partial(DeviceClock, effort=hurried, node_runs=1))
    monkeypatch.setattr(source, "SURE", hurried)


def test_measures_writes_prints_and_draws(cli: Cli, folder: Path) -> None:
    ran = cli("profile", *SOURCE, "-o", "table.json", "--samples", "8", "--plot", "stairs.svg")
    assert ran.code == 0, ran.err
    table = LatencyTable.load(folder / "table.json")
    assert len(table.samples) == 8 and sum(sample.held_out for sample in table.samples) == 2
    for part in ("(fitted to measurements)", "stem", "Whole model:", "Sum of layers", "held out"):
        assert part in ran.out, part
    assert "predicted, not measured" not in ran.out
    assert "<svg" in (folder / "stairs.svg").read_text()
    again = cli("profile", *SOURCE, "-o", "table.json", "--samples", "8", "--json")
    assert LatencyTable.load(folder / "table.json") == table, "a finished table is only shown"
    model, data = LatencyModel(table), again.data
    assert data["measured"] and data["samples"] == 8
    rows = {row["group"]: row for row in data["groups"]}
    assert {name: row["units"] for name, row in rows.items()} == table.groups
    assert all(row["full_ms"] == pytest.approx(float(model(table.full))) for row in rows.values())
    assert all(row["least_ms"] <= row["half_ms"] <= row["full_ms"] for row in rows.values())


def test_a_prediction_is_labelled_and_writes_nothing(cli: Cli, folder: Path) -> None:
    ran = cli("profile", *SOURCE, "--predict")
    assert ran.code == 0 and "predicted, not measured" in ran.out and "measurements" not in ran.out
    assert "held out" in ran.out and list(folder.iterdir()) == []


def test_whole_models_one_group_at_a_time(cli: Cli, folder: Path) -> None:
    ran = cli("profile", *SOURCE, "-o", "table.json", "--mode", "model", "--step", "32", "--samples", "8")
    assert ran.code == 0, ran.err
    table = LatencyTable.load(folder / "table.json")
    assert not any(sample.nodes for sample in table.samples) and "Sum of layers" not in ran.out
    alone = [s for s in table.samples if not s.held_out and sum(w < f for w, f in zip(s.widths, table.full, strict=True)) == 1]
    assert len(alone) >= len(table.groups)


def test_the_batch_is_set_or_found(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("profile", *SOURCE, "-o", "four.json", "--samples", "8", "--batch", "4").code == 0
    assert LatencyTable.load(folder / "four.json").inputs == "float32[4x1x8x8]"

    def found(measure: Callable[[int], float]) -> list[Load]:
        return [Load(1, measure(1)), Load(2, 0.6 * measure(1)), Load(4, measure(1) * 100)]

    monkeypatch.setattr(profiling, "saturating", found)
    ran = cli("profile", *SOURCE, "-o", "auto.json", "--samples", "8", "--batch", "auto")
    assert ran.code == 0 and "Throughput by batch" in ran.out
    table = LatencyTable.load(folder / "auto.json")
    assert table.inputs == "float32[2x1x8x8]"
    assert cli("profile", *SOURCE, "-o", "auto.json", "--samples", "8", "--batch", "auto").code == 0, "goes on at that batch"
    assert LatencyTable.load(folder / "auto.json") == table


def test_parts_of_a_model_are_measured_and_named(cli: Cli, folder: Path) -> None:
    ran = cli("profile", *SOURCE, "--scope", "block", "-o", "table.json", "--samples", "8")
    assert ran.code == 0 and "Times are those of the parts that are pruned: block." in ran.out
    assert list(LatencyTable.load(folder / "table.json").groups) == ["block.conv1"]


def test_what_was_measured_stays_when_the_device_fails(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = profile_latency

    def failing(*arguments: Any, save: Callable[[LatencyTable], None], **options: Any) -> LatencyTable:
        def saved(table: LatencyTable) -> None:
            save(table)
            raise DeviceError("The device failed while measuring. 4 samples are kept.")

        return real(*arguments, save=saved, **options)

    monkeypatch.setattr("graphprune.surveys.profiling.profile_latency", failing)
    ran = cli("profile", *SOURCE, "-o", "table.json", "--samples", "8")
    assert ran.code == 1 and "The device failed" in ran.err and ran.out == ""
    before = LatencyTable.load(folder / "table.json")
    monkeypatch.setattr("graphprune.surveys.profiling.profile_latency", real)
    assert cli("profile", *SOURCE, "-o", "table.json", "--samples", "8").code == 0
    after = LatencyTable.load(folder / "table.json")
    assert len(after.samples) == 8 and after.samples[: len(before.samples)] == before.samples


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "needs -o FILE"),
        (("-o", "t.json", "--predict"), "takes no -o"),
        (("--predict", "--compile"), "eager layers only"),
        (("-o", "t.json", "--mode", "both"), "--mode both is not known"),
        (("-o", "t.json", "--samples", "3"), "--samples must be at least 8"),
        (("-o", "t.json", "--batch", "many"), "--batch many is neither"),
        (("-o", "t.json", "--batch", "0"), "--batch 0 is neither"),
        (("-o", "t.json", "--device", "tpu"), "There is no device 'tpu'"),
        (("-o", "t.json", "--plot", "t.txt"), "ends in none of"),
        (("-o", "none/t.json"), "does not exist"),
    ],
)
def test_bad_requests_change_nothing(refused: Callable[..., str], arguments: tuple[str, ...], message: str) -> None:
    assert message in refused("profile", *SOURCE, *arguments)


def test_a_table_of_something_else_is_refused_and_kept(cli: Cli, refused: Callable[..., str], folder: Path) -> None:
    assert cli("profile", *SOURCE, "-o", "t.json", "--samples", "8").code == 0
    assert "samples is 9 here and 8 in the table" in refused("profile", *SOURCE, "-o", "t.json", "--samples", "9")
    assert "stem" in refused("profile", *SOURCE, "-o", "t.json", "--samples", "8", "--exclude", "stem")
    data = json.loads((folder / "t.json").read_text())
    data["environment"]["name"] = "another processor"
    (folder / "t.json").write_text(json.dumps(data))
    assert "device name is" in refused("profile", *SOURCE, "-o", "t.json", "--samples", "8")
    (folder / "t.json").write_text("{")
    assert "no valid latency table" in refused("profile", *SOURCE, "-o", "t.json", "--samples", "8")


def test_a_latency_target_goes_by_the_table_and_is_recorded_as_measured(cli: Cli, folder: Path) -> None:
    """Whatever the times are, the plan says what was measured, and the model is proved."""
    assert cli("profile", *SOURCE, "-o", "table.json", "--samples", "8").code == 0
    command = ("prune", *SOURCE, "--latency", "table.json", "--select", "knapsack", "-o", "slim.safetensors", "--plan", "plan.json")
    ran = cli(*command, "--target", "latency=90%", "--no-measure", "--round-to", "auto")
    assert ran.code == 0 and "Verified" in ran.out and "predicted by the table" in ran.out, ran.err
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["target"] == {"latency": "90%"} and 0 < plan["achieved"]["latency"] <= 0.9
    pipeline = "channels,score,select{latency=90%},rewrite,verify"
    ran = cli("prune", *SOURCE, "--latency", "table.json", "--no-measure", "--pipeline", pipeline, "-o", "slim.safetensors")
    assert ran.code == 0, ran.err


def test_a_sweep_of_latency(cli: Cli, folder: Path) -> None:
    assert cli("profile", *SOURCE, "-o", "table.json", "--samples", "8").code == 0
    ran = cli("sweep", *SOURCE, "--metric", "latency", "--latency", "table.json", "--points", "2", "-o", "front.json", "--json")
    assert ran.code == 0 and all("latency" in point["shares"] for point in ran.data["points"] if point["reached"]), ran.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--no-measure",), "--no-measure goes by a table alone"),
        (("--latency", "missing.json", "--target", "latency=50%"), "missing.json"),
        (("--round-to", "often"), "--round-to often"),
        (("--target", "latency=2", "--latency", "missing.json"), "over 100 %"),
    ],
)
def test_latency_options_that_do_not_work(refused: Any, arguments: tuple[str, ...], message: str) -> None:
    assert message in refused("prune", *SOURCE, "-o", "slim.safetensors", *arguments)
