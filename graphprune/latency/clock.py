"""Timing of models, by turns and over several copies of them in memory; whole models and their nodes.

What is timed is a :class:`Subject`, not a callable, so that a clock of a test can work out a time from the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter, thread_time
from timeit import Timer
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import fx

from graphprune.latency.allocator import steady_allocator
from graphprune.latency.copies import ROUGH, CopyTimes, Effort, move, sampled
from graphprune.latency.environment import Environment
from graphprune.latency.node_times import cpu_node_times, cuda_node_times, replayed
from graphprune.latency.timing import Timing

_TURN: Final = 0.02  # seconds that one turn of one subject lasts at least, so that the clock's own cost does not show
_MOST_CALLS: Final = 200


@dataclass(frozen=True)
class Subject:
    """A model to time, on its device, with the values of its placeholders. Its tensors are moved in memory while it is timed."""

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

    effort: how many copies of each model are timed, and how often. node_runs: how often each node is timed.
    """

    environment: Environment
    effort: Effort = ROUGH
    node_runs: int = 7

    def whole(self, subjects: Sequence[Subject]) -> list[Timing]:
        """See :class:`Clock`. On the CPU by ``timeit`` (``torch.utils.benchmark`` loads compilers, and runs each
        turn twice more to warm up), on a GPU by replays of CUDA graphs.

        No model is there twice: for each copy its tensors are moved, one after another.
        """
        random = np.random.default_rng()
        with torch.no_grad():
            calls = [self._prepared(subject) for subject in subjects]

            def copy() -> CopyTimes:
                for subject in subjects:
                    move(subject.module, random)
                return self._by_turns(calls)

            with steady_allocator():  # for all copies: memory that goes back between them is paid for in the turns that follow
                return sampled(copy, self.effort)

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
        return subject

    def _by_turns(self, calls: Sequence[Callable[[], Any]]) -> CopyTimes:
        on_gpu = self.environment.device == "cuda"
        measure = _cuda_turn if on_gpu else self._cpu_turn
        placed = [replayed(call) for call in calls] if on_gpu else calls  # anew for each copy: CUDA graphs know addresses
        counts = [_calls_in_a_turn(call, measure) for call in placed]
        turn = list(zip(placed, counts, strict=True))
        seconds = [[measure(call, count) for call, count in turn] for _ in range(self.effort.turns)]
        return CopyTimes(np.array(seconds), tuple(counts))

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


def _calls_in_a_turn(call: Callable[[], Any], measure: Callable[[Callable[[], Any], int], float]) -> int:
    """How many calls fill a turn, by the second one: it no longer pays for what is done once."""
    measure(call, 1)
    seconds = measure(call, 1)
    return int(np.clip(np.ceil(_TURN / max(seconds, 1e-9)), 1, _MOST_CALLS))
