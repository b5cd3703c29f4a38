"""The scoring pass: a criterion over all units, normalised within each group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from graphprune.analysis_manager import AnalysisView
from graphprune.criteria import REDUCTIONS, Floats, ScoringContext, find_criterion
from graphprune.errors import UsageError
from graphprune.groups import FROZEN, Groups
from graphprune.pass_base import Pass
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.passes.scoring import l1, l2, random  # noqa: F401  (register the criteria)
from graphprune.program import Program
from graphprune.scores import Scores

NORMALISATIONS: Mapping[str, Callable[[Floats], Floats]] = {
    "none": lambda x: x,
    "mean": lambda x: x / _nonzero(x.mean()),
    "max": lambda x: x / _nonzero(x.max()),
    "gaussian": lambda x: (x - x.mean()) / _nonzero(x.std()),
}


def _nonzero(scale: Any) -> Any:
    return scale if scale > 0 else 1.0


def normalised(values: Floats, groups: Groups, how: str) -> Floats:
    """Scores of each group divided by its mean or maximum, or standardised (``gaussian``), so that groups compare."""
    result = values.copy()
    for group in groups.prunable:
        result[group.units] = NORMALISATIONS[how](values[group.units])
    return result


@dataclass(frozen=True)
class ScorePass(Pass):
    """Score every unit by a criterion.

    criterion: its name. reduction: how the slices of a unit combine, ``sum|mean|max|l2``. normalise: within each group,
    ``none|mean|max|gaussian``. seed: for criteria that draw.
    """

    name: ClassVar[str] = "score"
    requires: ClassVar[tuple[Any, ...]] = (ChannelGroups,)
    preserves: ClassVar[Any] = "all"
    provides: ClassVar[tuple[str, ...]] = ("scores",)

    criterion: str = "l2"
    reduction: str = "l2"
    normalise: str = "max"
    seed: int = 0

    def __post_init__(self) -> None:
        for option, value, table in (("reduction", self.reduction, REDUCTIONS), ("normalise", self.normalise, NORMALISATIONS)):
            if value not in table:
                raise UsageError(f"score{{{option}={value}}} is not known; choose from {', '.join(table)}.")

    def run(self, program: Program, analyses: AnalysisView) -> Program:
        """Attach the scores under the criterion's name. Raises UsageError for weights that are not finite."""
        score = find_criterion(self.criterion)
        check_present(program.tensors)
        groups = analyses.get(ChannelGroups)
        values = score(ScoringContext(program, groups, self.reduction, self.seed))
        if not np.isfinite(values[groups.group_of != FROZEN]).all():
            check_finite(program.tensors)
        provenance = {key: str(value) for key, value in asdict(self).items()}
        result = Scores(self.criterion, normalised(values, groups, self.normalise), provenance)
        return program.with_(scores={**program.scores, self.criterion: result})


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
