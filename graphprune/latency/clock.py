"""Timing of models: interleaved repeats, medians with spread; whole models and their nodes.

What is timed is a :class:`Subject`, not a callable, so that a clock of a test can work out a time from the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter, thread_time
from timeit import Timer
from typing import Annotated, Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt
from torch import fx

from graphprune.latency.allocator import steady_allocator
from graphprune.latency.environment import Environment
from graphprune.latency.node_times import cpu_node_times, cuda_node_times, replayed

_TURN: Final = 0.02  # seconds that one turn of one subject lasts at least, so that the clock's own cost does not show
_MOST_CALLS: Final = 200
_MORE: Final = 3  # rounds after which spreads are looked at again
_ERROR: Final = 1.858  # standard error of a median of n values: so many times half of their quartiles' distance, over sqrt(n)


Floats = npt.NDArray[np.float64]
Positive = Annotated[FiniteFloat, Field(gt=0)]


class Timing(BaseModel):
    """Milliseconds of one call: the median, the quartiles around it, the number of calls that were timed, and of the turns that
    these were made in. p95_ms: what 95 % of the turns stay below, where it was noted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    median_ms: Positive
    low_ms: Positive
    high_ms: Positive
    runs: PositiveInt
    turns: PositiveInt = 1
    p95_ms: Positive | None = None

    @property
    def error(self) -> float:
        """The median's standard error, as a share of it."""
        return float(_ERROR * self.spread / self.turns**0.5)

    @property
    def spread(self) -> float:
        """Half of the quartiles' distance, as a share of the median."""
        return (self.high_ms - self.low_ms) / 2 / self.median_ms


@dataclass(frozen=True)
class Subject:
    """A model to time, on its device, with the values of its placeholders."""

    module: fx.GraphModule
    arguments: tuple[Any, ...]

    def __call__(self) -> Any:
        """Run the model once."""
        return self.module(*self.arguments)


class Clock(Protocol):
    """What can time models."""

    def whole(self, subjects: Sequence[Subject]) -> list[Timing]:
        """Milliseconds of each model, by turns, so that a drift of the machine hits all alike."""

    def nodes(self, subject: Subject) -> dict[str, float]:
        """Milliseconds of each node of a model that runs anything, by name."""


@dataclass(frozen=True)
class DeviceClock:
    """The clock of the environment's device.

    turns: how often each model gets its turn at least; until the medians' standard errors are below ``precision``, a share of
    the time, or ``most_turns`` were taken. node_runs: how often each node is timed.
    """

    environment: Environment
    turns: int = 9
    most_turns: int = 18
    precision: float = 0.03
    node_runs: int = 7

    def whole(self, subjects: Sequence[Subject]) -> list[Timing]:
        """See :class:`Clock`. On the CPU by ``timeit`` (``torch.utils.benchmark`` loads compilers, and runs each
        turn twice more to warm up), on a GPU by replays of CUDA graphs."""
        with torch.no_grad(), steady_allocator():
            calls = [self._prepared(subject) for subject in subjects]
            measure = _cuda_turn if self.environment.device == "cuda" else self._cpu_turn
            return interleaved([_turn(call, measure) for call in calls], self.turns, self.most_turns, self.precision)

    def nodes(self, subject: Subject) -> dict[str, float]:
        """See :class:`Clock`. Nodes run eagerly, whatever the compile mode."""
        with torch.no_grad(), steady_allocator():
            if self.environment.device == "cuda":
                return cuda_node_times(subject.module, subject.arguments, self.node_runs)
            return cpu_node_times(subject.module, subject.arguments, self.node_runs, seconds_of(self.environment))

    def _prepared(self, subject: Subject) -> Callable[[], Any]:
        if self.environment.compile == "compile":
            torch.compiler.reset()  # or the models before count towards the limit of recompilations
            compiled: Any = torch.compile(subject.module, dynamic=False)
            compiled(*subject.arguments)
            return lambda: compiled(*subject.arguments)
        return replayed(subject) if self.environment.device == "cuda" else subject

    def _cpu_turn(self, call: Callable[[], Any], count: int) -> float:
        """Mean seconds of some calls. Turns are short, so that what a turn of each model has in common can be taken out."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.environment.threads)
        try:
            return Timer(call, timer=seconds_of(self.environment)).timeit(count) / count
        finally:
            torch.set_num_threads(before)


def seconds_of(environment: Environment) -> Callable[[], float]:
    """What a CPU clock reads. With one thread, the time that this thread runs: on a quiet machine that is the time which
    passes, and on a busy one it leaves out what other programs take."""
    return thread_time if environment.threads == 1 else perf_counter


def _cuda_turn(call: Callable[[], Any], count: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / count / 1000


@dataclass(frozen=True)
class Turn:
    """One turn of a subject: mean seconds of ``count`` calls."""

    run: Callable[[], float]
    count: int


def _turn(call: Callable[[], Any], measure: Callable[[Callable[[], Any], int], float]) -> Turn:
    """Warm up (the second call no longer pays for what is done once), and fit the number of calls to a turn."""
    measure(call, 1)
    seconds = measure(call, 1)
    count = int(np.clip(np.ceil(_TURN / max(seconds, 1e-9)), 1, _MOST_CALLS))
    return Turn(lambda: measure(call, count), count)


def interleaved(turns: Sequence[Turn], rounds: int, most: int, precision: float) -> list[Timing]:
    """Run all turns one after another, ``rounds`` times over, and on while a median's standard error is above the precision (a
    share of it), up to ``most`` times. What slows all of a round alike, such as a clock that changes, is taken out."""
    seconds: list[list[float]] = []
    found: list[Timing] = []
    while len(seconds) < rounds or (len(seconds) < most and any(one.error > precision for one in found)):
        more = rounds if not seconds else _MORE
        seconds += [[turn.run() for turn in turns] for _ in range(more)]
        quartiles = np.quantile(without_drift(np.array(seconds)) * 1000, (0.25, 0.5, 0.75, 0.95), axis=0).T.tolist()
        found = [
            Timing(median_ms=median, low_ms=low, high_ms=high, p95_ms=p95, runs=len(seconds) * turn.count, turns=len(seconds))
            for turn, (low, median, high, p95) in zip(turns, quartiles, strict=True)
        ]
    return found


def without_drift(seconds: Floats) -> Floats:
    """Times of shape (rounds, subjects) without what all subjects of a round have in common, against the usual round."""
    if seconds.shape[1] < 2:
        return seconds
    logs = np.log(np.maximum(seconds, 1e-12))
    common = logs.mean(axis=1, keepdims=True)
    result: Floats = np.exp(logs - common + np.median(common))
    return result
