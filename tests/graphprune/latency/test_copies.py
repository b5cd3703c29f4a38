"""Times over copies: the estimate and its error are right, more copies are made while it is unsure, and never for too long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from graphprune.latency.copies import CopyTimes, Effort, move, sampled, without_drift


@dataclass
class Machine:
    """Models whose every copy has a time of its own.

    ms: of each model. placement: relative deviation between copies. turn: between turns of a copy. drift: of a whole turn. takes:
    seconds that one copy takes.
    """

    ms: tuple[float, ...] = (10.0, 6.0)
    placement: float = 0.0
    turn: float = 0.0
    drift: float = 0.0
    takes: float = 1.0
    seed: int = 0
    clock: float = 0.0
    copies: int = 0
    random: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def copy(self) -> CopyTimes:
        self.copies += 1
        self.clock += self.takes
        shape = (3, len(self.ms))
        logs = self.random.normal(0, 1, shape[1]) * self.placement + self.random.normal(0, 1, shape) * self.turn
        logs = logs + self.random.normal(0, 1, (3, 1)) * self.drift
        return CopyTimes(np.array(self.ms) / 1000 * np.exp(logs), (4,) * shape[1])

    def now(self) -> float:
        return self.clock


def test_the_error_of_the_ratio_is_what_it_varies_by() -> None:
    """Over 300 measurements: the ratios spread as each of them says, though turns of one copy agree ten times as well."""
    ratios, errors = [], []
    for seed in range(300):
        machine = Machine(placement=0.01, turn=0.001, drift=0.2, seed=seed)
        whole, slim = sampled(machine.copy, Effort(precision=0, least=10, most=10, seconds=99), machine.now)
        ratios.append(np.log(slim.over(whole).value))
        errors.append(slim.over(whole).error)
    assert np.mean(ratios) == pytest.approx(np.log(0.6), abs=0.001)
    assert np.std(ratios) == pytest.approx(0.01 * (2 / 10) ** 0.5, rel=0.1)
    assert np.median(errors) == pytest.approx(np.std(ratios), rel=0.15)
    assert np.mean(np.abs(np.array(ratios) - np.log(0.6)) <= errors) == pytest.approx(0.68, abs=0.06)


def test_copies_are_timed_until_the_ratio_is_sure_enough() -> None:
    machine = Machine(placement=0.01)
    whole, slim = sampled(machine.copy, Effort(precision=0.004, least=4, most=99, seconds=999), machine.now)
    assert 4 < machine.copies < 40 and slim.over(whole).error <= 0.004
    assert len(slim.copies_ms) == machine.copies and slim.turns == 3 * machine.copies and slim.runs == 12 * machine.copies
    assert slim.over(whole).value == pytest.approx(0.6, rel=0.012)


def test_what_is_sure_at_once_takes_the_least_copies() -> None:
    machine = Machine()
    whole, slim = sampled(machine.copy, Effort(precision=0.004, least=5), machine.now)
    assert machine.copies == 5 and slim.over(whole).error == pytest.approx(0, abs=1e-12)
    assert whole.median_ms == pytest.approx(10) and slim.median_ms == pytest.approx(6)


@pytest.mark.parametrize(("takes", "copies"), [(1.0, 10), (3.0, 3), (60.0, 2)])
def test_no_copy_is_begun_that_would_not_end_in_time_but_for_the_second(takes: float, copies: int) -> None:
    machine = Machine(placement=0.5, takes=takes)
    found = sampled(machine.copy, Effort(precision=0.001, seconds=10), machine.now)
    assert machine.copies == copies and all(one.error > 0.001 for one in found), "and the error that is left is told"


def test_never_more_than_the_most() -> None:
    machine = Machine(placement=0.5, takes=0.0)
    sampled(machine.copy, Effort(precision=0.001, most=12), machine.now)
    assert machine.copies == 12
    (alone,) = sampled(machine.copy, Effort(precision=0.001, least=1, most=1), machine.now)[:1]
    assert alone.copies_ms == ()


def test_a_single_model_keeps_what_turns_have_in_common() -> None:
    times = np.array([[1.0], [3.0]])
    assert without_drift(times).tolist() == times.tolist()
    pairs = without_drift(np.array([[1.0, 2.0], [3.0, 6.0], [2.0, 4.0]]))
    assert np.allclose(pairs, [[2.0, 4.0]] * 3), "that of the usual round"
    machine = Machine(ms=(10.0,), drift=0.05)
    (alone,) = sampled(machine.copy, Effort(precision=0, most=9, seconds=99), machine.now)
    assert alone.error > 0.005


# -- moves -------------------------------------------------------------------------------------------------------------


def nets() -> Iterator[tuple[str, Callable[[], nn.Module], torch.Tensor]]:
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    yield "tied", lambda: tied, torch.randn(2, 4)
    last = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).to(memory_format=torch.channels_last)
    yield "channels last", lambda: last, torch.randn(1, 3, 5, 5)
    yield "graph", lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))), torch.randn(2, 4)


@pytest.mark.parametrize(("make", "x"), [pytest.param(make, x, id=name) for name, make, x in nets()])
def test_a_model_that_was_moved_computes_the_same_from_tensors_elsewhere(make: Callable[[], nn.Module], x: torch.Tensor) -> None:
    model = make().eval()
    objects, before = dict(model.named_parameters()), {name: (t.data_ptr(), t.stride()) for name, t in model.state_dict().items()}
    held, expected = [t.clone() for t in model.state_dict().values()], model(x)
    move(model, np.random.default_rng(0))
    assert all(model.get_parameter(name) is parameter for name, parameter in objects.items())
    after = model.state_dict()
    assert all(tensor.stride() == before[name][1] for name, tensor in after.items())
    assert any(tensor.data_ptr() != before[name][0] for name, tensor in after.items())
    assert all(torch.equal(old, new) for old, new in zip(held, after.values(), strict=True))
    assert torch.equal(model(x), expected)


def test_moves_differ_from_each_other() -> None:
    """Or else copies that are timed one after another would be one and the same."""
    model, random = nn.Sequential(*(nn.Linear(64, 64) for _ in range(6))), np.random.default_rng(0)
    places = set()
    for _ in range(8):
        move(model, random)
        places.add(tuple(parameter.data_ptr() for parameter in model.parameters()))
    assert len(places) == 8


def test_what_is_no_module_stays_where_it_is() -> None:
    called: list[Any] = []
    move(called.append, np.random.default_rng(0))
    assert not called
