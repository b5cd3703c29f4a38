"""Scoring passes: how much each unit matters. Importing this package registers the criteria, one file each."""

from graphprune.passes.scoring import (  # noqa: F401
    activation_similarity,
    apoz,
    attention,
    class_aware,
    fisher,
    l1,
    l2,
    mean_activation,
    random,
    taylor,
    variance,
)
