"""Shares of groups in the model's parameters and MACs: what adaptive activation pruning weighs its thresholds by."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from graphprune.channels.filters import Filter
from graphprune.channels.groups import FROZEN, Groups
from graphprune.criteria import Floats


def _shares(groups: Groups, filters: Sequence[Filter], amount: Callable[[Filter], int], whose: Callable[[Filter], str]) -> Floats:
    """``mean_{i in P_g} N_i / sum_i N_i``: P_g the layers that make the channels of group g, N_i the amount of layer i.

    Layers are told apart by ``whose``; of one that makes channels of several groups, each group has the part of its channels. The
    sum is over the layers that make prunable channels. Shape (groups + 1,); NaN for groups that no layer makes, which have no
    share and so no score, and 1 in the last place, which frozen units read. Source: Automatic Attention Pruning, algorithm 3,
    for coupled layers.
    """
    makers = {(whose(f), f.axis): f for f in filters if f.makes and amount(f)}
    total = sum({whose(f): amount(f) for f in makers.values()}.values())
    parts: dict[int, list[float]] = defaultdict(list)
    for f in makers.values():
        owners = groups.group_of[f.units]
        for group in np.unique(owners[owners != FROZEN]).tolist():
            parts[group].append(float(amount(f) * np.mean(owners == group) / total))
    found = [float(np.mean(parts[group.index])) if parts[group.index] else np.nan for group in groups.prunable]
    return np.array([*found, 1.0])


SHARES: Mapping[str, Callable[[Groups, Sequence[Filter]], Floats]] = {
    "params": lambda groups, filters: _shares(groups, filters, lambda f: f.elements, lambda f: f.weight or f.tensor),
    "macs": lambda groups, filters: _shares(groups, filters, lambda f: f.macs, lambda f: f.node),
}
