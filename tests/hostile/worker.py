"""Tries in a process of its own, whose memory is limited, which is killed when a file takes too long, and replaced when it dies."""

from __future__ import annotations

import resource
import warnings
from collections.abc import Iterable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

from tests.hostile.judge import Outcome, attempt, watch

SECONDS: Final = 60.0
"""A file that is read takes well under a second; a machine may be busy."""

_BEYOND: Final = 4 * 2**30  # bytes of address space beyond what the libraries take

Try = tuple[str, int]


def tried(tries: Iterable[Try], seeds: Path, keep: Path | None = None) -> Iterator[Outcome]:
    """Outcomes of files of a kind and a number, in turn."""
    worker: _Worker | None = None
    try:
        for name, number in tries:
            if worker is None:
                worker = _Worker(seeds, keep)
            outcome = worker.ask((name, number))
            if outcome.verdict == "defect" and ("memory" in outcome.defect or not worker.alive):
                worker.stop()
                worker = None
            yield outcome
    finally:
        if worker is not None:
            worker.stop()


class _Worker:
    def __init__(self, seeds: Path, keep: Path | None) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=_work, args=(theirs, seeds, keep), daemon=True)
        self._process.start()
        theirs.close()
        self._started = False

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def ask(self, what: Try) -> Outcome:
        """The outcome of one try; of a process that dies or does not answer, that."""
        try:
            self._pipe.send(what)
            if self._pipe.poll(SECONDS if self._started else 5 * SECONDS):
                outcome: Outcome = self._pipe.recv()
                self._started = True
                return outcome
            self.stop()
            return Outcome(*what, "defect", f"no answer in {SECONDS:g} seconds")
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join()
            return Outcome(*what, "defect", f"the process died ({self._process.exitcode})")

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


def _work(pipe: Connection, seeds: Path, keep: Path | None) -> None:
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _BEYOND, used + _BEYOND))
    watch()
    while True:
        try:
            what: Try = pipe.recv()
        except EOFError:
            return
        pipe.send(attempt(*what, seeds, keep))
