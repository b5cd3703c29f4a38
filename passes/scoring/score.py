"""The scoring pass: a criterion, or a weighted sum of some, over all units, normalised within each group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Final

import numpy as np
import torch

from graphprune.channels.filters import Filter
from graphprune.channels.groups import FROZEN, Groups
from graphprune.criteria import REDUCTIONS, Floats, ScoringContext
from graphprune.errors import UsageError
from graphprune.ir.program import Program
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.passes.analysis.filters import Filters
from graphprune.passes.calibration.collect import collect
from graphprune.passes.scoring.expression import Term, parse_criterion
from graphprune.passes.scoring.shares import SHARES
from graphprune.pipeline.analysis_manager import AnalysisView
from graphprune.pipeline.pass_base import Pass
from graphprune.scores import Scores

_INSTEAD: Final = "Use l2, l1, lamp, sp-lamp or fpgm, or on data attention, variance, taylor or fisher."

NORMALISATIONS: Mapping[str, Callable[[Floats], Floats]] = {
    "none": lambda x: x,
    "mean": lambda x: x / _nonzero(np.abs(x).mean()),
    "max": lambda x: x / _nonzero(np.abs(x).max()),
    "gaussian": lambda x: (x - x.mean()) / _nonzero(x.std()),
}
"""What is done to the scores of a group, of those units that have one."""


def _nonzero(scale: Any) -> Any:
    return scale if scale > 0 else 1.0


def normalised(values: Floats, groups: Groups, how: str) -> Floats:
    """Scores of each group divided by its mean or maximum, or standardised (``gaussian``), so that groups compare."""
    result = values.copy()
    for group in groups.prunable:
        scored = group.units[np.isfinite(values[group.units])]
        if scored.size:
            result[scored] = NORMALISATIONS[how](values[scored])
    return result


@dataclass(frozen=True)
class ScorePass(Pass):
    """Score every unit by a criterion.

    criterion: its name, with options in brackets, or a weighted sum: ``l2``, ``attention(p=2)``, ``0.5*l2+0.5*taylor``.
    reduction: how the slices of a unit combine, ``sum|mean|max|l2``, or ``default`` for what suits the criterion. normalise:
    within each group, ``none|mean|max|gaussian``. share: divide a group's scores by its share of the model's ``params`` or
    ``macs``, or ``none``. seed: for criteria that draw.
    """

    name: ClassVar[str] = "score"
    requires: ClassVar[tuple[Any, ...]] = (ChannelGroups, Filters)
    preserves: ClassVar[Any] = "all"
    provides: ClassVar[tuple[str, ...]] = ("scores",)
    streams: ClassVar[bool] = True

    criterion: str = "l2"
    reduction: str = "default"
    normalise: str = "max"
    share: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        self.check_choices(reduction=("default", *REDUCTIONS), normalise=NORMALISATIONS, share=("none", *SHARES))
        if self.normalise == "gaussian" and self.share != "none":
            raise UsageError("score{normalise=gaussian} makes scores below zero, which share cannot divide. Take another.")

    def run(self, program: Program, analyses: AnalysisView) -> Program:
        """Attach the scores under the criterion's text. Raises UsageError for weights that are not finite, and for a criterion
        that needs calibration data where the program has none."""
        terms = parse_criterion(self.criterion)
        if program.weights is None:
            check_present(program.tensors)
        else:
            check_streams(terms)
        groups = analyses.get(ChannelGroups)
        needs = [statistic for term in terms for statistic in term.needs]
        looks = bool(needs) or any(term.criterion.filters for term in terms)
        filters: Sequence[Filter] = analyses.get(Filters) if looks else ()
        measured = collect(program, groups, filters, program.calibration, needs)
        context = ScoringContext(program, groups, seed=self.seed, filters=filters, measured=measured)
        values = combined(terms, context, self.reduction, self.normalise)
        if groups.prunable and np.isnan(values[groups.group_of != FROZEN]).all():
            check_finite(program.values)
            raise UsageError(
                f"The criterion {self.criterion} has nothing to say about any channel of this model; choose another one."
            )
        if self.share != "none":
            values = values / SHARES[self.share](groups, analyses.get(Filters))[groups.group_of]
        provenance = {key: str(value) for key, value in asdict(self).items()}
        if needs and program.calibration is not None:
            provenance["calibration"] = program.calibration.name
        return program.with_(scores={**program.scores, self.criterion: Scores(self.criterion, values, provenance)})


def combined(terms: Sequence[Term], context: ScoringContext, reduction: str, normalise: str) -> Floats:
    """The weighted sum of the normalised terms; where some have nothing to say, the others speak for them. Shape (units,).

    reduction, normalise: as of :class:`ScorePass`. Raises UsageError where a value is not finite because a weight is not.
    """
    groups = context.groups
    total, weight = np.zeros(groups.unit_count), np.zeros(groups.unit_count)
    for term in terms:
        chosen = term.criterion.reduction if reduction == "default" else reduction
        found = term.score(replace(context, reduction=chosen))
        if context.maker is None and not np.isfinite(found[groups.group_of != FROZEN]).all():
            check_finite(context.program.values)
        values = normalised(found, groups, normalise)
        known = ~np.isnan(values)
        total[known] += term.weight * values[known]
        weight[known] += term.weight
    return np.divide(total * sum(term.weight for term in terms), weight, out=np.full_like(total, np.nan), where=weight > 0)


def check_streams(terms: Sequence[Term]) -> None:
    """Raise UsageError naming the first criterion that needs more weights at once than are loaded together."""
    for term in terms:
        name = term.criterion.name
        if not term.streams:
            raise UsageError(f"{name} compares weights or activations of several layers, which are read one by one. {_INSTEAD}")


def check_present(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise UsageError naming the first parameter that has no values (meta device)."""
    name = next((name for name, tensor in tensors.items() if tensor.is_meta), None)
    if name is not None:
        raise UsageError(f"Weight {name} is on the meta device and has no values to rank. Load the weights before pruning.")


def check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise UsageError naming the first parameter that holds NaN or infinity."""
    for name, parameter in tensors.items():
        if not isinstance(parameter, torch.nn.Parameter):
            continue
        if not bool(torch.isfinite(parameter).all()):
            raise UsageError(
                f"Weight {name} holds NaN or infinite values, which cannot be ranked. Load a checkpoint that trained well."
            )


def latest(scores: Mapping[str, Scores]) -> Scores:
    """The scores of the last scoring pass."""
    return list(scores.values())[-1]


def unit_order(values: Floats, groups: Groups) -> list[np.ndarray[Any, Any]]:
    """Units of each prunable group from least to most important; ties by unit id, so that every run agrees."""
    return [group.units[np.argsort(values[group.units], kind="stable")] for group in groups.prunable]
