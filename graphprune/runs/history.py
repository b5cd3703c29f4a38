"""What a run has to show: rounds, and those who watch it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import Field

from graphprune.files import write_whole

Status = Literal["dense", "begun", "accepted", "rolled back", "final"]


@dataclass(frozen=True)
class Round:
    """One round of a run, as a row of its table.

    number: from 0. status: what became of it; begun is a model that is cut before its training is over. accuracy: on validation
    data, after the last epoch, higher is better; None where it was not asked for. best: of the epochs of the round. params, macs:
    of the model that was tried. widths: units of every prunable group. latency: milliseconds, where it was measured. epochs:
    trained since the run began. values: what the method went by, such as its threshold. note: in words.
    """

    number: int
    status: Status
    accuracy: float | None
    params: int
    macs: int
    epochs: int
    samples: int = 0
    best: float | None = None
    latency: float | None = None
    widths: dict[str, Annotated[int, Field(gt=0)]] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    note: str = ""


class Watch(Protocol):
    """Who is told how a run goes. Nothing that it does changes the run."""

    def working(self, what: str, number: int) -> None:
        """A step begins. what: in words. number: of the step, from 0."""

    def epoch(self, done: int, total: int) -> None:
        """So many epochs of the training that goes on are done."""

    def round(self, row: Round, *, repeated: bool) -> None:
        """A round is over. repeated: it was on record from an earlier process."""


class Silent:
    """A watch that tells nobody."""

    def working(self, what: str, number: int) -> None:
        """Nothing."""

    def epoch(self, done: int, total: int) -> None:
        """Nothing."""

    def round(self, row: Round, *, repeated: bool) -> None:
        """Nothing."""


def write_rounds(path: Path, rounds: Sequence[Round]) -> None:
    """All rounds as JSON lines, atomically."""
    write_whole(path, "".join(json.dumps(asdict(row)) + "\n" for row in rounds))
