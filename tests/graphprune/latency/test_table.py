"""The table on disk: what is written is read, and what is damaged or of something else is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import graphprune
from graphprune.errors import LatencyError
from graphprune.latency.environment import Environment, environment_of
from graphprune.latency.table import LatencyTable
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.pipeline.analysis_manager import AnalysisManager
from graphprune.plans.plan import fingerprint
from tests.planted_latency import HERE, chain, empty_table, filled


def _table() -> LatencyTable:
    return filled(
        empty_table({"a": 8, "b": 8}, nodes=chain([8, 8]), samples=8), lambda w: 1.0 + sum(w), lambda w: {"n0": 1.0, "n1": 0.5}
    )


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    _table().save(tmp_path / "t.json")
    assert LatencyTable.load(tmp_path / "t.json") == _table()


def _set(*place: Any, to: Any) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for key in place[:-1]:
            data = data[key]
        data[place[-1]] = to

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_set("samples", 0, "whole", "median_ms", to="fast"), "median_ms"),
        (_set("samples", 0, "whole", "median_ms", to=float("nan")), "median_ms"),
        (_set("samples", 0, "whole", "median_ms", to=-1.0), "median_ms"),
        (_set("samples", 0, "nodes", "n0", to=float("inf")), "n0"),
        (_set("samples", 1, "widths", to=[1]), "1 widths for 2 groups"),
        (_set("samples", 1, "widths", to=[1, 9]), "wider than the model"),
        (_set("samples", 1, "widths", to=[0, 1]), "widths"),
        (_set("nodes", "n0", "lengths", to=[{"constant": 0, "by_group": {"7": 1}}]), "does not exist"),
        (_set("nodes", "n0", "lengths", to=[{"constant": 1, "by_group": {}}] * 3), "at most 2"),
        (_set("environment", "device", to="toaster"), "environment.device"),
        (_set("more", to=1), "more"),
        (_set("schema_version", to=2), "schema_version"),
    ],
)
def test_a_damaged_table_is_refused_by_the_place_of_the_damage(tmp_path: Path, damage: Callable[[Any], None], message: str) -> None:
    path = tmp_path / "t.json"
    data = _table().model_dump(mode="json")
    damage(data)
    path.write_text(json.dumps(data))
    with pytest.raises(LatencyError, match=message):
        LatencyTable.load(path)


def test_a_file_that_is_cut_short_or_missing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    _table().save(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(LatencyError, match="no valid latency table"):
        LatencyTable.load(path)
    with pytest.raises(LatencyError, match="Cannot read"):
        LatencyTable.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("device", "cuda", "device"), ("name", "another", "device name"), ("dtype", "float16", "dtype"), ("threads", 4, "threads")],
)
def test_the_first_difference_of_environments_is_named(field: str, value: object, words: str) -> None:
    other = Environment.model_validate(HERE.model_dump() | {field: value})
    assert words in HERE.difference(other) and str(value) in HERE.difference(other)
    assert HERE.difference(HERE) == ""


def test_a_table_of_another_model_or_device_does_not_fit() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1))
    program = graphprune.capture(model, torch.zeros(1, 3, 4, 4))
    groups = AnalysisManager().get(program, ChannelGroups)
    mine = fingerprint(program.module)
    table = empty_table({"0": 8}).model_copy(update={"model": mine})
    table.check_fits(mine, groups, HERE)
    with pytest.raises(LatencyError, match=r"0\.weight is float32\[8, 3, 1, 1\] here and float32\[9, 3, 1, 1\] in the table"):
        table.model_copy(update={"model": mine | {"0.weight": "float32[9, 3, 1, 1]"}}).check_fits(mine, groups)
    with pytest.raises(LatencyError, match="0 is 8 here and missing"):
        empty_table({}).model_copy(update={"model": mine}).check_fits(mine, groups)
    with pytest.raises(LatencyError, match=r"device name is.*or meet the target by this table alone \(--no-measure"):
        table.check_fits(mine, groups, environment_of(model))
    table.check_fits(mine, groups)


def test_a_run_with_other_settings_does_not_go_on() -> None:
    start = empty_table({"a": 8})
    start.check_continues(start)
    with pytest.raises(LatencyError, match="samples is 12 here and 24"):
        start.check_continues(empty_table({"a": 8}, samples=12))
