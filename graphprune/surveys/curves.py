"""Sensitivity: what a measure of the model comes to when each group is cut by itself, at several ratios.

Li et al., Pruning Filters for Efficient ConvNets (ICLR 2017), section 3.2, with groups in place of layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from torch import nn

from graphprune.api import run_pipeline
from graphprune.calibration import Calibration
from graphprune.channels.groups import Group, Groups, Kept
from graphprune.errors import UsageError
from graphprune.files import Saved
from graphprune.ir.program import Program
from graphprune.passes.analysis.channels import ChannelGroups, ChannelsPass
from graphprune.passes.calibration.supply import calibrated
from graphprune.passes.rewrite.rewrite import RewritePass
from graphprune.passes.scoring.score import ScorePass, latest, unit_order
from graphprune.pipeline.analysis_manager import AnalysisManager
from graphprune.pipeline.pass_manager import PassManager
from graphprune.plans.plan import fingerprint, make_plan
from graphprune.text import columns
from graphprune.tracing import capture

#: Shares of a group's units that are removed.
RATIOS: Final = (0.1, 0.25, 0.5, 0.75, 0.9)


class CutPoint(BaseModel):
    """One cut: of which group, how much was asked for (a share of its units), how many units stayed, and the measure then."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    group: str
    ratio: float
    kept: int
    value: float


class Sensitivity(Saved, BaseModel, what="sensitivity", remedy="Remove it, or write to another file."):
    """The measure of the whole model, and of the model with each group cut by itself.

    model, settings: what it was measured on and with; a run goes on from a file of the same only.
    """

    schema_version: Literal[1] = 1
    model: dict[str, str]
    settings: dict[str, str]
    baseline: float
    points: list[CutPoint] = []

    def __repr__(self) -> str:
        """The deepest cut of each group, those that change the measure most first."""
        deepest = {point.group: point for point in sorted(self.points, key=lambda point: point.ratio)}
        rows = [
            (point.group, f"{point.ratio:.0%}", str(point.kept), f"{point.value:.4g}")
            for point in sorted(deepest.values(), key=lambda point: -abs(point.value - self.baseline))
        ]
        return f"{self.baseline:.4g} uncut; each group by itself:\n{columns([('', 'cut', 'units left', 'measure'), *rows])}"

    __str__ = __repr__

    def curve(self, group: str) -> dict[float, float]:
        """The measure by ratio, for one group."""
        return {point.ratio: point.value for point in self.points if point.group == group}

    @property
    def groups(self) -> list[str]:
        """The groups that were cut, in the order of the model."""
        return list(dict.fromkeys(point.group for point in self.points))

    def plot(self, axes: Any = None) -> Any:
        """A matplotlib figure with a curve for every group. axes: to draw on; those of a new figure by default."""
        from graphprune.plots import plot_curves

        return plot_curves({group: self.curve(group) for group in self.groups}, self.baseline, axes)


def sensitivity(
    model: nn.Module,
    example_inputs: Any,
    evaluate: Callable[[nn.Module], float],
    *,
    ratios: Sequence[float] = RATIOS,
    groups: Iterable[str] | None = None,
    criterion: str = "l2",
    exclude: Sequence[str] = (),
    policy: Mapping[str, str] | None = None,
    scopes: Sequence[str] = (),
    data: Calibration | Iterable[Any] | str | None = None,
    seed: int = 0,
    source: str = "",
    measure: str = "",
    known: Sensitivity | None = None,
    save: Callable[[Sensitivity], None] = lambda found: None,
) -> Sensitivity:
    """Cut each group by itself, at each ratio, and measure the smaller model. Nothing is trained.

    evaluate: gives the accuracy, loss or other measure of a model; it is called on the model itself first, then on slim models.
    ratios: shares of a group's units to remove, the least important by ``criterion`` first; at least one unit stays.
    measure: what ``evaluate`` measures, on which data and weights, in words: a run goes on from a file of the same only.
    groups: names, as of :meth:`Groups.__getitem__`; all prunable ones by default. known: what an interrupted run has found, to go
    on from. save: called after each point. The other options are those of :func:`graphprune.prune`.

    Raises UsageError for ratios out of range, for a name that is unknown, and where ``known`` is of something else.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    >>> found = sensitivity(model, torch.zeros(1, 8), lambda m: sum(p.numel() for p in m.parameters()), ratios=(0.5,))
    >>> found.baseline, found.points[0].kept, found.points[0].value
    (420.0, 16, 212.0)
    """
    wrong = next((ratio for ratio in ratios if not 0 < ratio < 1), None)
    if wrong is not None or not ratios:
        raise UsageError(f"Ratio {wrong} is not between 0 and 1: it is the share of a group's units that is removed.")
    program = capture(model, example_inputs, scopes=scopes, source=source)
    program = calibrated(program, data, seed=seed, whole=(model, example_inputs))
    program, manager = program.under(exclude, policy), AnalysisManager()
    scoring = [ChannelsPass(exclude=program.exclude, policy=program.policy), ScorePass(criterion=criterion, seed=seed)]
    scored = PassManager(scoring).run(program, manager)
    found = manager.get(scored, ChannelGroups)
    policies = str(sorted(program.policy.items()))
    settings = {
        "criterion": criterion,
        "exclude": ", ".join(program.exclude),
        "policy": policies,
        "seed": str(seed),
        "measure": measure,
    }
    start = known or Sensitivity(model=fingerprint(scored.module), settings=settings, baseline=float(evaluate(model)))
    _check_goes_on(start, fingerprint(scored.module), settings)
    order = unit_order(latest(scored.scores).values, found)
    return _measured(start, scored, found, _chosen(found, groups), order, ratios, lambda slim: float(evaluate(slim)), model, save)


def _measured(
    start: Sensitivity,
    program: Program,
    groups: Groups,
    chosen: Sequence[Group],
    order: Sequence[np.ndarray[Any, Any]],
    ratios: Sequence[float],
    evaluate: Callable[[nn.Module], float],
    model: nn.Module,
    save: Callable[[Sensitivity], None],
) -> Sensitivity:
    result, done = start, {(point.group, point.ratio) for point in start.points}
    values = {(point.group, point.kept): point.value for point in start.points}
    for group in chosen:
        for ratio in ratios:
            if (group.name, ratio) in done:
                continue
            gone = min(round(ratio * group.size), group.size - 1)
            key = group.name, group.size - gone
            if key not in values:  # narrow groups come to the same width at several ratios
                values[key] = evaluate(_without(program, groups, order[group.index][:gone], model)) if gone else start.baseline
            point = CutPoint(group=group.name, ratio=ratio, kept=key[1], value=values[key])
            result = result.model_copy(update={"points": [*result.points, point]})
            save(result)
    return result


def _without(program: Program, groups: Groups, units: np.ndarray[Any, Any], model: nn.Module) -> nn.Module:
    """The slim model without some units."""
    stays = np.ones(groups.unit_count, dtype=bool)
    stays[units] = False
    plan = make_plan(program.module, groups, Kept(groups, stays), policy=dict(program.policy))
    return run_pipeline(program.with_(plan=plan), [RewritePass()], model=model).model


def _chosen(groups: Groups, names: Iterable[str] | None) -> list[Group]:
    if names is None:
        return list(groups.prunable)
    wanted = {group.index for name in names for group in groups[name] if group.reason is None}
    return [group for group in groups.prunable if group.index in wanted]


def _check_goes_on(known: Sensitivity, model: Mapping[str, str], settings: Mapping[str, str]) -> None:
    if known.model != model:
        raise UsageError("The sensitivity that is there is of another model. Remove it, or write to another file.")
    for key, value in settings.items():
        if known.settings.get(key) != value:
            raise UsageError(
                f"The sensitivity that is there was measured with {key} {known.settings.get(key)!r}, not {value!r}. "
                "Remove it, or write to another file."
            )
