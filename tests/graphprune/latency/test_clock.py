"""Timing: models take turns, all of them elsewhere in memory each time, and every layer is timed once where it runs."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import fx, nn

from graphprune.latency import node_times
from graphprune.latency.clock import DeviceClock, Subject, seconds_of
from graphprune.latency.copies import Effort
from graphprune.latency.environment import environment_of
from graphprune.latency.timing import Timing
from tests.planted_latency import HERE


class _Noted(nn.Module):
    """Notes each call of it, with where its weight is."""

    def __init__(self, name: str, calls: list[tuple[str, int]]) -> None:
        super().__init__()
        self.weight, self.name, self.calls = nn.Parameter(torch.zeros(64)), name, calls

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append((self.name, self.weight.data_ptr()))
        return x + self.weight


def test_turns_rotate_in_each_of_several_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that stands still but for a second with each reading, one call fills a turn."""
    ticks = iter(range(10_000))
    monkeypatch.setattr("graphprune.latency.clock.seconds_of", lambda environment: lambda: float(next(ticks)))
    calls: list[tuple[str, int]] = []
    subjects: list[Any] = [Subject(_Noted(name, calls), (torch.zeros(64),)) for name in "ab"]  # type: ignore[arg-type]
    first, second = DeviceClock(HERE, Effort(precision=0, turns=3, least=4)).whole(subjects)
    assert [name for name, _ in calls] == [*"aabb", *"ababab"] * 4, "two calls to warm up, then by turns"
    places = [place for name, place in calls if name == "a"]
    assert all(len(set(places[copy : copy + 5])) == 1 for copy in range(0, 20, 5)) and len(set(places)) > 1
    assert first.median_ms == second.median_ms == pytest.approx(1000) and first.runs == 12 and len(first.copies_ms) == 4


def _net() -> fx.GraphModule:
    return fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 2)))


def test_every_layer_is_timed_and_nothing_else() -> None:
    net = _net()
    with torch.no_grad():
        found = node_times.cpu_node_times(net, (torch.zeros(1, 3, 4, 4),), 3)
    assert list(found) == [node.name for node in net.graph.nodes if node.op == "call_module"]
    assert all(ms >= 0 for ms in found.values())


def test_what_measuring_takes_is_left_out() -> None:
    """On a clock that moves by one millisecond each time it is read, every layer takes as long as measuring nothing does."""
    ticks = iter(range(10_000))
    found = node_times.cpu_node_times(_net(), (torch.zeros(1, 3, 4, 4),), 3, lambda: next(ticks) / 1000)
    assert set(found.values()) == {0.0}


def test_one_thread_is_timed_by_what_it_runs_itself() -> None:
    assert seconds_of(HERE) is time.thread_time
    assert seconds_of(HERE.model_copy(update={"threads": 2})) is time.perf_counter


def test_layers_get_the_inputs_of_a_run() -> None:
    """What the timed run computes is what the model computes: methods, functions, keywords and several results."""

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = x.chunk(2, dim=1)
            return torch.cat([a.mul(2), torch.add(b, a, alpha=3)], 1)

    net, x = fx.symbolic_trace(Net()), torch.arange(8.0).reshape(1, 4, 2)
    timed = node_times._Timing(net, lambda name, call: call())
    assert torch.equal(timed.run(x), net(x))


def test_the_clock_measures_on_the_cpu() -> None:
    environment = environment_of(_net())
    clock = DeviceClock(environment, Effort(precision=1, turns=1, least=2), node_runs=1)
    subject = Subject(_net().eval(), (torch.zeros(1, 3, 4, 4),))
    (timing,) = clock.whole([subject])
    assert isinstance(timing, Timing) and 0 < timing.low_ms <= timing.median_ms <= timing.high_ms and len(timing.copies_ms) == 2
    assert len(clock.nodes(subject)) == 4
    assert environment.device == "cpu" and environment.threads == torch.get_num_threads() and environment.name


def test_an_environment_knows_dtype_and_layout() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)).half().to(memory_format=torch.channels_last)
    found = environment_of(net, compile=True)
    assert (found.dtype, found.layout, found.compile) == ("float16", "channels_last", "compile")
    plain = environment_of(nn.Conv2d(3, 4, 3))
    assert (plain.dtype, plain.layout, plain.compile) == ("float32", "contiguous", "eager")
    assert "dtype" in found.difference(HERE.model_copy(update={"name": found.name}))
