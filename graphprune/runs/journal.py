"""The journal of a run: a file of JSON lines, one for each finished step, that only grows.

A method is ordinary code that asks a :class:`~graphprune.runs.bench.Bench` for steps: train, evaluate, cut. A step that the
journal holds is not done again; its result is read. So a run that was killed is started again from the beginning of the method,
passes over what was done, and goes on where it was. This works because all that decides what comes next is in the results.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from graphprune.errors import RunError, first_line
from graphprune.files import explained

_VERSION: Final = 1


class Journal:
    """The steps of a run.

    path: of the file, made with the first step; None keeps the steps in memory. about: what the run is (method, options, model,
        seed); a file of another one is refused. write: False for the processes of a distributed run that only read along.

    ``recalled``: whether the last step that was asked for was on record.

    Raises RunError for a file that is damaged, or of another run.
    """

    def __init__(self, path: Path | None, about: Mapping[str, str], *, write: bool = True) -> None:
        self._path, self._write = path, write
        lines = _read(path, mend=write) if path is not None and path.exists() else []
        self._begun = [] if lines else [{"version": _VERSION, **about}]
        self._done = lines[1:]
        self._next = 0
        self.recalled = False
        if lines:
            _check_same(path, lines[0], about)

    @property
    def replaying(self) -> bool:
        """Whether the next step is on record."""
        return self._next < len(self._done)

    @property
    def number(self) -> int:
        """Number of the next step, from 0."""
        return self._next

    def recall(self, step: str, key: str) -> Mapping[str, Any] | None:
        """The result of the next step if it is on record. Raises RunError where the record is of another step."""
        self.recalled = self.replaying
        if not self.replaying:
            return None
        known = self._done[self._next]
        if (known["step"], known["key"]) != (step, key):
            raise RunError(
                f"Step {self._next} of the run in {self._path and self._path.parent} was {known['step']} ({known['key']}), "
                f"and is now {step} ({key}). The code or the data changed since; start anew in another folder."
            )
        self._next += 1
        result: Mapping[str, Any] = known["result"]
        return result

    def record(self, step: str, key: str, result: Mapping[str, Any]) -> None:
        """Write a finished step; it is on the disk afterwards."""
        line = {"step": step, "key": key, "result": dict(result)}
        self._append([*self._begun, line])
        self._begun = []
        self._done.append(line)
        self._next += 1

    def _append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        if self._path is None or not self._write:
            return
        size = self._path.stat().st_size if self._path.exists() else 0
        text = "".join(json.dumps(line) + "\n" for line in lines)
        with explained(self._path, len(text)):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with self._path.open("a", encoding="utf-8") as stream:
                    stream.write(text)
                    stream.flush()
                    os.fsync(stream.fileno())
            except OSError:
                if self._path.exists():
                    os.truncate(self._path, size)  # a full disk took a part of the line
                raise


def _read(path: Path, *, mend: bool) -> list[dict[str, Any]]:
    """The lines of a journal, without one that was torn when the process was killed. mend: take that out of the file."""
    if not path.is_file():
        raise RunError(f"{path} is no file. Start anew in another folder.")
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data) and mend:
        os.truncate(path, whole)
    try:
        lines: list[dict[str, Any]] = [json.loads(line) for line in data[:whole].decode().splitlines()]
        parts = [{"version"}, *({"step", "key", "result"} for _ in lines[1:])]
        if any(not part <= line.keys() for part, line in zip(parts, lines, strict=False)):  # there may be no line at all
            raise ValueError("lines are missing their parts")
    except (ValueError, AttributeError, RecursionError) as error:
        raise RunError(
            f"{path} is no journal of a run, or is damaged: {first_line(error)}. Start anew in another folder."
        ) from error
    return lines


def _check_same(path: Path | None, header: Mapping[str, Any], about: Mapping[str, str]) -> None:
    known = {key: value for key, value in header.items() if key != "version"}
    if header["version"] != _VERSION:
        raise RunError(f"{path} was written by another version of graphprune. Start anew in another folder.")
    for name in known | dict(about):
        if known.get(name) != about.get(name):
            raise RunError(
                f"The run in {path and path.parent} has {name} {known.get(name)!r}, and this one has {about.get(name)!r}. "
                "Give the same options to go on with it, or another folder."
            )
