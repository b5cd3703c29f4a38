"""Networks from their seeds to what came of them, in processes that are watched: one that hangs or crashes is itself a finding."""

from __future__ import annotations

import gc
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from multiprocessing import parent_process
from threading import Thread
from typing import Any, TypeAlias

import torch

from graphprune.collector import collector_paused
from tests.fuzz.check import Outcome, check
from tests.fuzz.generate import generate
from tests.fuzz.shrink import SECONDS as SHRINKING
from tests.fuzz.shrink import shrink
from tests.fuzz.spec import Spec
from tests.watched import Lost, Watched, wait

SECONDS = 120.0  # after which a network hangs; it takes a tenth of one, and a machine may be busy
COLLECTED = 32  # networks whose garbage is collected at once
RENEWED = 2000  # networks after which processes are new ones: the code of each graph that ran stays in memory

#: What came of a network, and its spec, shrunk where it failed.
Attempt: TypeAlias = tuple[Outcome, Spec]


def prepare() -> None:
    """Make this process one of many networks: one thread, what was imported is no garbage, and it does not outlive its parent."""
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    Thread(target=_end_with, args=(parent_process(),), daemon=True).start()


def _end_with(parent: Any) -> None:
    """End this process once its parent has ended: one that was killed cannot tell its workers."""
    parent.join()
    os._exit(1)


def attempt(seed: int) -> Attempt:
    """Check the network of a seed."""
    with collector_paused():
        spec = generate(seed)
        outcome = check(spec)
    if seed % COLLECTED == 0:
        gc.collect()
    return outcome, spec


def passes(spec: Spec) -> bool:
    """Whether a network passes every check, in a process of its own."""
    with Watched(prepare) as process:
        process.ask(SECONDS, _passes, spec)
        try:
            return bool(process.answer())
        except Lost:
            return False


def _passes(spec: Spec) -> bool:
    return not check(spec, everything=True).failure


class _Worker:
    """A process after another, each for so many networks at most."""

    def __init__(self, renewed: int) -> None:
        self.seed = -1
        self._renewed = renewed
        self._process: Watched | None = None
        self._left = 0

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None

    @property
    def process(self) -> Watched:
        """The process, a new one where the last one is old or gone."""
        if self._process is None:
            self._process, self._left = Watched(prepare), self._renewed
        return self._process

    def begin(self, seed: int) -> int:
        """Begin with the network of a seed, which is returned."""
        self.seed = seed
        self.process.ask(SECONDS, attempt, seed)
        return seed

    def end(self) -> Attempt:
        """What came of it. A network that fails is shrunk; that of a process that is lost is the one of the seed."""
        self._left -= 1
        try:
            outcome, spec = self.process.answer()
        except Lost as lost:
            outcome, spec = Outcome(self.seed, str(lost)), generate(self.seed).model_copy(update={"why": str(lost)})
            self.__exit__()
        else:
            spec = self._shrunk(outcome, spec) if outcome.failure else spec
        if self._left <= 0:
            self.__exit__()
        return outcome, spec

    def _shrunk(self, outcome: Outcome, spec: Spec) -> Spec:
        self.process.ask(SHRINKING + SECONDS, shrink, spec, outcome)
        try:
            found: Spec = self.process.answer()
        except Lost:  # in a smaller network, which is another failure
            self.__exit__()
            return spec.model_copy(update={"why": outcome.failure[:500]})
        return found


def attempts(seeds: Iterable[int], jobs: int, deadline: float) -> Iterator[Attempt]:
    """What came of the networks of these seeds, in their order, until the deadline; those that have begun are finished.

    deadline: of ``time.monotonic``.
    """
    left = iter(seeds)
    done: dict[int, Attempt] = {}
    with ExitStack() as stack:
        workers = [stack.enter_context(_Worker(-(-RENEWED // jobs))) for _ in range(jobs)]
        busy = {worker.begin(seed): worker for worker, seed in zip(workers, left, strict=False)}
        order = deque(busy)
        while order:
            wait([worker.process for worker in busy.values()])
            for worker in [worker for worker in busy.values() if worker.process.ready]:
                done[worker.seed] = worker.end()
                del busy[worker.seed]
                for seed in islice(left, 1) if time.monotonic() < deadline else ():
                    busy[seed] = worker
                    order.append(worker.begin(seed))
            while order and order[0] in done:
                yield done.pop(order.popleft())
