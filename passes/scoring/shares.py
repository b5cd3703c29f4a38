"""Shares of groups in the model's parameters and MACs: what adaptive activation pruning weighs its thresholds by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from graphprune.criteria import Floats
from graphprune.filters import Filter
from graphprune.groups import Groups


def _shares(groups: Groups, filters: Sequence[Filter], amount: Callable[[Filter], int]) -> Floats:
    """``mean_{i in P_g} N_i / sum_i N_i``: P_g the filters that make the channels of group g, N_i the amount of filter i.

    Shape (groups + 1,); 1 for groups that no filter makes, and in the last place, which frozen units read. Source: Automatic
    Attention Pruning, algorithm 3, for coupled layers.
    """
    makers = [f for f in filters if f.makes]
    total = sum({f.node: amount(f) for f in makers}.values())
    found = np.ones(len(groups.prunable) + 1)
    for group in groups.prunable:
        own = [amount(f) / total for f in makers if groups.group_of[f.units[0]] == group.index and amount(f)]
        if own:
            found[group.index] = np.mean(own)
    return found


SHARES: Mapping[str, Callable[[Groups, Sequence[Filter]], Floats]] = {
    "params": lambda groups, filters: _shares(groups, filters, lambda f: f.elements),
    "macs": lambda groups, filters: _shares(groups, filters, lambda f: f.macs),
}
