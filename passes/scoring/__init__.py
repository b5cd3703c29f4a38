"""Scoring passes: how much each unit matters. Importing this package registers the criteria, one file each."""

from graphprune.passes.scoring import (  # noqa: F401
    activation_similarity,
    apoz,
    attention,
    bn_scale,
    bn_taylor,
    class_aware,
    cosine,
    euclidean,
    fisher,
    fpgm,
    l1,
    l2,
    lamp,
    mean_activation,
    obs,
    random,
    rank,
    sp_lamp,
    taylor,
    variance,
)
