"""Snapshots: kept while a stage refers to them, dropped afterwards, and never half written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from graphprune.errors import RunError
from graphprune.runs.store import Store


@pytest.fixture(params=["files", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(tmp_path / "snapshots" if request.param == "files" else None)


def test_a_content_is_read_as_it_was_put(store: Store) -> None:
    store.write("a", {"weights": {"w": torch.arange(3.0)}, "training": {"lr": 0.1}})
    found = store.known("a")
    assert found.load()["weights"]["w"].tolist() == [0, 1, 2]
    assert found.load()["training"] == {"lr": 0.1}


def test_a_content_goes_when_nothing_refers_to_it(store: Store) -> None:
    store.write("a", {"x": 1})
    first, second = store.known("a"), store.known("a")
    assert first is second
    del first
    assert store.has("a")
    del second
    assert not store.has("a")


def test_a_failed_run_keeps_everything(store: Store) -> None:
    store.write("a", {"x": 1})
    found = store.known("a")
    store.keep_all()
    del found
    assert store.has("a")


def test_what_is_missing_or_damaged_is_an_error(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "a.pt").write_bytes(b"no snapshot")
    for name in ("a", "b"):
        with pytest.raises(RunError, match="missing or damaged"):
            store.read(name)


def test_a_process_that_only_reads_writes_and_drops_nothing(tmp_path: Path) -> None:
    Store(tmp_path).write("a", {"x": 1})
    reader = Store(tmp_path, write=False)
    found = reader.known("a")
    assert found.load() == {"x": 1}
    del found
    reader.write("b", {})
    assert reader.has("a") and not reader.has("b")
