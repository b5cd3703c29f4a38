"""Weights of filters as rows of units: shared, computed, transposed and grouped ones, heads, and every structure of the zoo."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from graphprune.channels.filters import Filter, find_filters
from graphprune.criteria import ScoringContext, find_criterion
from graphprune.passes.scoring.filter_weights import FilterWeights
from tests.checking import Analysed, analyse, state_hash
from tests.passes.scoring.scored import images
from tests.zoo.case import CASES, conv, net
from tests.zoo.test_zoo import subject

WEIGHTS = ["lamp", "sp-lamp", "fpgm", "euclidean", "cosine"]


def weights_of(found: Analysed) -> FilterWeights:
    return FilterWeights(ScoringContext(found.program, found.groups, filters=find_filters(found.program, found.groups)))


def rows_of(found: Analysed, tensor: str, *, makes: bool = True) -> list[Tensor]:
    """Rows of all groups on the filters of a tensor."""
    weights = weights_of(found)
    return [rows for f in weights.filters(makes=makes) if f.tensor == tensor for _, rows in weights.rows(f)]


@cache
def values(criterion: str, name: str) -> tuple[Analysed, Any]:
    found = subject(name)[1]
    filters = find_filters(found.program, found.groups)
    chosen = find_criterion(criterion)
    return found, chosen(ScoringContext(found.program, found.groups, chosen.reduction, filters=filters))


#: Groups that no layer makes as a whole (recurrent cells, coordinates), or that have a single unit.
UNMADE = {"layer.weight_ih_l0", "layer.weight_hh_l0", "cell.weight_ih", "coords", "left", "b#2", "b", "c#2"}


@pytest.mark.parametrize("name", CASES)
def test_every_group_of_the_zoo_has_finite_scores(name: str) -> None:
    for criterion in WEIGHTS:
        found, scores = values(criterion, name)
        for group in found.groups.prunable:
            known = np.isfinite(scores[group.units])
            silent = not known.any() and (group.name in UNMADE or group.size == 1)
            assert known.all() or silent, f"{criterion} of {group.name}"


def test_a_head_is_one_row() -> None:
    """Slices of queries, keys and values of one head, one after another, in a fused projection."""
    found = subject("fused_qkv")[1]
    (rows,) = rows_of(found, "qkv.weight")
    weight = found.model.qkv.weight.detach()
    size = weight.shape[0] // 9
    wanted = torch.cat([weight[(part * 3 + 1) * size : (part * 3 + 2) * size] for part in range(3)])
    assert rows.shape == (3, 3 * size * weight.shape[1]) and torch.equal(rows[1], wanted.flatten())


def test_channels_of_all_convolution_groups_are_one_row() -> None:
    model: Any = net(lambda self, x: self.c(self.b(self.a(x))), a=conv(3, 6), b=conv(6, 6, groups=2), c=conv(6, 2))
    found = analyse(model, images(2))
    (rows,) = rows_of(found, "b.weight")
    weight = model.b.weight.detach()
    assert rows.shape == (3, 2 * 27) and torch.equal(rows[1], torch.cat([weight[1].flatten(), weight[4].flatten()]))


def test_transposed_convolutions_make_channels_along_axis_one() -> None:
    model: Any = net(lambda self, x: self.b(self.a(x)), a=nn.ConvTranspose2d(3, 6, 2), b=conv(6, 2))
    (rows,) = rows_of(analyse(model, images(2)), "a.weight")
    assert torch.equal(rows[4], model.a.weight.detach()[:, 4].flatten())


def test_depthwise_convolutions_and_embeddings_make_channels() -> None:
    model: Any = net(lambda self, x: self.c(self.b(self.a(x))), a=conv(3, 6), b=conv(6, 6, groups=6), c=conv(6, 2))
    (rows,) = rows_of(analyse(model, images(2)), "b.weight")
    assert torch.equal(rows, model.b.weight.detach().flatten(1))
    words: Any = net(lambda self, ids: self.b(self.a(ids)), a=nn.Embedding(7, 5), b=nn.Linear(5, 2))
    (rows,) = rows_of(analyse(words, torch.zeros(2, 3, dtype=torch.long)), "a.weight")
    assert torch.equal(rows, words.a.weight.detach().t())


def test_a_layer_that_makes_channels_of_two_groups_has_rows_for_each() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        left, right = self.a(x).chunk(2, 1)
        return self.b(left), self.c(right)

    model: Any = net(forward, a=conv(3, 6), b=conv(3, 2), c=conv(3, 2))
    first, second = rows_of(analyse(model, images(2)), "a.weight")
    assert torch.equal(torch.cat([first, second]), model.a.weight.detach().flatten(1))


@pytest.mark.parametrize("shared", ["module", "weight"])
def test_what_is_used_twice_counts_once(shared: str) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        x = F.relu(self.a(x))
        return self.head(F.relu(self.c(F.relu(self.b(x)))).mean((2, 3)))

    model: Any = net(forward, a=conv(3, 5), b=conv(5, 5), c=conv(5, 5), head=nn.Linear(5, 2))
    if shared == "module":
        model.c = model.b
    else:
        model.c.weight = model.b.weight
    weights = weights_of(analyse(model, images(2)))
    assert [f.tensor for f in weights.filters(makes=True)] == ["a.weight", "b.weight"]
    assert [f.tensor for f in weights.filters(makes=False)] == ["b.weight", "head.weight"]


@pytest.mark.parametrize("parametrise", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrised_weights_count_as_they_are_used(parametrise: Any) -> None:
    """Their parts do not: the direction's length means nothing. And computing them, in train mode too, leaves them as they were."""

    def forward(self: Any, x: Tensor) -> Any:
        return self.b(F.relu(self.a(x)))

    model: Any = net(forward, a=parametrise(conv(3, 5)), b=conv(5, 2))
    want = model.a.weight.detach().flatten(1)
    found = analyse(model.train(), images(2))
    before = state_hash(model)
    weights = weights_of(found)
    ((_, rows),) = [entry for f in weights.filters(makes=True) for entry in weights.rows(f)]
    assert torch.allclose(rows, want, rtol=1e-12) and state_hash(model) == before
    with torch.no_grad():
        next(p for n, p in model.a.named_parameters() if n.endswith(("original1", "original"))).mul_(5.0)
    weights = weights_of(found)
    ((_, again),) = [entry for f in weights.filters(makes=True) for entry in weights.rows(f)]
    if parametrise is parametrizations.weight_norm:
        assert torch.allclose(again, rows, rtol=1e-12)


def test_a_group_is_done_once_its_last_layer_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the rows of few groups are there at a time: of a chain of layers, those of one."""
    layers = {f"layer{i}": nn.Linear(4, 4) for i in range(4)}

    def forward(self: Any, x: Tensor) -> Any:
        for name in layers:
            x = F.relu(self.get_submodule(name)(x))
        return x

    found = weights_of(analyse(net(forward, **layers), torch.zeros(2, 4, dtype=torch.float64)))
    read: list[str] = []
    whole = FilterWeights.weight

    def weight(self: FilterWeights, filter: Filter) -> Tensor:
        read.append(filter.tensor)
        return whole(self, filter)

    monkeypatch.setattr(FilterWeights, "weight", weight)
    seen = [(len(units), list(read)) for units, _ in found.producers("group")]
    names = [f"{name}.weight" for name in layers]
    assert seen == [(4, names[: number + 1]) for number in range(3)], "the last layer makes the output, which stays"
