"""The latency table: what was measured, of which model, where. Plain data, saved while it grows, checked before it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from graphprune.channels.groups import Groups, Ints
from graphprune.errors import LatencyError
from graphprune.files import Saved
from graphprune.latency.environment import Environment
from graphprune.latency.timing import Timing

Milliseconds = Annotated[FiniteFloat, Field(ge=0)]
Width = Annotated[int, Field(ge=1)]
_FROZEN = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Length(BaseModel):
    """An axis length: ``constant + sum(coefficient * width)``, with the coefficients by index of the group."""

    model_config = _FROZEN

    constant: int
    by_group: dict[int, int]


class NodeInfo(BaseModel):
    """What is timed as one layer.

    family: kind, settings and shapes, with a star for each size that shrinks. Nodes of one family are the same layer at
    other lengths, in this model or another. lengths: those that the node's time depends on, two at most.
    """

    model_config = _FROZEN

    family: str
    lengths: Annotated[tuple[Length, ...], Field(max_length=2)]


class Sample(BaseModel):
    """One slim model that was timed.

    widths: of every group. whole: of the model. nodes: milliseconds of each node alone, run eagerly (none where only whole
    models are timed). held_out: kept back to tell how good a prediction is.
    """

    model_config = _FROZEN

    widths: tuple[Width, ...]
    whole: Timing
    nodes: dict[str, Milliseconds] = {}
    held_out: bool = False


class Settings(BaseModel):
    """What decides which widths are measured: how (``layers`` or ``model``), how many samples, and the smallest interval that
    is divided (0: a thirty-second of each group). batch: leading size of the inputs, 0 where it is as given."""

    model_config = _FROZEN

    mode: Literal["layers", "model"] = "layers"
    samples: Annotated[int, Field(ge=8)] = 24
    step: Annotated[int, Field(ge=0)] = 0
    batch: Annotated[int, Field(ge=0)] = 0


class LatencyTable(Saved, BaseModel, what="latency table", remedy="Measure again with `graphprune profile`.", raises=LatencyError):
    """Measured latencies of one model in one environment.

    model: fingerprint, as in a plan. inputs: described in one line. groups: names and full widths, in order. nodes: what each
    layer's time depends on.
    """

    schema_version: Literal[1] = 1
    environment: Environment
    settings: Settings
    model: dict[str, str]
    inputs: str
    groups: dict[str, Width]
    nodes: dict[str, NodeInfo] = {}
    samples: tuple[Sample, ...] = ()

    @model_validator(mode="after")
    def _check_sizes(self) -> LatencyTable:
        for sample in self.samples:
            if len(sample.widths) != len(self.groups):
                raise ValueError(f"a sample has {len(sample.widths)} widths for {len(self.groups)} groups")
            if any(width > full for width, full in zip(sample.widths, self.groups.values(), strict=True)):
                raise ValueError("a sample is wider than the model")
        counts: dict[str, int] = {}
        for name, info in self.nodes.items():
            if counts.setdefault(info.family, len(info.lengths)) != len(info.lengths):
                raise ValueError(f"node {name} has another number of lengths than its family")
            if any(not 0 <= group < len(self.groups) for length in info.lengths for group in length.by_group):
                raise ValueError(f"node {name} depends on a group that does not exist")
        return self

    @property
    def full(self) -> Ints:
        """Full width of every group."""
        return np.array(list(self.groups.values()), dtype=np.int64)

    @property
    def widths(self) -> Ints:
        """Widths of all samples, (samples, groups)."""
        return np.array([sample.widths for sample in self.samples], dtype=np.int64).reshape(len(self.samples), len(self.groups))

    @property
    def whole_ms(self) -> npt.NDArray[np.float64]:
        """Median milliseconds of the whole model in each sample."""
        return np.array([sample.whole.median_ms for sample in self.samples], dtype=np.float64)

    @property
    def full_ms(self) -> float:
        """Median milliseconds of the model as it is. Raises LatencyError for a table without such a sample."""
        for sample in self.samples:
            if sample.widths == tuple(self.groups.values()):
                return sample.whole.median_ms
        raise LatencyError("The latency table has no sample of the whole model. Measure anew.")

    def first(self, count: int) -> LatencyTable:
        """The table as it was after so many samples."""
        return self.model_copy(update={"samples": self.samples[:count]})

    def fitted(self) -> LatencyTable:
        """The table without the samples that are held out."""
        return self.model_copy(update={"samples": tuple(sample for sample in self.samples if not sample.held_out)})

    def plus(self, samples: Sequence[Sample]) -> LatencyTable:
        """The table with more samples."""
        return self.model_copy(update={"samples": (*self.samples, *samples)})

    def check_fits(self, model: Mapping[str, str], groups: Groups, environment: Environment | None = None) -> None:
        """Raise LatencyError naming the first difference between what was measured and what is at hand.

        model: its fingerprint. environment: where the times are to hold; None for wherever they were measured.
        """
        found = _first_difference(model, self.model) or _first_difference(
            {group.name: group.size for group in groups.prunable}, self.groups
        )
        remedy = "Measure this model here with `graphprune profile`"
        if not found and environment is not None:
            found = environment.difference(self.environment)
            remedy += ", or meet the target by this table alone (--no-measure, measure=False)"
        if found:
            raise LatencyError(f"The latency table does not fit: {found}. {remedy}.")

    def check_continues(self, other: LatencyTable) -> None:
        """Raise LatencyError unless a run that would write the other (empty) table can go on from this one."""
        found = (
            _first_difference(other.model, self.model)
            or _first_difference(other.groups, self.groups)
            or other.environment.difference(self.environment)
            or _first_difference(other.settings.model_dump(), self.settings.model_dump())
            or _first_difference({"inputs": other.inputs}, {"inputs": self.inputs})
        )
        if found:
            raise LatencyError(f"The table that is there is of something else: {found}. Choose another file, or delete it.")


def _first_difference(mine: Mapping[str, object], theirs: Mapping[str, object]) -> str:
    for name in (*mine, *theirs):
        here, there = mine.get(name), theirs.get(name)
        if here != there:
            return f"{name} is {'missing' if here is None else here} here and {'missing' if there is None else there} in the table"
    return ""
