"""Commands in processes of their own, with a fault in them: forks of one that has imported all, so that a start is quick."""

from __future__ import annotations

import multiprocessing
import os
import pty
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Final

Fault = Callable[[], None]

REACHED: Final = ".reached"  # the file that a process makes where it was asked to stop
_PATIENCE: Final = 100.0  # seconds; a machine may be busy
_CONTEXT: Final = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "tests.failure.processes",
        "tests.failure.commands",
        "tests.planted_latency",
        "graphprune.cli.running",
        "graphprune.cli.profiling",
        "graphprune.surveys.pareto",
        "accelerate",
    ]
)


@dataclass(frozen=True)
class Ran:
    """How a process ended: its exit code, negative for a signal, and what it printed to both streams."""

    code: int
    out: str


@dataclass
class Running:
    """A command that runs in a folder."""

    process: Any
    folder: Path
    read: Callable[[], str]

    def wait_for(self, path: str) -> None:
        """Until a file is there."""
        end = time.monotonic() + _PATIENCE
        while not (self.folder / path).exists():
            assert self.process.is_alive() and time.monotonic() < end, f"{path} does not appear: {self.read()}"
            time.sleep(0.005)

    def signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.process.pid, number)

    def end(self) -> Ran:
        """How it ends."""
        self.process.join(_PATIENCE)
        assert self.process.exitcode is not None, f"it does not end: {self.read()}"
        return Ran(self.process.exitcode, self.read())


def start(arguments: Sequence[str], folder: Path, *faults: Fault, terminal: bool = False) -> Running:
    """Start a command in a folder. faults: what is done in its process before. terminal: its streams are a terminal's."""
    screen = _Terminal() if terminal else _File(folder / ".printed")
    process = _CONTEXT.Process(target=_main, args=(list(arguments), folder, screen.name, faults))
    process.start()
    return Running(process, folder, screen.read)


def run(arguments: Sequence[str], folder: Path, *faults: Fault) -> Ran:
    """Run a command in a folder to its end."""
    return start(arguments, folder, *faults).end()


def left(folder: Path) -> set[str]:
    """The files in a folder, besides those of these tests."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name not in (REACHED, ".printed")}


@dataclass(frozen=True)
class Stopping:
    """Sleeps where a function is called for the time after so many: until a signal comes, or for ever. killed: or dies there."""

    place: str
    after: int = 0
    killed: bool = False

    def __call__(self) -> None:
        """Put itself in front of the function, in every module that has it."""
        module, _, path = self.place.partition(":")
        owner: Any = import_module(module)
        *outer, name = path.split(".")
        for part in outer:
            owner = getattr(owner, part)
        original, calls = getattr(owner, name), [0]

        def stopping(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == self.after + 1:
                Path(REACHED).touch()
                if self.killed:
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(_PATIENCE)
            return original(*args, **kwargs)

        setattr(owner, name, stopping)
        for other in list(sys.modules.values()):
            if getattr(other, name, None) is original:
                setattr(other, name, stopping)


@dataclass(frozen=True)
class Refusing:
    """No file may become larger than so many bytes, as on a disk that is full."""

    size: int

    def __call__(self) -> None:
        """Set the limit."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


def _main(arguments: list[str], folder: Path, screen: str, faults: Sequence[Fault]) -> None:
    from graphprune.cli import main, profiling
    from tests.planted_latency import PlantedClock

    vars(profiling)["DeviceClock"] = lambda environment: PlantedClock()  # tables that can be compared
    multiprocessing.set_start_method("fork", force=True)  # of its own children: as without this harness
    os.chdir(folder)
    stream = os.open(screen, os.O_WRONLY | os.O_APPEND)
    for number in (1, 2):
        os.dup2(stream, number)
    os.environ["TERM"] = "xterm-256color"
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for fault in faults:
        fault()
    sys.exit(main(arguments))


class _File:
    def __init__(self, path: Path) -> None:
        path.write_bytes(b"")
        self.name = str(path)
        self.read = path.read_text


@dataclass
class _Terminal:
    """A terminal, read to its end."""

    text: bytes = b""
    handles: tuple[int, int] = field(default_factory=pty.openpty)

    def __post_init__(self) -> None:
        self.name = os.ttyname(self.handles[1])
        self._reader = threading.Thread(target=self._follow, daemon=True)
        self._reader.start()

    def _follow(self) -> None:
        with suppress(OSError):  # the other end is closed
            while more := os.read(self.handles[0], 65536):
                self.text += more

    def read(self) -> str:
        """All that was printed, once nobody prints any more."""
        os.close(self.handles[1])
        self._reader.join()
        os.close(self.handles[0])
        return self.text.decode()
