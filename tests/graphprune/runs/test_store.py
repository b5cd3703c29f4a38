"""Snapshots: kept while a stage refers to them, dropped afterwards, and never half written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from graphprune.errors import RunError
from graphprune.runs.store import Store
from tests.hostile.payloads import torch_pickle, zip_bomb

CONTENT: dict[str, Any] = {"weights": {}, "training": None}


@pytest.fixture(params=["files", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(tmp_path / "snapshots" if request.param == "files" else None)


def test_a_content_is_read_as_it_was_put(store: Store) -> None:
    store.write("a", {"weights": {"w": torch.arange(3.0)}, "training": {"lr": 0.1}})
    found = store.known("a")
    assert found.load()["weights"]["w"].tolist() == [0, 1, 2]
    assert found.load()["training"] == {"lr": 0.1}


def test_a_content_goes_when_nothing_refers_to_it(store: Store) -> None:
    store.write("a", CONTENT)
    first, second = store.known("a"), store.known("a")
    assert first is second
    del first
    assert store.has("a")
    del second
    assert not store.has("a")


def test_a_failed_run_keeps_everything(store: Store) -> None:
    store.write("a", CONTENT)
    found = store.known("a")
    store.keep_all()
    del found
    assert store.has("a")


@pytest.mark.parametrize(
    "put",
    [
        lambda path: None,
        lambda path: path.write_bytes(b"no snapshot"),
        lambda path: path.write_bytes(torch_pickle()),
        lambda path: path.write_bytes(zip_bomb()),
        os.mkfifo,
        lambda path: torch.save({"weights": {}}, path),
        lambda path: torch.save([CONTENT], path),
        lambda path: torch.save({"weights": [], "training": None}, path),
        lambda path: torch.save({**CONTENT, "done": "3"}, path),
    ],
    ids=["missing", "bytes", "pickle", "bomb", "pipe", "no training", "list", "no weights", "no number"],
)
def test_what_is_missing_damaged_or_hostile_is_refused_in_a_line(put: Callable[[Path], object], tmp_path: Path) -> None:
    put(tmp_path / "a.pt")
    with pytest.raises(RunError, match=r"a\.pt is missing or damaged: [^\n]+\. Start anew in another folder\.$"):
        Store(tmp_path).read("a")


def test_weights_fill_the_model_that_they_are_of_and_no_other(store: Store) -> None:
    weights = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    model = nn.Linear(3, 2)
    store.write("a", CONTENT | {"weights": weights})
    store.known("a").fill(model)
    assert torch.equal(model.weight, weights["weight"])
    for wrong in ({}, weights | {"bias": torch.zeros(3)}, weights | {"bias": "zeros"}, {5: torch.zeros(2)}):
        store.write("b", CONTENT | {"weights": wrong})
        with pytest.raises(RunError, match="The snapshot b does not hold the weights of its Linear"):
            store.known("b").fill(model)


def test_a_process_that_only_reads_writes_and_drops_nothing(tmp_path: Path) -> None:
    Store(tmp_path).write("a", CONTENT)
    reader = Store(tmp_path, write=False)
    found = reader.known("a")
    assert found.load() == CONTENT
    del found
    reader.write("b", {})
    assert reader.has("a") and not reader.has("b")
