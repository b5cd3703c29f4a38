"""Timing: turns are taken in rotation, a spread asks for more of them, and every layer is timed once where it runs."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import fx, nn

from graphprune.latency import node_times
from graphprune.latency.clock import DeviceClock, Subject, Timing, Turn, interleaved, seconds_of, without_drift
from graphprune.latency.environment import environment_of
from tests.planted_latency import HERE


def test_turns_rotate_and_a_drift_that_hits_all_alike_is_taken_out() -> None:
    """The machine gets slower and slower; one subject is half as much work as the other, and comes out so."""
    calls: list[str] = []

    def turn(name: str, work: float) -> Turn:
        def run() -> float:
            calls.append(name)
            return work * (1 + (len(calls) - 1) // 2)

        return Turn(run, 2)

    first, second = interleaved([turn("a", 1.0), turn("b", 2.0)], 9, 9, 0.01)
    assert calls == ["a", "b"] * 9
    assert second.median_ms == pytest.approx(2 * first.median_ms) and first.spread == pytest.approx(0, abs=1e-9)
    assert first.median_ms == pytest.approx(5000) and first.runs == 18


def test_one_subject_alone_keeps_its_spread() -> None:
    times = np.array([[1.0], [3.0]])
    assert without_drift(times).tolist() == times.tolist()
    pairs = without_drift(np.array([[1.0, 2.0], [3.0, 6.0], [2.0, 4.0]]))
    assert np.allclose(pairs, [[2.0, 4.0]] * 3), "that of the usual round"


def test_an_uncertain_median_asks_for_more_turns_up_to_the_most() -> None:
    steady = interleaved([Turn(lambda: 1.0, 1)], 4, 16, 0.03)[0]
    values = iter([1.0, 2.0] * 50)
    unsteady = interleaved([Turn(lambda: next(values), 1)], 4, 16, 0.03)[0]
    assert (steady.runs, unsteady.runs) == (4, 16)
    assert steady.spread == 0 and unsteady.spread > 0.05
    assert steady.error == 0 and unsteady.error == pytest.approx(1.858 * unsteady.spread / 4), "of 16 turns"
    close = iter([1.0, 1.02] * 50)
    assert interleaved([Turn(lambda: next(close), 1)], 4, 100, 0.002)[0].runs < 100, "until it is certain enough"


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
    clock = DeviceClock(environment, turns=2, most_turns=2, node_runs=1)
    subject = Subject(_net().eval(), (torch.zeros(1, 3, 4, 4),))
    (timing,) = clock.whole([subject])
    assert isinstance(timing, Timing) and 0 < timing.low_ms <= timing.median_ms <= timing.high_ms
    assert len(clock.nodes(subject)) == 4
    assert environment.device == "cpu" and environment.threads == torch.get_num_threads() and environment.name


def test_an_environment_knows_dtype_and_layout() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)).half().to(memory_format=torch.channels_last)
    found = environment_of(net, compile=True)
    assert (found.dtype, found.layout, found.compile) == ("float16", "channels_last", "compile")
    plain = environment_of(nn.Conv2d(3, 4, 3))
    assert (plain.dtype, plain.layout, plain.compile) == ("float32", "contiguous", "eager")
    assert "dtype" in found.difference(HERE.model_copy(update={"name": found.name}))
