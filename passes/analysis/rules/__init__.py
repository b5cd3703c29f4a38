"""Transfer rules of ATen operators, by kind of operator. Importing this package registers them."""

from __future__ import annotations

from graphprune.passes.analysis.rules import (
    contraction,
    convolution,
    creation,
    elementwise,
    indexing,
    normalisation,
    quantisation,
    reduction,
    spatial,
    views,
)

__all__ = [
    "contraction",
    "convolution",
    "creation",
    "elementwise",
    "indexing",
    "normalisation",
    "quantisation",
    "reduction",
    "spatial",
    "views",
]
