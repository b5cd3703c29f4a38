"""A run that repeats another gets the results of the same calls, and runs all others itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import graphprune
from graphprune.channels.tape import Recording
from graphprune.tracing.results import Results

RESULTS = {name: torch.empty(0, device="meta") for name in "abc123"}


def never() -> Any:
    raise AssertionError("this call was to be known from the earlier run")


def answer(value: Any) -> Callable[[], Any]:
    return lambda: value


def run_of(*calls: str) -> Results:
    """A finished run of these calls, which result in tensors."""
    results = Results(Recording())
    for call in calls:
        results.of(call, answer(RESULTS[call]))
    return results


def test_the_same_calls_are_not_run_again() -> None:
    again = Results(Recording(), run_of("a", "b"))
    assert again.of("a", never) is RESULTS["a"] and again.of("b", never) is RESULTS["b"]


def test_from_the_first_other_call_on_everything_is_run() -> None:
    again = Results(Recording(), run_of("a", "b", "c"))
    assert again.of("a", never) is RESULTS["a"]
    assert again.of("x", answer(RESULTS["1"])) is RESULTS["1"]
    assert again.of("c", answer(RESULTS["2"])) is RESULTS["2"]


def test_calls_that_make_no_tensor_and_run_no_operator_may_differ() -> None:
    """Which the number of a tensor's axes is one run may ask and the other not."""
    first = run_of("a")
    assert first.of("dim", answer(4)) == 4
    first.of("b", answer(RESULTS["b"]))
    again = Results(Recording(), first)
    assert again.of("is_nested", answer(False)) is False
    assert again.of("a", never) is RESULTS["a"]
    assert again.expects("b") and not again.expects("c")
    assert again.of("b", never) is RESULTS["b"]


def test_an_attempt_that_is_taken_back_brings_the_runs_together_again() -> None:
    again = Results(Recording(), run_of("a", "b"))
    again.of("a", never)
    before = again.count
    again.of("x", answer(RESULTS["1"]))
    again.take_back(before)
    assert again.of("b", never) is RESULTS["b"]


def test_taking_back_less_than_the_first_other_call_does_not() -> None:
    again = Results(Recording(), run_of("a", "b", "c"))
    again.of("x", answer(RESULTS["1"]))
    before = again.count
    again.of("b", answer(RESULTS["2"]))
    again.take_back(before)
    assert again.of("b", answer(RESULTS["3"])) is RESULTS["3"]


def test_a_call_that_failed_is_tried_again() -> None:
    first = Results(Recording())
    with pytest.raises(ValueError, match="at first"):
        first.of("a", lambda: (_ for _ in ()).throw(ValueError("at first")))
    assert Results(Recording(), first).of("a", answer(1)) == 1


def test_the_operators_of_a_call_are_written_down_again() -> None:
    recording, x = Recording(), torch.empty(3, device="meta")
    first = Results(recording)
    with recording:
        made = first.of("relu", lambda: torch.relu(x))
    again = Recording()
    assert Results(again, first).of("relu", never) is made
    assert [run.output is made for run in again.take()] == [True]


class Moody(nn.Module):
    """Its rate depends on its mode, and in train mode it takes another way through one part."""

    def __init__(self, detour: bool) -> None:
        super().__init__()
        self.a, self.b, self.detour = nn.Linear(4, 8), nn.Linear(8, 2), detour

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.dropout(self.a(x), 0.5 if self.training else 0.0)
        if self.detour and self.training:
            x = x.relu()
        result: torch.Tensor = self.b(x)
        return result


@pytest.mark.parametrize(("detour", "follows"), [(False, True), (True, False)])
def test_constants_follow_the_mode_unless_the_runs_differ(detour: bool, follows: bool) -> None:
    graph = graphprune.capture(Moody(detour), torch.zeros(1, 4)).module
    assert any(node.target == "training" for node in graph.graph.nodes) is follows
