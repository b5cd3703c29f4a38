"""The record of a long run, or of many: which networks were checked, when and with what, and which of them failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict

import graphprune
from graphprune.files import Saved
from tests.fuzz.check import Outcome
from tests.fuzz.generate import generate
from tests.fuzz.spec import Spec

FOUND = Path(__file__).parent / "found"


class Part(BaseModel):
    """The networks of the seeds from ``first`` to below ``next``, all checked with the same versions. day: when that began.

    counts: of networks, groups, parameters, and of networks by the check that they passed.
    """

    model_config = ConfigDict(extra="forbid")

    first: int
    next: int
    day: str
    graphprune: str
    torch: str
    counts: dict[str, int] = {}

    def add(self, outcome: Outcome) -> None:
        """Add the network of the next seed."""
        assert outcome.seed == self.next, "each network counts once"
        self.next += 1
        self.counts = dict(Counter(self.counts) + outcome.counts)

    def goes_on(self, other: Part) -> bool:
        """Whether another part is the continuation of this one."""
        return self.next == other.first and all(getattr(self, it) == getattr(other, it) for it in ("day", "graphprune", "torch"))


class Failure(BaseModel):
    """What failed. mended: the day on which the saved network and the one of the seed passed all checks, or ""."""

    model_config = ConfigDict(extra="forbid")

    failure: str
    mended: str = ""


class Record(Saved, BaseModel, what="record of random networks", remedy="Give another file."):
    """Parts, none of which has a seed of another one, and failures by seed."""

    model_config = ConfigDict(frozen=False)

    parts: list[Part] = []
    failures: dict[int, Failure] = {}

    @classmethod
    def load(cls, path: str | Path | None) -> Self:
        """The record of a file, or an empty one where there is none. Raises UsageError for a file that is no record."""
        if path is None or not Path(path).exists():
            return cls()
        return super().load(path)

    def save(self, path: str | Path | None) -> None:
        """Write the record, atomically, without parts in which nothing was checked."""
        if path is not None:
            whole = self.model_copy(update={"parts": [part for part in self.parts if part.next > part.first]})
            super(Record, whole).save(path)

    def begin(self, seed: int) -> tuple[Part, range]:
        """The part to add to, and the seeds for it: the first ones from ``seed`` on that no part has."""
        for part in sorted(self.parts, key=lambda part: part.first):
            if part.first <= seed < part.next:
                seed = part.next
        later = [part.first for part in self.parts if part.first >= seed]
        version = torch.__version__.partition("+")[0]
        new = Part(first=seed, next=seed, day=_today(), graphprune=graphprune.__version__, torch=version)
        found = next((part for part in self.parts if part.goes_on(new)), None)
        if found is None:
            self.parts.append(found := new)
        return found, range(seed, min(later, default=2**63))

    @property
    def counts(self) -> Counter[str]:
        """Those of all parts together."""
        return sum((Counter(part.counts) for part in self.parts), Counter[str]())

    @property
    def unmended(self) -> dict[int, Failure]:
        """Failures that still stand."""
        return {seed: failure for seed, failure in self.failures.items() if not failure.mended}

    def settle(self, passes: Callable[[Spec], bool], folder: Path = FOUND) -> None:
        """Try again what failed: it is mended once its network, and what was saved of it in ``folder``, pass."""
        saved = list(read_specs(folder)) if self.unmended else []
        for seed, failure in self.unmended.items():
            specs = [spec for spec in saved if spec.seed == seed]
            if specs and all(map(passes, [*specs, generate(seed)])):
                failure.mended = _today()


def read_specs(folder: Path) -> Iterable[Spec]:
    """The networks that were saved in a folder."""
    return (Spec.model_validate_json(path.read_text()) for path in sorted(folder.glob("*.json")))


def save_spec(spec: Spec, folder: Path = FOUND) -> Path:
    """Write a failing spec where pytest finds it."""
    path = folder / f"seed_{spec.seed}.json"
    path.write_text(spec.model_dump_json(indent=1, exclude_defaults=True) + "\n")
    return path


def _today() -> str:
    return date.today().isoformat()
