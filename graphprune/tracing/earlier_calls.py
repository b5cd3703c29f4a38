"""Calls of other sizes that a model may have had before: what it keeps of calls (anchors, grids) is then no part of its graph.

A detector computes the anchors for a size of image once and keeps them, with the size, for the next image. One that has run already
would be captured with what it has kept, and its graph would take that size alone. After a call of another size the code computes
them, which is right for every size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import torch

from graphprune.ir.program import Inputs

_SIZES: Final[tuple[Callable[[int, int, int], int], ...]] = (
    lambda dims, axis, size: size + 1 if axis == 0 else size * 2 if dims >= 4 and axis >= 2 else size,  # larger images
    lambda dims, axis, size: size + 1 if axis == 0 else size,  # more of them
    lambda dims, axis, size: size * 2 if axis == 1 and dims in (2, 3) else size,  # longer sequences
)
"""Sizes of other inputs: of the number of axes, an axis and its size."""


def inputs_of_other_sizes(inputs: Inputs) -> Iterator[Inputs]:
    """Inputs that a model may take as well, without values, likelier ones first."""
    for other in _SIZES:

        def resized(leaf: Any, other: Callable[[int, int, int], int] = other) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            shape = [other(leaf.dim(), axis, size) for axis, size in enumerate(leaf.shape)]
            return torch.empty(shape, dtype=leaf.dtype, device="meta")

        yield inputs.map(resized)
