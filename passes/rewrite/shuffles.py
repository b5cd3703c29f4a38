"""Pruned shuffles: a run of views that permutes one axis becomes one index_select over the kept channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx

from graphprune.channels.groups import Ints
from graphprune.channels.shuffles import Shuffle
from graphprune.passes.rewrite.site import Provenance, Rewriting


def rewrite_shuffles(rewriting: Rewriting, shuffles: list[Shuffle], copied: dict[fx.Node, fx.Node]) -> list[fx.Node]:
    """Replace every shuffle that lost channels.

    Returns copies of kept channels that stand in order already: they have the target's labels, which its readers are resized by,
    and have to be taken out after that.
    """
    new = {old.name: node for old, node in copied.items()}
    idle: list[fx.Node] = []
    for shuffle in shuffles:
        run = [new[name] for name in (shuffle.target, *shuffle.interior)]
        for node in run[1:]:
            del rewriting.origin[node]  # the inside has no shape of its own
        index = _kept_order(rewriting, shuffle)
        if index is None:
            rewriting.finished.add(run[0])
            continue
        source = new[shuffle.source]
        if (index == np.arange(index.size)).all():
            alone = run[-1:] == list(source.users)  # else others read the tensor, and a write to the target must not reach them
            by = _replaced(rewriting, shuffle, run[0], torch.clone, source)
            idle += [by] if alone else []
        else:
            places = rewriting.constant(run[0], index)
            by = _replaced(rewriting, shuffle, run[0], torch.index_select, source, shuffle.axis, places)
        new[shuffle.target] = by
        run[0].replace_all_uses_with(by)
        del rewriting.origin[run[0]]
        for node in run:
            node.graph.erase_node(node)
    return idle


def _kept_order(rewriting: Rewriting, shuffle: Shuffle) -> Ints | None:
    """Where each kept channel of the target stands among those of the source; None when all are kept."""
    unit_of, units = rewriting.kept.groups.unit_of, rewriting.kept.units
    before = shuffle.before[units[unit_of[shuffle.before]]]
    if before.size == shuffle.before.size:
        return None
    after = shuffle.after[units[unit_of[shuffle.after]]]
    ranks = np.argsort(before, kind="stable")
    return ranks[np.searchsorted(before, after, sorter=ranks)].astype(np.int64)


def _replaced(rewriting: Rewriting, shuffle: Shuffle, target: fx.Node, function: Callable[..., Any], *args: Any) -> fx.Node:
    """A call, before the target, of what makes its value from now on."""
    with target.graph.inserting_before(target):
        node = target.graph.call_function(function, args)
    node.meta = dict(target.meta) | {"graphprune": Provenance("rewrite", shuffle.target)}
    rewriting.origin[node] = shuffle.target
    rewriting.finished.add(node)
    return node
