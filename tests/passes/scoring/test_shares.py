"""Shares of groups in parameters and MACs, and scores divided by them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphprune.channels.filters import find_filters
from graphprune.errors import UsageError
from graphprune.passes.scoring.score import ScorePass
from graphprune.passes.scoring.shares import SHARES
from tests.checking import Analysed, analyse
from tests.passes.scoring.scored import images, scored
from tests.zoo.case import conv, net


def strided() -> Any:
    """Groups ``a`` (made by two layers) and ``c``, at a quarter of the places."""

    def forward(self: Any, x: Tensor) -> Any:
        x = F.relu(self.a(x))
        x = F.relu(self.c(F.relu(x + self.b(x))))
        return self.head(x.mean((2, 3)))

    parts = {"a": conv(3, 5), "b": conv(5, 5), "c": conv(5, 4, 1, stride=2), "head": nn.Linear(4, 2)}
    return net(forward, **parts)


def shares(found: Analysed, kind: str) -> dict[str, float]:
    values = SHARES[kind](found.groups, find_filters(found.program, found.groups))
    assert values.shape == (len(found.groups.prunable) + 1,) and values[-1] == 1.0
    return {group.name: float(values[group.index]) for group in found.groups.prunable}


def test_by_hand() -> None:
    """The mean over the layers that make a group, of all layers that make channels; the head makes none that could go."""
    found = analyse(strided(), images(2, size=8))
    sizes = {"a": 5 * 27, "b": 5 * 45, "c": 4 * 5}
    total = sum(sizes.values())
    assert shares(found, "params") == pytest.approx({"a": (sizes["a"] + sizes["b"]) / 2 / total, "c": sizes["c"] / total})
    macs = {name: size * (2 * 16 if name == "c" else 2 * 64) for name, size in sizes.items()}
    total = sum(macs.values())
    assert shares(found, "macs") == pytest.approx({"a": (macs["a"] + macs["b"]) / 2 / total, "c": macs["c"] / total})


def test_a_layer_that_runs_twice_has_its_parameters_once_and_its_products_twice() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        x = F.relu(self.a(x))
        return self.head(F.relu(self.b(F.relu(self.b(x)))).mean((2, 3)))

    found = analyse(net(forward, a=conv(3, 5), b=conv(5, 5), head=nn.Linear(5, 2)), images(2))
    assert shares(found, "params")["a"] == pytest.approx((27 + 45) / 2 / (27 + 45))
    assert shares(found, "macs")["a"] == pytest.approx((27 + 45 + 45) / 3 / (27 + 45 + 45))


def test_one_layer_for_two_groups_counts_as_two_layers_would() -> None:
    def fused(self: Any, x: Tensor) -> Any:
        left, right = self.a(x).split((4, 2), 1)
        return self.b(left), self.c(right)

    def apart(self: Any, x: Tensor) -> Any:
        return self.b(self.left(x)), self.c(self.right(x))

    ends = {"b": conv(4, 2), "c": conv(2, 2)}
    one = analyse(net(fused, a=conv(3, 6), **ends), images(2))
    two = analyse(net(apart, left=conv(3, 4), right=conv(3, 2), **ends), images(2))
    for kind in SHARES:
        for found in (one, two):
            assert sorted(shares(found, kind).values()) == pytest.approx([1 / 3, 2 / 3])


def test_scores_are_divided_by_shares() -> None:
    model, x = strided(), images(2, size=8)
    found = analyse(model, x)
    plain = scored(model, x, "l2")
    for kind in SHARES:
        divided = scored(model, x, "l2", share=kind)
        for name, share in shares(found, kind).items():
            assert divided[name] == pytest.approx(plain[name] / share, rel=1e-12)


def test_groups_that_no_layer_makes_have_no_score() -> None:
    """Products make no part of an embedding: it has a share of the parameters and none of the MACs."""
    model: Any = net(lambda self, ids: self.b(self.a(ids)), a=nn.Embedding(7, 5), b=nn.Linear(5, 2))
    ids = torch.zeros(2, 3, dtype=torch.long)
    assert np.isfinite(scored(model, ids, "l2", share="params")["a"]).all()
    assert np.isnan(scored(model, ids, "l2", share="macs")["a"]).all()


def test_scores_below_zero_cannot_be_divided() -> None:
    with pytest.raises(UsageError, match="normalise=gaussian"):
        ScorePass(normalise="gaussian", share="macs")
