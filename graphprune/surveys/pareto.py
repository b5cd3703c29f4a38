"""The Pareto front of one model: how much importance remains at how much of a cost, for several ways to select. No training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from graphprune.calibration import Calibration
from graphprune.channels.groups import Bools, Groups
from graphprune.collector import collector_paused
from graphprune.costs.measures import Measure
from graphprune.errors import TargetError, UsageError, unknown
from graphprune.files import Saved
from graphprune.ir.program import Program
from graphprune.latency.table import LatencyTable
from graphprune.passes.analysis.channels import ChannelGroups, ChannelsPass
from graphprune.passes.analysis.cost import ModelCost
from graphprune.passes.calibration.supply import calibrated
from graphprune.passes.latency.source import timed
from graphprune.passes.scoring.score import ScorePass, latest
from graphprune.passes.selection.decision import Budgeted, budgeted_passes
from graphprune.passes.selection.target import KINDS
from graphprune.pipeline.analysis_manager import AnalysisManager
from graphprune.pipeline.pass_base import Pass
from graphprune.pipeline.pass_manager import PassManager
from graphprune.pipeline.registry import pass_class
from graphprune.plans.plan import fingerprint, kept_units
from graphprune.scores import Scores
from graphprune.text import columns
from graphprune.tracing import capture

_ROUNDING: Final = 1 + 1e-9  # the least share that can be had is met in spite of rounding


class Point(BaseModel):
    """One selection. way: how it was chosen. asked: share of the metric that may remain. shares: what remains of each cost.
    score: the share of all importance that remains. widths: units of each group, by name. reached: False where the pass cannot go
    that far."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    way: str
    asked: float = Field(gt=0, le=1)
    reached: bool = True
    shares: dict[str, float] = {}
    score: float | None = None
    widths: dict[str, int] = {}


class Front(Saved, BaseModel, what="front", remedy="Remove it, or write to another file."):
    """Points of a model. model: its fingerprint. settings: what else they depend on. costs: of the whole model, by kind."""

    schema_version: Literal[1] = 1
    metric: str
    model: dict[str, str]
    settings: dict[str, str]
    costs: dict[str, float]
    points: list[Point] = []

    @model_validator(mode="after")
    def _check_points(self) -> Front:
        if any(point.reached and point.score is not None and self.metric not in point.shares for point in self.points):
            raise ValueError(f"a point has no share of {self.metric}")
        return self

    def __repr__(self) -> str:
        """The points that no other one beats, in a table."""
        rows = [("", f"{self.metric} left", "parameters left", "score kept")]
        rows += [
            (p.way, f"{p.shares[self.metric]:.1%}", f"{p.shares['params']:.1%}" if "params" in p.shares else "-", f"{p.score:.1%}")
            for p in self.best
        ]
        return f"{len(self.points)} points, of which no other one beats:\n{columns(rows)}"

    __str__ = __repr__

    @property
    def best(self) -> list[Point]:
        """The points that no other one beats in both the metric and the score, the costliest first."""
        found: list[Point] = []
        known = [point for point in self.points if point.reached and point.score is not None]
        for point in sorted(known, key=lambda p: (p.shares[self.metric], -(p.score or 0.0))):
            if not found or (point.score or 0.0) > (found[-1].score or 0.0):
                found.append(point)
        return found[::-1]


#: Ways to select that need no options said: the pass and its options, by name.
WAYS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "global": ("select", {"ranking": "global"}),
    "local": ("select", {"ranking": "local"}),
    "isomorphic": ("select", {"ranking": "isomorphic"}),
}


@dataclass(frozen=True)
class Sweep:
    """What to try. metric: the cost that is lowered, a kind of target. points: how many shares of it, evenly spaced from all of it
    down to ``least`` (by default what is left with one unit of each group). ways: names in :data:`WAYS`, or of selection passes.
    options: of all of these passes, such as ``round_to``. keep: what stays of some layers at every point, as for
    :func:`graphprune.prune`; shares then begin at what is left with the others whole."""

    metric: str = "macs"
    points: int = 12
    least: float | None = None
    ways: Sequence[str] = ("global",)
    options: Mapping[str, Any] = field(default_factory=dict)
    keep: Mapping[str, int | float | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.metric not in KINDS:
            raise UsageError(unknown("metric", self.metric, KINDS, "Metrics"))
        if self.points < 1 or not self.ways or not (self.least is None or 0 < self.least < 1):
            raise UsageError("A sweep needs at least one point and one way, and a least share over 0 and under 1.")
        known = list(dict.fromkeys((*WAYS, *(name for name in budgeted_passes() if name != "select"))))
        for way in self.ways:
            if way not in known:
                raise UsageError(unknown("way to select", way, known, "Ways"))

    def step(self, way: str, share: float) -> Budgeted:
        """The pass that selects so, down to a share."""
        name, options = WAYS.get(way, (way, {}))
        found = pass_class(name)
        assert issubclass(found, Budgeted), "as all ways are"
        return found(**{**options, "keep": self.keep, **self.options, self.metric: share})


def sweep(
    model: nn.Module,
    example_inputs: Any,
    what: Sweep | None = None,
    *,
    criterion: str = "l2",
    reduction: str = "default",
    normalise: str = "max",
    exclude: Sequence[str] = (),
    policy: Mapping[str, str] | None = None,
    scopes: Sequence[str] = (),
    data: Calibration | Iterable[Any] | str | None = None,
    latency: LatencyTable | str | Path | None = None,
    seed: int = 0,
    source: str = "",
    known: Front | None = None,
    save: Callable[[Front], None] = lambda front: None,
) -> Front:
    """Score a model once and select at many budgets; nothing is rewritten or trained.

    model, example_inputs and the other options: as for :func:`graphprune.prune`. latency: the model's table, for the metric
    ``latency``; its predictions are taken, and nothing is measured. known: the front of a run that was interrupted,
    to go on from. save: called after each point. Raises UsageError where ``known`` is of something else, CaptureError, and what
    scoring raises.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    >>> front = sweep(model, torch.zeros(1, 8), Sweep(metric="params", points=3))
    >>> [round(point.asked, 2) for point in front.points]
    [0.69, 0.38, 0.07]
    """
    task = what or Sweep()
    with collector_paused():
        program = calibrated(
            capture(model, example_inputs, scopes=scopes, source=source), data, seed=seed, whole=(model, example_inputs)
        )
        program, manager = program.under(exclude, policy), AnalysisManager()
        scoring: list[Pass] = [
            ChannelsPass(exclude=program.exclude, policy=program.policy),
            ScorePass(criterion=criterion, reduction=reduction, normalise=normalise, seed=seed),
        ]
        if latency is not None:
            program = timed(program, latency, measure=False, analyses=manager)
        scored = PassManager(scoring).run(program, manager)
        options = {"criterion": criterion, "reduction": reduction, "normalise": normalise, "seed": str(seed)}
        return _run(scored, manager, task, options, known, save)


def _run(
    program: Program,
    manager: AnalysisManager,
    task: Sweep,
    options: dict[str, str],
    known: Front | None,
    save: Callable[[Front], None],
) -> Front:
    groups, cost = manager.get(program, ChannelGroups), manager.get(program, ModelCost)
    if not groups.prunable:
        raise UsageError("The model has no prunable group; `graphprune inspect` says what freezes them.")
    measures = cost.measures(program.latency)
    if task.metric not in measures:
        raise UsageError(
            "A sweep of latency needs the model's table. Measure it with `graphprune profile`, and give it as latency=."
        )
    full = {kind: float(measure(groups.widths)) for kind, measure in measures.items()}
    most, least = _ends(task, program, manager, measures[task.metric])
    shares = np.linspace(most, least, task.points + 1)[1:].tolist()
    limits = {"exclude": ", ".join(program.exclude), "policy": str(sorted(program.policy.items()))}
    settings = options | limits | {"points": f"{task.points} down to {least:.6f}", "options": str(sorted(task.options.items()))}
    settings |= {"keep": str(dict(task.keep))} if task.keep else {}
    front = Front(metric=task.metric, model=fingerprint(program.module), settings=settings, costs=full)
    front = _continued(front, known)
    done = {(point.way, round(point.asked, 9)) for point in front.points}
    for share, way in product(shares, task.ways):
        if (way, round(share, 9)) not in done:
            found = _point(program, manager, task.step(way, min(1.0, share * _ROUNDING)), full)
            front = front.model_copy(update={"points": [*front.points, Point(way=way, asked=share, **found)]})
            save(front)
    return front


def _ends(task: Sweep, program: Program, manager: AnalysisManager, measure: Measure) -> tuple[float, float]:
    """The shares of the metric between which points lie. Raises UsageError for what cannot be kept, or is more than the least."""
    step = task.step(task.ways[0], 1.0)
    question = step.question(program, manager.view(program, step))
    full = question.groups.widths
    few = np.minimum(full, 1)
    few[[*question.given]] = question.least[[*question.given]]
    whole, most, least = (float(measure(widths)) for widths in (full, question.rounded(full), few))
    if task.least is not None and task.least >= most / whole:
        raise UsageError(
            f"With what is kept {most / whole:.1%} of the {task.metric} are left at most: least={task.least:g} is no less."
        )
    return most / whole, task.least or least / whole


def _continued(front: Front, known: Front | None) -> Front:
    """The front that goes on from a known one. Raises UsageError where that is of something else."""
    if known is None:
        return front
    if known.model != front.model:
        raise UsageError("The front that is there is of another model. Remove it, or write to another file.")
    pairs = {"metric": (known.metric, front.metric)}
    pairs |= {key: (known.settings.get(key, ""), front.settings.get(key, "")) for key in {**known.settings, **front.settings}}
    for key, (old, new) in pairs.items():
        if old != new:
            raise UsageError(
                f"The front that is there was made with {key} {old or 'left out'!r}, not {new or 'left out'!r}. "
                "Remove it, or write to another file."
            )
    return known


def _point(program: Program, manager: AnalysisManager, step: Pass, full: Mapping[str, float]) -> dict[str, Any]:
    try:
        plan = step.run(program, manager.view(program, step)).plan
    except TargetError:
        return {"reached": False}
    assert plan is not None
    groups, cost = manager.get(program, ChannelGroups), manager.get(program, ModelCost)
    kept = kept_units(plan, groups)
    widths = kept.widths()
    measures = cost.measures(program.latency)
    return {
        "shares": {kind: float(measure(widths)) / full[kind] if full[kind] else 1.0 for kind, measure in measures.items()},
        "score": kept_score(groups, latest(program.scores), kept.units),
        "widths": {group.name: width for group, width in zip(groups.prunable, widths.tolist(), strict=True)},
    }


def kept_score(groups: Groups, scores: Scores, kept: Bools) -> float:
    """The share of all importance that the kept units have, over prunable units with a score. kept: of shape (units,)."""
    prunable = np.concatenate([group.units for group in groups.prunable])
    known = prunable[np.isfinite(scores.values[prunable])]
    total = float(scores.values[known].sum())
    return float(scores.values[known[kept[known]]].sum()) / total if total else 1.0
