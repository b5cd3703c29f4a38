"""Samples in the order of their loss, the highest first: cuts that cannot win are then known after a part of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from graphprune.calibration import Batch, Calibration, joined, never_negative
from graphprune.channels.groups import Floats, Ints


def hardest_first(batches: Sequence[Batch], outputs: Sequence[Any], data: Calibration) -> Sequence[Batch]:
    """The samples of all batches by their loss, in batches of the same sizes; but the second batch takes samples from everywhere
    behind the first one, so that these two together tell what the loss of all is about.

    outputs: what the model returns for each batch. The batches stay as they are where losses may be negative, so that nothing is
    gained, and where samples differ in shape or batches hold more than samples.
    """
    if not all(never_negative(data.loss, output) for output in outputs) or len({_sample(batch) for batch in batches}) > 1:
        return batches
    whole = joined(batches)
    losses = np.concatenate([_losses(batch, output, data) for batch, output in zip(batches, outputs, strict=True)])
    order = torch.from_numpy(_with_a_sample(np.argsort(-losses, kind="stable"), batches[0].size, batches[1].size))
    bounds = accumulate((batch.size for batch in batches), initial=0)
    return [whole.pick(order[start:end]) for start, end in pairwise(bounds)]


def _sample(batch: Batch) -> tuple[object, ...]:
    """What the samples of a batch look like; no two are alike where something in it is no sample."""
    leaves = tree_leaves((batch.inputs.args, dict(batch.inputs.kwargs), batch.target))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    apart = any(leaf.shape[:1] != (batch.size,) for leaf in tensors)
    return id(batch) if apart else 0, *(leaf.shape[1:] for leaf in tensors)


def _with_a_sample(order: Ints, first: int, size: int) -> Ints:
    """An order in which ``size`` evenly spaced entries of those after the ``first`` come before the others."""
    rest = np.arange(first, order.size)
    spread = rest[np.arange(size) * rest.size // size]
    sampled: Ints = order[np.concatenate([np.arange(first), spread, np.setdiff1d(rest, spread)])]
    return sampled


def _losses(batch: Batch, output: Any, data: Calibration) -> Floats:
    """The loss of each sample."""

    def loss(index: int) -> float:
        one = slice(index, index + 1)
        mine = tree_map(lambda leaf: leaf[one] if isinstance(leaf, Tensor) and leaf.shape[:1] == (batch.size,) else leaf, output)
        return float(data.loss(mine, batch.pick(one).target))

    return np.array([loss(index) for index in range(batch.size)])
