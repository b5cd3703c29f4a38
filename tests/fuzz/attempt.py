"""Networks from their seeds to what came of them; a module of its own, which the processes of several jobs can import."""

from __future__ import annotations

import gc
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any

import torch

from graphprune.collector import collector_paused
from tests.fuzz.check import Outcome, check
from tests.fuzz.generate import generate
from tests.fuzz.shrink import shrink
from tests.fuzz.spec import Spec

COLLECTED = 32  # networks whose garbage is collected at once
AHEAD = 2  # networks that wait for a process, for each
RENEWED = 2000  # networks after which processes are new ones: the code of each graph that ran stays in memory


def prepare() -> None:
    """Make this process one of many networks: one thread, what was imported is no garbage, and no worker outlives the command."""
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    parent = parent_process()
    if parent is not None:
        Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    """End this process once its parent has ended: one that was killed cannot tell its workers."""
    parent.join()
    os._exit(1)


def attempt(seed: int) -> tuple[Outcome, Spec]:
    """Check the network of a seed; a failing one comes back shrunk."""
    with collector_paused():
        spec = generate(seed)
        outcome = check(spec)
    if seed % COLLECTED == 0:
        gc.collect()
    return outcome, shrink(spec, outcome) if outcome.failure else spec


def attempts(seeds: Iterable[int], jobs: int, deadline: float) -> Iterator[tuple[Outcome, Spec]]:
    """What came of the networks of these seeds, in their order, until the deadline; those that have begun are finished.

    deadline: of ``time.monotonic``.
    """
    left = iter(seeds)
    while first := list(islice(left, AHEAD * jobs)):
        with ProcessPoolExecutor(jobs, get_context("spawn"), prepare) as pool:
            running = deque(pool.submit(attempt, seed) for seed in first)
            more = islice(left, RENEWED)
            while running:
                if time.monotonic() < deadline:
                    running.extend(pool.submit(attempt, seed) for seed in islice(more, 1))
                yield running.popleft().result()
        if time.monotonic() >= deadline:
            return
