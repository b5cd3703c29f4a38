"""Random importance: the control that every criterion must beat."""

from __future__ import annotations

import numpy as np

from graphprune.criteria import Floats, ScoringContext, criterion


@criterion("random", streams=True)
def random(context: ScoringContext) -> Floats:
    """Uniform on [0, 1), independent for each unit, reproducible from the seed; shape (units,)."""
    return np.random.default_rng(context.seed).random(context.groups.unit_count)
