"""Criteria of activations, against plain loops: attention, apoz, mean-activation, variance, activation-similarity, rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.passes.scoring.scored import Floats, chain, consumed, images, labelled, residual, scored
from tests.zoo.case import conv, net

Channel = list[Floats]  # one channel's map for every sample


def _attention(p: int, how: str) -> Callable[[Channel], float]:
    """F of |a|^p of one channel, element by element."""

    def value(maps: Channel) -> float:
        powers = [abs(float(a)) ** p for one in maps for a in one.ravel()]
        return max(powers) if how == "max" else sum(powers) / (len(maps) if how == "sum" else len(powers))

    return value


def _variance(maps: Channel) -> float:
    values = [float(a) for one in maps for a in one.ravel()]
    mean = sum(values) / len(values)
    return sum((a - mean) ** 2 for a in values) / len(values)


def _rank(maps: Channel) -> float:
    return sum(int(np.linalg.matrix_rank(one, rtol=1e-5)) for one in maps) / len(maps)


BY_HAND: dict[str, Callable[[Channel], float]] = {
    f"attention(p={p},statistic={how})": _attention(p, how) for p in (1, 2, 4) for how in ("mean", "sum", "max")
}
BY_HAND["apoz"] = lambda maps: sum(float(a) != 0 for one in maps for a in one.ravel()) / sum(one.size for one in maps)
BY_HAND["mean-activation"] = lambda maps: abs(sum(float(a) for one in maps for a in one.ravel()) / sum(one.size for one in maps))
BY_HAND["variance"] = _variance
BY_HAND["rank"] = _rank


def maps_of(activation: Tensor) -> list[Channel]:
    """For every channel, its map in every sample."""
    return [[one.numpy() for one in activation[:, channel]] for channel in range(activation.shape[1])]


@pytest.mark.parametrize("form", BY_HAND)
def test_by_hand(form: str) -> None:
    """Where layer b reads; with ``at=produced``, where layer a has just written."""
    model, data = chain(), labelled()
    ((x, _),) = data
    read, made = consumed(model, x), model.a(x).detach()
    assert scored(model, images(2), form, data)["a"] == pytest.approx([BY_HAND[form](maps) for maps in maps_of(read)], rel=1e-9)
    produced = form.replace(")", ",at=produced)") if "(" in form else f"{form}(at=produced)"
    assert scored(model, images(2), produced, data)["a"] == pytest.approx([BY_HAND[form](maps) for maps in maps_of(made)], rel=1e-9)


@pytest.mark.parametrize("form", BY_HAND)
def test_activations_of_a_group_are_reduced(form: str) -> None:
    """The stream is read twice: before and after the residual. The larger value stands, unless the mean is asked for."""
    model, data = residual(), labelled()
    ((x, _),) = data
    with torch.no_grad():
        first = F.relu(model.a(x))
        second = F.relu(first + model.b(first)).mean((2, 3))
    values = np.array([[BY_HAND[form](maps) for maps in maps_of(y)] for y in (first, second[:, :, None, None])])
    if form == "rank":
        values = values[:1]  # the head reads no maps
    assert scored(model, images(2), form, data)["a"] == pytest.approx(values.max(0), rel=1e-9)
    assert scored(model, images(2), form, data, reduction="mean")["a"] == pytest.approx(values.mean(0), rel=1e-9)


@pytest.mark.parametrize(("form", "power"), [("attention", 1), ("attention(p=2)", 2), ("mean-activation", 1), ("variance", 2)])
def test_scores_have_the_units_of_activations(form: str, power: int) -> None:
    """Three times the activation is three times the score (to its power); counts and ranks do not change."""
    model, data = chain(), labelled()
    before = {name: scored(model, images(2), name, data)["a"] for name in (form, "apoz", "rank")}
    with torch.no_grad():
        model.norm.weight *= 3.0
        model.norm.bias *= 3.0
    assert scored(model, images(2), form, data)["a"] == pytest.approx(3.0**power * before[form], rel=1e-9)
    for name in ("apoz", "rank"):
        assert scored(model, images(2), name, data)["a"] == pytest.approx(before[name], rel=1e-12)


def test_a_constant_channel_has_no_variance_and_a_large_mean() -> None:
    model: Any = chain()
    with torch.no_grad():
        model.norm.weight[2], model.norm.bias[2] = 0.0, 50.0
    data = labelled()
    assert scored(model, images(2), "variance", data)["a"][2] == 0.0
    assert scored(model, images(2), "mean-activation", data)["a"].argmax() == 2
    assert scored(model, images(2), "rank", data)["a"][2] == 1.0


# -- activation-similarity -------------------------------------------------------------------------------------------------


def _pair(kind: str, one: Floats, other: Floats) -> float:
    if kind == "euclidean":
        return float(np.sqrt(((one - other) ** 2).mean()))
    if kind == "cka":
        return 1 - float(np.corrcoef(one, other)[0, 1]) ** 2
    return 1 - abs(float(one @ other)) / float(np.linalg.norm(one) * np.linalg.norm(other))


@pytest.mark.parametrize("neighbours", ["mean", "nearest"])
@pytest.mark.parametrize("kind", ["cosine", "cka", "euclidean"])
def test_similarity_by_hand(kind: str, neighbours: str) -> None:
    model, data = chain(), labelled()
    rows = consumed(model, data[0][0]).transpose(0, 1).flatten(1).numpy()
    distances = [[_pair(kind, rows[i], rows[j]) for j in range(5) if j != i] for i in range(5)]
    wanted = [min(d) if neighbours == "nearest" else sum(d) / 4 for d in distances]
    found = scored(model, images(2), f"activation-similarity(kind={kind},neighbours={neighbours})", data)["a"]
    assert found == pytest.approx(wanted, rel=1e-6)


def twins() -> Any:
    """A chain whose channel 3 is twice channel 1, shifted, in every activation: equal to the eye of CKA."""
    model: Any = chain()
    with torch.no_grad():
        model.a.weight[3], model.a.bias[3] = model.a.weight[1], model.a.bias[1]
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(model.norm, name)[3] = getattr(model.norm, name)[1]
        model.norm.weight[3] *= 2.0
        model.norm.bias[3] *= 2.0
    return model


@pytest.mark.parametrize("kind", ["cosine", "cka"])
def test_one_of_two_channels_that_go_together_goes_first(kind: str) -> None:
    """Also where one is twice the other; a distance sees two different channels there."""
    model, data = twins(), labelled()
    assert sorted(scored(model, images(2), f"activation-similarity(kind={kind},neighbours=nearest)", data)["a"].argsort()[:2]) == [
        1,
        3,
    ]
    distance = scored(model, images(2), "activation-similarity(kind=euclidean,neighbours=nearest)", data)["a"]
    assert distance[1] > 0.1 * distance.mean()


@pytest.mark.parametrize("neighbours", ["mean", "nearest"])
@pytest.mark.parametrize("kind", ["cosine", "cka"])
def test_a_dead_channel_is_replaceable_and_replaces_none(kind: str, neighbours: str) -> None:
    model: Any = chain()
    with torch.no_grad():
        model.norm.weight[4], model.norm.bias[4] = 0.0, 0.0
    found = scored(model, images(2), f"activation-similarity(kind={kind},neighbours={neighbours})", labelled())["a"]
    assert found[4] == pytest.approx(0.0, abs=1e-12) and (found[:4] > 0.01).all()


def test_positions_are_a_sample_of_them() -> None:
    model, data = chain(), labelled()
    rows = consumed(model, data[0][0]).flatten(2)[:, :, [0, 15]].transpose(0, 1).flatten(1).numpy()
    wanted = [sum(_pair("euclidean", rows[i], rows[j]) for j in range(5) if j != i) / 4 for i in range(5)]
    found = scored(model, images(2), "activation-similarity(kind=euclidean,positions=2)", data)["a"]
    assert found == pytest.approx(wanted, rel=1e-9)


# -- rank ------------------------------------------------------------------------------------------------------------------


def planted() -> Any:
    """Two channels copy parts of the image that a convolution of size 1 reads."""
    model: Any = net(lambda self, x: self.b(self.a(x)).mean((2, 3)), a=nn.Conv2d(2, 2, 1, bias=False), b=conv(2, 2, 1))
    with torch.no_grad():
        model.a.weight.copy_(torch.eye(2)[:, :, None, None])
    return model


def test_channels_with_maps_of_low_rank_go_first() -> None:
    """One channel is an outer product in every sample, however large; the other an identity."""
    data = torch.stack([torch.stack([100 * torch.outer(torch.arange(1.0, 5), torch.ones(4) * n), torch.eye(4)]) for n in (1, 2, 3)])
    assert scored(planted(), data.double()[:1], "rank", [data.double()])["a"].tolist() == [1.0, 4.0]


def test_the_first_samples_count() -> None:
    """Samples with ranks 4, 1, 1: the mean is over the first so many, however they come in batches."""
    x = torch.ones(3, 2, 4, 4, dtype=torch.float64)
    x[0] = torch.eye(4)
    for sizes in ([3], [1, 1, 1], [2, 1]):
        batches = list(x.split(sizes))
        assert scored(planted(), x[:1], "rank(samples=2)", batches)["a"].tolist() == [2.5, 2.5]
    assert scored(planted(), x[:1], "rank", [x])["a"].tolist() == [2.0, 2.0]


def test_small_singular_values_count_as_none() -> None:
    x = torch.diag(torch.tensor([1.0, 1e-3, 1e-7, 0.0])).double().expand(1, 2, 4, 4)
    assert scored(planted(), x, "rank", [x])["a"].tolist() == [2.0, 2.0]
    assert scored(planted(), x, "rank(tolerance=1e-9)", [x])["a"].tolist() == [3.0, 3.0]
    assert scored(planted(), 1e-6 * x, "rank", [1e-6 * x])["a"].tolist() == [2.0, 2.0], "relative to the map's largest"


def test_frames_are_maps_and_tokens_are_none() -> None:
    video: Any = net(lambda self, x: self.b(self.a(x)).mean((2, 3, 4)), a=nn.Conv3d(1, 3, 1), b=nn.Conv3d(3, 2, 1))
    x = torch.randn(2, 1, 5, 4, 6, dtype=torch.float64)
    with torch.no_grad():
        maps = video.a(x)
    wanted = torch.linalg.matrix_rank(maps, rtol=1e-5).double().mean((0, 2))
    assert scored(video, x, "rank", [x])["a"] == pytest.approx(wanted.numpy())

    def forward(self: Any, x: Tensor) -> Any:
        return self.c(self.b(self.a(x).movedim(1, -1).flatten(1, 2))).mean(1)

    tokens: Any = net(forward, a=conv(3, 4, 1), b=nn.Linear(4, 5), c=nn.Linear(5, 2))
    found = scored(tokens, images(2), "rank(at=produced)", [images()])
    assert np.isfinite(found["a"]).all() and np.isnan(found["b"]).all()
