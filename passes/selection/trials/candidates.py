"""Candidates: the lowest units of each layer by each criterion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphprune.channels.filters import Filter
from graphprune.channels.groups import Groups, Ints
from graphprune.criteria import ScoringContext
from graphprune.ir.program import Program
from graphprune.passes.calibration.collect import collect
from graphprune.passes.scoring.expression import Term, parse_criterion
from graphprune.passes.scoring.score import combined
from graphprune.passes.selection.trials.layers import Layer


@dataclass(frozen=True, eq=False)
class Candidate:
    """Units that a criterion would remove from a layer."""

    layer: Layer
    criterion: str
    units: frozenset[int]


def find_candidates(
    program: Program,
    groups: Groups,
    filters: Sequence[Filter],
    counts: Mapping[Layer, int],
    criteria: Sequence[str],
    seed: int = 0,
) -> list[Candidate]:
    """For each layer, in their order, the candidates of all criteria, in theirs. counts: units to remove, at least one.

    A layer's own weights alone rank its units; statistics of activations are those of all layers that read them. A criterion that
    has nothing to say about enough units of a layer has no candidate there.
    """
    pool = {text: parse_criterion(text) for text in criteria}
    needs = [statistic for terms in pool.values() for term in terms for statistic in term.needs]
    measured = collect(program, groups, filters, program.calibration, needs)
    context = ScoringContext(program, groups, seed=seed, filters=filters, measured=measured)
    return [one for layer, count in counts.items() for one in _of_layer(context, layer, count, pool)]


def _of_layer(context: ScoringContext, layer: Layer, count: int, pool: Mapping[str, tuple[Term, ...]]) -> Iterator[Candidate]:
    own = context if layer.maker is None else context.of(layer.maker)
    units = context.groups.prunable[layer.group].units
    for text, terms in pool.items():
        values = combined(terms, own, "default", "max" if len(terms) > 1 else "none")[units]
        lowest: Ints = units[np.argsort(values, kind="stable")[:count]]  # those without a value come last
        if np.count_nonzero(~np.isnan(values)) >= count:
            yield Candidate(layer, text, frozenset(lowest.tolist()))
