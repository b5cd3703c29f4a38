"""Latencies are measured on a device, met as a target there, predicted, and compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import graphprune
from graphprune.cli import comparing
from graphprune.latency import clock as clocks
from graphprune.latency.clock import DeviceClock, Subject
from graphprune.latency.copies import Effort
from graphprune.latency.environment import environment_of
from graphprune.latency.node_times import replayed
from graphprune.passes.latency import source
from tests.gpu.devices import everywhere, on_gpu
from tests.gpu.nets import made
from tests.graphprune.cli.conftest import cli as cli
from tests.graphprune.cli.conftest import folder as folder

Cli = Callable[..., Any]


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "SURE", Effort(precision=1, turns=1, least=2))
    monkeypatch.setattr(source, "SURE", Effort(precision=0.02, turns=2, least=2, seconds=5))
    monkeypatch.setattr(clocks, "_TURN", 0.002)


def _meets_a_target(device: str, *, compiled: bool, samples: int) -> None:
    model, x = made("resnet18", device)
    x = x.expand(64, -1, -1, -1).contiguous()  # enough work that the time follows the widths
    table = graphprune.profile(model, x, device=device, compile=compiled, samples=samples)
    assert len(table.samples) == samples and table.environment.device == device
    result = graphprune.prune(model, x, target={"latency": 0.7}, latency=table, verify=False)
    assert 0 < result.plan.achieved["latency"] <= 0.75
    assert next(result.model.parameters()).device.type == device


@on_gpu
def test_a_target_is_met_as_measured(device: str) -> None:
    _meets_a_target(device, compiled=False, samples=8)


@on_gpu
def test_a_target_is_met_compiled(device: str) -> None:
    _meets_a_target(device, compiled=True, samples=8)


@everywhere
@pytest.mark.parametrize("name", ["mobilenet_v2", "vit", "lstm"])
def test_models_of_all_kinds_are_timed_whole_and_node_by_node(name: str, device: str) -> None:
    model, x = made(name, device)
    subject = Subject(graphprune.capture(model, x).module, (x,))
    clock = DeviceClock(environment_of(model, device), Effort(precision=1, turns=1, least=2))
    (whole,) = clock.whole([subject])
    nodes = clock.nodes(subject)
    assert whole.median_ms > 0 and sum(nodes.values()) > 0 and len(whole.copies_ms) == 2


@on_gpu
def test_replays_compute_what_the_call_computes_and_what_cannot_be_captured_is_called(device: str) -> None:
    x, out = torch.randn(64, 64, device=device), torch.zeros(64, 64, device=device)
    again = replayed(lambda: out.copy_(x @ x))
    x.mul_(2)
    again()
    torch.testing.assert_close(out, x @ x, rtol=1e-3, atol=1e-3)
    looks: list[float] = []
    replayed(lambda: looks.append(float(x.sum())))()
    assert looks and looks[-1] == pytest.approx(float(x.sum()))


@everywhere
def test_profile_writes_a_table_and_predicts(cli: Cli, device: str) -> None:
    model = ("graphprune.cli.digits:small_cnn", "--input", "4x1x8x8", "--device", device)
    ran = cli("profile", *model, "-o", "table.json", "--samples", "8", "--json")
    assert ran.code == 0 and Path("table.json").exists(), ran.err
    if device == "cuda":  # minutes of measuring on one core
        ran = cli("profile", *model, "--predict", "--json")
        assert ran.code == 0, ran.err


@on_gpu
@pytest.mark.parametrize("how", [(), ("--compile",)], ids=str)
def test_models_are_compared(how: tuple[str, ...], cli: Cli, device: str) -> None:
    models = ("torch.nn:Conv2d(8, 64, 3)", "torch.nn:Conv2d(8, 16, 3)", "--input", "8x8x32x32", "--device", device)
    ran = cli("compare", *models, *how, "--batch", "1", "--batch", "16", "--json")
    assert ran.code == 0, ran.err
    assert [load["batch"] for load in ran.data["latency"]] == [1, 16] and ran.data["environment"]["device"] == "cuda"
