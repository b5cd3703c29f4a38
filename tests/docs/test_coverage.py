"""The coverage benchmark: its limits hold, its rows survive, its pages say what the rows say, its models run."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "coverage"
_MODULES = ("suites", "clone", "store", "table", "watch", "run", "child")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The benchmark's modules, importable as its scripts import them and forgotten afterwards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield SimpleNamespace(**{name: import_module(name) for name in _MODULES}, large=import_module("suites.large"))
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in _MODULES:
            del sys.modules[name]


# -- limits --------------------------------------------------------------------------------------------------------------


def test_a_child_over_the_time_limit_is_ended(bench: SimpleNamespace, tmp_path: Path) -> None:
    start = time.monotonic()
    ended = bench.watch.run([sys.executable, "-c", "import time; time.sleep(60)"], bench.watch.Limits(0.5, 10), tmp_path / "log")
    assert ended.stopped == "over 0 s" and ended.code != 0
    assert time.monotonic() - start < 30


def test_a_child_over_the_memory_limit_is_ended(bench: SimpleNamespace, tmp_path: Path) -> None:
    hungry = "x = bytearray(400 * 2**20)\nimport time; time.sleep(60)"
    ended = bench.watch.run([sys.executable, "-c", hungry], bench.watch.Limits(30, 0.2), tmp_path / "log")
    assert ended.stopped == "over 0.2 GiB"


def test_an_interruption_ends_the_child(bench: SimpleNamespace, tmp_path: Path) -> None:
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    ended = bench.watch.run(
        [sys.executable, "-c", "import time; time.sleep(60)"], bench.watch.Limits(30, 4), tmp_path / "log", stop
    )
    assert ended.stopped == "interrupted" and ended.code != 0


def test_a_child_within_its_limits_ends_by_itself_and_its_last_words_are_kept(bench: SimpleNamespace, tmp_path: Path) -> None:
    ended = bench.watch.run(
        [sys.executable, "-c", "print('one'); raise SystemExit(3)"], bench.watch.Limits(60, 4), tmp_path / "log"
    )
    assert (ended.code, ended.stopped, ended.tail) == (3, "", "one")


# -- rows ----------------------------------------------------------------------------------------------------------------


def test_a_row_replaces_that_of_its_model_and_no_other(bench: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert bench.store.read(path) == {}
    for row in ({"key": "b", "n": 1}, {"key": "a", "n": 2}, {"key": "b", "n": 3}):
        bench.store.put(path, row)
    assert list(bench.store.read(path).values()) == [{"key": "a", "n": 2}, {"key": "b", "n": 3}]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("again", "failed", "expected"), [(False, False, ["c"]), (False, True, ["b", "c"]), (True, False, ["a", "b", "c"])]
)
def test_what_has_a_row_is_left_unless_asked_for(bench: SimpleNamespace, again: bool, failed: bool, expected: list[str]) -> None:
    known = {"a": {"status": "proved"}, "b": {"status": "stopped"}}
    assert bench.run.wanted(["a", "b", "c"], known, SimpleNamespace(again=again, failed=failed)) == expected


def test_a_model_in_a_child_process_is_proved(bench: SimpleNamespace) -> None:
    row = bench.run.one("torchvision:squeezenet1_1", "child.py", bench.watch.Limits(300, 8))
    assert row["status"] == "proved" and 0 < row["error"] < 1e-4
    assert row["opaque"] == {} and row["groups"] == 25 and round(row["left"], 3) == 0.355
    assert row["prunable_parameters"] > 0.9


def test_an_unknown_model_is_a_failed_row_with_its_reason(bench: SimpleNamespace) -> None:
    row = bench.run.one("torchvision:no_such_model", "child.py", bench.watch.Limits(300, 8))
    assert row["status"] == "failed" and row["stage"] == "build" and "no_such_model" in row["reason"]


def test_unknown_names_are_refused_before_anything_is_run(bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "cifar:resnet20"])
    monkeypatch.setattr(bench.suites, "keys", lambda suite: ["torchvision:resnet18"])
    assert bench.run.main() == 2


# -- pages ---------------------------------------------------------------------------------------------------------------

_PROVED = {
    "key": "torchvision:resnet18",
    "status": "proved",
    "opaque": {},
    "operators": 90,
    "groups": 12,
    "error": 8e-7,
    "left": 0.26,
    "prune_seconds": 0.1,
    "made_with": "torch",
}
_STOPPED = {"key": "torchvision:vgg11", "status": "stopped", "stage": "proof", "reason": "over 9 s", "opaque": {"a": "Why | not"}}


def test_a_page_tells_proved_from_not_proved(bench: SimpleNamespace) -> None:
    page = bench.table.coverage_page("T", {row["key"]: row for row in (_PROVED, _STOPPED)}, ("torchvision", "timm"))
    assert "**1 of 2 models proved** (1 of them traced whole); worst error 8.0e-07." in page
    assert "| resnet18 | whole | 90 | 12 |" in page and "**stopped** in proof" in page
    assert "- vgg11: stopped in proof: over 9 s" in page and "- vgg11: a: Why / not" in page
    assert "## timm" not in page


def test_every_line_of_a_table_has_as_many_cells_as_the_heading(bench: SimpleNamespace) -> None:
    compared = {
        "key": "torchvision:resnet18",
        "status": "compared",
        "peer": "works",
        "seconds": {"ours": 0.1, "ours_proved": 0.4, "peer": 0.32},
        "mib": {"ours": 20, "peer": 50},
        "weights_mib": 45,
    }
    failed = {"key": "torchvision:swin_t", "status": "failed"}
    page = bench.table.peer_page({row["key"]: row for row in (compared, failed)})
    assert "over the 1 models that both handle, of 2: **3.2 times faster** without the proof, 0.8 times with it." in page
    tables = [page, bench.table.coverage_page("T", {row["key"]: row for row in (_PROVED, _STOPPED)}, ("torchvision",))]
    for text in tables:
        assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_pages_of_all_of_timm_are_apart_from_those_of_the_smallest(bench: SimpleNamespace, tmp_path: Path) -> None:
    smallest = next(iter(json.loads((FOLDER / "suites" / "timm_smallest.json").read_text()).values()))
    rows = {key: _PROVED | {"key": key} for key in (f"timm:{smallest}", "timm:another")}
    bench.table.publish(tmp_path, rows, {})
    assert f"| {smallest} |" in (tmp_path / "README.md").read_text() and "another" not in (tmp_path / "README.md").read_text()
    assert "| another |" in (tmp_path / "timm_all.md").read_text() and not (tmp_path / "peer.md").exists()


# -- models --------------------------------------------------------------------------------------------------------------


def test_every_family_of_timm_has_one_model_that_exists(bench: SimpleNamespace) -> None:
    timm = pytest.importorskip("timm")
    picked = json.loads((FOLDER / "suites" / "timm_smallest.json").read_text())
    assert len(set(picked.values())) == len(picked) >= 90
    assert all(name in timm.list_models(module=family) for family, name in picked.items() if family in timm.list_modules())


def test_suites_and_bare_names_are_understood(bench: SimpleNamespace) -> None:
    assert len(bench.suites.chosen(["torchvision"])) >= 121
    assert bench.suites.chosen(["resnet18", "torchvision:resnet18"]) == ["torchvision:resnet18"]


@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "quantized_resnet18", "mc3_18", "lraspp_mobilenet_v3_large"])
def test_torchvision_models_run_on_their_inputs(bench: SimpleNamespace, name: str) -> None:
    case = bench.suites.load(f"torchvision:{name}")
    model, inputs = case.build(), case.inputs()
    assert not model.training
    with torch.no_grad():
        model(*inputs) if isinstance(inputs, tuple) else model(inputs)


class _Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(6)] + [nn.Linear(4, 3), nn.Linear(3, 3)])
        self.body = nn.Sequential(*(nn.ReLU() for _ in range(4)))
        self.register_buffer("computed", torch.arange(4.0))
        self.tied = self.blocks[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = self.body(block(x))
        return x


def test_a_model_is_built_without_values_shortened_and_filled(bench: SimpleNamespace) -> None:
    with bench.large.parameters_on_meta():
        model = _Deep()
    assert all(parameter.is_meta for parameter in model.parameters()) and model.get_buffer("computed").tolist() == [0, 1, 2, 3]
    assert bench.large.shorten(model) == 4
    assert [block.out_features for block in model.blocks if isinstance(block, nn.Linear)] == [4, 4, 3, 3]
    assert len(model.body) == 4, "what holds no tensors is not depth"
    bench.large.fill(model)
    assert model.tied is model.blocks[0] and model(torch.rand(2, 4)).isfinite().all()
    assert not any(parameter.is_meta for parameter in _Deep().parameters()), "modules are built with values again"
