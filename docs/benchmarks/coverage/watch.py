"""A child process under limits of time and memory."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")
_PAUSE = 0.1
_WAITING = 10  # times as long as the limit, for a child that does not get the processor


@dataclass(frozen=True)
class Limits:
    """What a child may use: seconds of CPU time, and GiB of resident memory (both watched where /proc tells)."""

    seconds: float
    gib: float


@dataclass(frozen=True)
class Ended:
    """How a child ended. stopped: the limit that ended it, empty where it ended by itself. tail: its last line of errors."""

    code: int
    stopped: str
    seconds: float
    tail: str


def run(command: Sequence[str], limits: Limits, log: Path, stop: threading.Event | None = None) -> Ended:
    """Run a command in a session of its own and kill all of it when a limit is passed. Its output goes to ``log``.

    stop: ends it too, when it is set.
    """
    start = time.monotonic()
    with log.open("wb") as stream:
        child = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            stopped = _watch(child, limits, start, stop or threading.Event())
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    lines = log.read_text(errors="replace").strip().splitlines()
    return Ended(child.returncode, stopped, time.monotonic() - start, lines[-1] if lines else "")


def _watch(child: subprocess.Popen[bytes], limits: Limits, start: float, stop: threading.Event) -> str:
    while child.poll() is None:
        if max(_used(child.pid), (time.monotonic() - start) / _WAITING) > limits.seconds:
            return f"over {limits.seconds:.0f} s"
        if _resident(child.pid) > limits.gib * 2**30:
            return f"over {limits.gib:g} GiB"
        if stop.wait(_PAUSE):
            return "interrupted"
    return ""


def _used(process: int) -> float:
    """Seconds of CPU time of a process and its children; 0 where the system does not tell or it has ended."""
    try:
        times = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:15]
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (OSError, IndexError):
        return 0.0
    return sum(map(int, times)) / _TICK + sum(_used(int(child)) for child in children)


def _resident(process: int) -> int:
    """Bytes of resident memory of a process and its children; 0 where the system does not tell or it has ended."""
    try:
        own = int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (OSError, IndexError):
        return 0
    return own + sum(_resident(int(child)) for child in children)
