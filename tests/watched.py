"""Functions called in a process of its own: where one hangs or crashes, that process is lost, and a sentence says how."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Final, Self

_START: Final = 300.0  # seconds more for the first answer: what a function needs is imported first, and a machine may be busy


LOST: Final = ("hung: ", "crashed: ")


class Lost(Exception):
    """A process gave no answer and is gone. Its text begins with one of LOST."""


class Watched:
    """A process that answers one question at a time. prepare: what it does first. Both are functions that can be imported."""

    def __init__(self, prepare: Callable[[], object]) -> None:
        context = get_context("forkserver")
        context.set_forkserver_preload([prepare.__module__])  # which is imported once, for the first of all processes
        self._pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=_serve, args=(theirs, prepare), daemon=True)
        self._process.start()
        theirs.close()
        self._seconds, self._until, self._start = 0.0, 0.0, _START

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.is_alive()

    @property
    def ready(self) -> bool:
        """Whether ``answer`` returns or raises at once."""
        return self._left <= 0 or self._pipe.poll()

    @property
    def _left(self) -> float:
        return max(0.0, self._until - time.monotonic())

    def ask(self, seconds: float, function: Callable[..., object], *arguments: object) -> None:
        """Call a function there, for so long at most."""
        self._seconds, self._until, self._start = seconds, time.monotonic() + seconds + self._start, 0.0
        with suppress(BrokenPipeError, ConnectionResetError):  # of one that has died: the answer says so
            self._pipe.send((function, arguments))

    def answer(self) -> Any:
        """What the function returned, once it has. Raises Lost where the process hangs, which ends it, or has died."""
        try:
            if self._pipe.poll(self._left):
                return self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            raise Lost(f"crashed: {_name(self._process.exitcode)}") from None
        self.stop(0.0)
        raise Lost(f"hung: no answer in {self._seconds:g} seconds")

    def stop(self, seconds: float = 5.0) -> None:
        """End the process, which may finish what it was asked for so long."""
        self._pipe.close()
        self._process.join(seconds)
        self._process.kill()
        self._process.join()


def wait(processes: Sequence[Watched]) -> None:
    """Until one of these, of which each was asked something, is ready."""
    connection.wait([process._pipe for process in processes], min(process._left for process in processes))


def _name(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def _serve(pipe: Connection, prepare: Callable[[], object]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then stops this process
    prepare()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the other end was closed
        while True:
            function, arguments = pipe.recv()
            pipe.send(function(*arguments))
