"""Tries in a process of its own, whose memory is limited, which is killed when a file takes too long, and replaced when it dies."""

from __future__ import annotations

import resource
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from tests.hostile.judge import Outcome, attempt, watch
from tests.watched import Lost, Watched

SECONDS: Final = 60.0
"""A file that is read takes well under a second; a machine may be busy."""

_BEYOND: Final = 4 * 2**30  # bytes of address space beyond what the libraries take

Try = tuple[str, int]


def tried(tries: Iterable[Try], seeds: Path, keep: Path | None = None) -> Iterator[Outcome]:
    """Outcomes of files of a kind and a number, in turn."""
    worker: Watched | None = None
    try:
        for name, number in tries:
            worker = worker or Watched(_prepare)
            worker.ask(SECONDS, attempt, name, number, seeds, keep)
            try:
                outcome: Outcome = worker.answer()
            except Lost as lost:
                outcome = Outcome(name, number, "defect", f"the process {lost}")
            if "memory" in outcome.defect or not worker.alive:
                worker.stop()
                worker = None
            yield outcome
    finally:
        if worker is not None:
            worker.stop()


def _prepare() -> None:
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _BEYOND, used + _BEYOND))
    watch()
