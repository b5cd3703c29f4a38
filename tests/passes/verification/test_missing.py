"""The oracle's arithmetic: each operator on a tensor with missing elements equals the operator on the present ones alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from graphprune.arithmetic import taken_apart
from graphprune.passes.verification.missing import MissingData

Kept = dict[int, list[int]]


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def masked(tensor: Tensor, kept: Kept) -> Tensor:
    """Full size; what is not kept is missing."""
    result = tensor.clone()
    for axis, indices in kept.items():
        gone = [i for i in range(tensor.shape[axis]) if i not in indices]
        result.index_fill_(axis, torch.tensor(gone, dtype=torch.long), torch.nan)
    return result


def cut(tensor: Tensor, kept: Kept) -> Tensor:
    for axis, indices in kept.items():
        tensor = tensor.index_select(axis, torch.tensor(indices))
    return tensor


def agree(
    function: Callable[..., Any], operands: Sequence[tuple[Tensor, Kept]], result: Kept, small: Callable[..., Any] | None = None
) -> None:
    """``function`` on masked operands holds what ``small`` (default: the same) makes of the cut ones, and nothing else."""
    with MissingData(), torch.no_grad(), taken_apart(F.scaled_dot_product_attention):
        full = function(*[masked(tensor, kept) for tensor, kept in operands])
    wanted = (small or function)(*[cut(tensor, kept) for tensor, kept in operands])
    fulls, wanteds = (list(item) if isinstance(item, tuple) else [item] for item in (full, wanted))
    for found, want in zip(fulls, wanteds, strict=True):
        torch.testing.assert_close(cut(found, result), want, rtol=1e-12, atol=1e-12)
        present = torch.zeros_like(found)
        for axis, indices in result.items():
            gone = [i for i in range(found.shape[axis]) if i not in indices]
            present.index_fill_(axis, torch.tensor(gone, dtype=torch.long), 1.0)
        assert torch.equal(found.isnan(), present.bool()), "missing exactly where nothing made it"


C, OUT = [0, 2, 5], [1, 2]


@pytest.mark.parametrize("bias", [True, False])
def test_convolution(bias: bool) -> None:
    operands = [(drawn(2, 6, 5, 5), {1: C}), (drawn(4, 6, 3, 3), {0: OUT, 1: C})] + ([(drawn(4), {0: OUT})] if bias else [])
    agree(lambda x, w, b=None: F.conv2d(x, w, b, padding=1), operands, {1: OUT})


def test_convolution_in_groups_that_lose_the_same_places() -> None:
    x, w = (drawn(2, 6, 5), {1: [0, 2, 3, 5]}), (drawn(4, 3, 3), {0: [1, 3], 1: [0, 2]})
    agree(lambda x, w: F.conv1d(x, w, groups=2), [x, w], {1: [1, 3]})


def test_convolution_in_groups_of_which_some_go() -> None:
    x, w = (drawn(2, 6, 5), {1: [2, 3]}), (drawn(6, 2, 3), {0: [2, 3]})
    agree(lambda x, w: F.conv1d(x, w, groups=3), [x, w], {1: [2, 3]}, lambda x, w: F.conv1d(x, w, groups=1))


@pytest.mark.parametrize("bias", [True, False])
def test_transposed_convolution(bias: bool) -> None:
    operands = [(drawn(2, 6, 4, 4), {1: C}), (drawn(6, 4, 2, 2), {0: C, 1: OUT})] + ([(drawn(4), {0: OUT})] if bias else [])
    agree(lambda x, w, b=None: F.conv_transpose2d(x, w, b, stride=2), operands, {1: OUT})


def test_transposed_convolution_in_groups() -> None:
    within = [(drawn(2, 6, 5), {1: [0, 2, 3, 5]}), (drawn(6, 2, 3), {0: [0, 2, 3, 5], 1: [1]})]
    agree(lambda x, w: F.conv_transpose1d(x, w, groups=2), within, {1: [1, 3]})
    whole = [(drawn(2, 6, 5), {1: [2, 3]}), (drawn(6, 2, 3), {0: [2, 3]})]
    agree(lambda x, w: F.conv_transpose1d(x, w, groups=3), whole, {1: [2, 3]}, lambda x, w: F.conv_transpose1d(x, w))


def test_products() -> None:
    a, b, c = (drawn(5, 6), {0: [0, 4], 1: C}), (drawn(6, 4), {0: C, 1: OUT}), (drawn(4), {0: OUT})
    agree(torch.mm, [a, b], {0: [0, 4], 1: OUT})
    agree(lambda a, b, c: torch.addmm(c, a, b), [a, b, c], {0: [0, 4], 1: OUT})
    agree(torch.bmm, [(drawn(3, 5, 6), {0: [1], 2: C}), (drawn(3, 6, 4), {0: [1], 1: C, 2: OUT})], {0: [1], 2: OUT})
    agree(torch.mv, [(drawn(5, 6), {0: [1, 2], 1: C}), (drawn(6), {0: C})], {0: [1, 2]})
    agree(torch.dot, [(drawn(6), {0: C}), (drawn(6), {0: C})], {})
    agree(lambda a, b: torch.einsum("nc,mc->nm", a, b), [(drawn(5, 6), {1: C}), (drawn(4, 6), {0: OUT, 1: C})], {1: OUT})


@pytest.mark.parametrize("dim", [None, 1, (0, 1), (1, 2), -2])
@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("name", ["sum", "mean", "amax", "amin", "var", "std", "norm"])
def test_reductions(name: str, dim: Any, keepdim: bool) -> None:
    if dim is None and keepdim:
        return
    functions: dict[str, Callable[[Tensor], Any]] = {
        "sum": lambda t: t.sum(dim, keepdim=keepdim) if dim is not None else t.sum(),
        "mean": lambda t: t.mean(dim, keepdim=keepdim) if dim is not None else t.mean(),
        "amax": lambda t: t.amax(() if dim is None else dim, keepdim=keepdim),
        "amin": lambda t: t.amin(() if dim is None else dim, keepdim=keepdim),
        "var": lambda t: t.var(dim, unbiased=False, keepdim=keepdim),
        "std": lambda t: t.std(dim, correction=1, keepdim=keepdim),
        "norm": lambda t: torch.linalg.vector_norm(t, 2, dim, keepdim),
    }
    agree(functions[name], [(drawn(4, 6, 3), {1: C})], {})


@pytest.mark.parametrize("function", [torch.nansum, torch.ops.aten.norm, torch.count_nonzero])
def test_reductions_under_other_names(function: Callable[..., Tensor]) -> None:
    agree(function, [(drawn(4, 6, 3), {1: C})], {})


@pytest.mark.parametrize("function", [torch.sum, torch.mean, torch.amax])
def test_what_is_made_of_nothing_is_missing(function: Callable[..., Tensor]) -> None:
    agree(lambda t: function(t, 2), [(drawn(4, 6, 3), {1: C})], {1: C})


def test_moments_in_pairs() -> None:
    agree(lambda t: torch.var_mean(t, 1, correction=0), [(drawn(4, 6), {1: C})], {})
    agree(lambda t: torch.std_mean(t, 1, keepdim=True), [(drawn(4, 6), {1: C})], {})
    agree(lambda t: t.var(), [(drawn(4, 6), {1: C})], {})
    agree(lambda t: t.std(1, True), [(drawn(4, 6), {1: C})], {})
    agree(lambda t: t.var(1, False, True), [(drawn(4, 6), {1: C})], {})


def test_maximum_with_places_and_of_everything() -> None:
    agree(lambda t: t.max(1).values, [(drawn(4, 6), {1: C})], {})
    agree(lambda t: t.min(1)[0], [(drawn(4, 6), {0: [1, 2]})], {0: [1, 2]})
    agree(lambda t: t.max(), [(drawn(4, 6), {1: C})], {})
    agree(torch.max, [(drawn(4, 6), {1: C}), (drawn(4, 6), {1: C})], {1: C})


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norms(affine: bool) -> None:
    parts = [(drawn(6), {0: C}), (drawn(6), {0: C})] if affine else []
    agree(lambda t, w=None, b=None: F.layer_norm(t, t.shape[-1:], w, b), [(drawn(4, 6), {1: C}), *parts], {1: C})
    agree(lambda t, w=None: F.rms_norm(t, t.shape[-1:], w), [(drawn(4, 6), {1: C}), *parts[:1]], {1: C})
    agree(lambda t, w=None: F.rms_norm(t, t.shape[-1:], w, 1e-3), [(drawn(4, 6), {1: C}), *parts[:1]], {1: C})
    agree(lambda t: F.layer_norm(t, t.shape[1:]), [(drawn(4, 6, 3), {1: C})], {1: C})


def test_group_norms() -> None:
    within = {1: [0, 2, 3, 5]}
    parts = [(drawn(6), {0: within[1]}), (drawn(6), {0: within[1]})]
    agree(lambda t, w, b: F.group_norm(t, 2, w, b), [(drawn(4, 6, 3, 3), within), *parts], within)
    agree(lambda t: F.group_norm(t, 1), [(drawn(4, 6, 3), {1: C})], {1: C})
    agree(lambda t: F.group_norm(t, 3), [(drawn(4, 6, 3), {1: [2, 3]})], {1: [2, 3]}, lambda t: F.group_norm(t, 1))


def test_norms_read_no_place_that_they_have_no_weight_for() -> None:
    """Padding beside channels that are gone exists by itself; that it goes with them, only the weights say."""
    x: tuple[Tensor, Kept] = (drawn(4, 6), {})
    within = [0, 2, 3, 5]
    parts = [(drawn(6), {0: C}), (drawn(6), {0: C})]
    agree(lambda t, w, b: F.layer_norm(t, (6,), w, b), [x, *parts], {1: C}, lambda t, w, b: F.layer_norm(t[:, C], (3,), w, b))
    parts = [(drawn(6), {0: within}), (drawn(6), {0: within})]
    agree(lambda t, w, b: F.group_norm(t, 2, w, b), [x, *parts], {1: within}, lambda t, w, b: F.group_norm(t[:, within], 2, w, b))


def test_batch_and_instance_norm() -> None:
    parts = [(drawn(6).abs(), {0: C}) for _ in range(4)]
    agree(lambda t, m, v, w, b: F.batch_norm(t, m, v, w, b), [(drawn(4, 6, 3), {1: C}), *parts], {1: C})
    agree(lambda t: F.instance_norm(t), [(drawn(4, 6, 3, 3), {1: C})], {1: C})


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_by_statistics_of_what_is_present(affine: bool) -> None:
    """Standardised kernels: an image of one example, with a channel for each output, over the inputs that are left."""
    parts = [(drawn(6), {0: C}), (drawn(6), {0: C})] if affine else []
    agree(
        lambda t, w=None, b=None: F.batch_norm(t, None, None, w, b, training=True),
        [(drawn(2, 6, 5), {1: C, 2: [0, 3]}), *parts],
        {1: C, 2: [0, 3]},
    )


@pytest.mark.parametrize("function", [lambda t: t.softmax(1), lambda t: F.log_softmax(t, 1)])
def test_softmax_over_and_beside_what_is_missing(function: Callable[[Tensor], Tensor]) -> None:
    agree(function, [(drawn(4, 6), {1: C})], {1: C})
    agree(function, [(drawn(4, 6), {0: [1, 2]})], {0: [1, 2]})


@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_keeps_the_scale_of_the_full_width(scale: float | None) -> None:
    heads = {1: [0, 2]}
    q, k = (drawn(2, 3, 5, 8), {**heads, 3: C}), (drawn(2, 3, 4, 8), {**heads, 3: C})
    v = (drawn(2, 3, 4, 8), {**heads, 3: OUT})

    def full(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)

    def small(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-1, -2) * (scale or 8**-0.5)).softmax(-1) @ v

    agree(full, [q, k, v], {**heads, 3: OUT}, small)


def test_attention_as_one_kernel() -> None:
    """As graphs that were exported for a device call it."""
    operands = [(drawn(2, 3, 5, 8), {1: [0, 2], 3: C}) for _ in range(3)]
    mask = drawn(5, 5)

    def full(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=mask)[0]
        return found

    def small(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-1, -2) * 8**-0.5 + mask).softmax(-1) @ v

    agree(full, operands, {1: [0, 2], 3: C}, small)


def test_attention_under_masks() -> None:
    q, k, v = ((drawn(2, 3, 5, 8), {3: C}) for _ in range(3))
    mask = torch.ones(5, 5, dtype=torch.bool).tril()

    def small(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-1, -2) * 8**-0.5).masked_fill(~mask, -torch.inf).softmax(-1) @ v

    agree(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask), [q, k, v], {3: C}, small)
    agree(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), [q, k, v], {3: C}, small)


POOLS: list[Callable[[Tensor], Tensor]] = [
    lambda t: F.max_pool2d(t, 2), lambda t: F.avg_pool2d(t, 2),
    lambda t: F.adaptive_avg_pool2d(t, 1), lambda t: F.adaptive_max_pool2d(t, 2),
    lambda t: F.interpolate(t, scale_factor=2), lambda t: F.interpolate(t, size=(3, 3), mode="bilinear"),
]  # fmt: skip
PLAIN: list[Callable[[Tensor], Tensor]] = [
    F.relu, F.gelu, F.hardswish, F.hardsigmoid, F.relu6, torch.sigmoid, F.elu, F.silu, F.mish,
    lambda t: t.clamp(-1, 1), lambda t: t**2,
    lambda t: torch.where(t > 0, t, 0.1 * t), lambda t: t.clone().relu_(), lambda t: F.leaky_relu(t, 0.1),
    torch.exp, lambda t: t.flip(1).flip(1),
]  # fmt: skip


@pytest.mark.parametrize("function", POOLS + PLAIN)
def test_operators_on_each_channel_need_no_handler(function: Callable[[Tensor], Tensor]) -> None:
    """A channel that is missing stays missing: relu(NaN) must not be 0, and a pool of NaN must not be -inf."""
    agree(function, [(drawn(2, 6, 4, 4), {1: C})], {1: C})


def test_a_number_that_meets_a_missing_one_shows() -> None:
    """The negative twin: masks that do not fit each other leave holes in what should be present."""
    with MissingData():
        made = masked(drawn(6), {0: C}) + masked(drawn(6), {0: [0, 2]})
    assert made[C].isnan().any()
    with pytest.raises(AssertionError):
        agree(torch.add, [(drawn(6), {0: C}), (drawn(6), {0: [0, 2, 4]})], {0: C})


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no products of groups")
def test_rows_times_the_matrix_of_their_expert() -> None:
    """Integers, so that float32, which this product takes at most, rounds nothing."""

    def function(x: Tensor, w: Tensor) -> Tensor:
        return F.grouped_mm(x, w, offs=torch.tensor([2, 3, 5], dtype=torch.int32))

    x, w, inner, outer = torch.randint(-9, 9, (5, 8)), torch.randint(-9, 9, (3, 8, 8)), [0, 2, 5, 7], [1, 2, 3, 7]
    agree(function, [(x.float(), {1: inner}), (w.float(), {1: inner, 2: outer})], {1: outer})


def test_products_of_three() -> None:
    kept = [{1: C}, {0: OUT, 1: C, 2: [1, 4]}, {1: [1, 4]}]
    operands = [(drawn(2, 6), kept[0]), (drawn(4, 6, 5), kept[1]), (drawn(2, 5), kept[2])]
    agree(lambda x, w, y: F.bilinear(x, y, w), operands, {1: OUT})


def test_grouped_queries_share_keys() -> None:
    """Query heads 2 and 3 stay, with the key head that they share."""
    q, k = (drawn(1, 4, 5, 3), {1: [2, 3]}), (drawn(1, 2, 5, 3), {1: [1]})
    agree(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True), [q, k, (drawn(1, 2, 5, 3), {1: [1]})], {1: [2, 3]}
    )


def test_patches_and_their_sum() -> None:
    """Padding of a channel that does not exist does not exist."""
    agree(lambda x: F.unfold(x, 2, padding=1), [(drawn(2, 3, 4, 4), {1: [0, 2]})], {1: [0, 1, 2, 3, 8, 9, 10, 11]})
    agree(lambda x: F.fold(x, (5, 5), 2, stride=3, padding=0), [(drawn(2, 8, 4), {1: [4, 5, 6, 7]})], {1: [1]})


def test_samples_outside_of_a_picture() -> None:
    grid = drawn(2, 3, 3, 2) * 2
    agree(lambda x: F.grid_sample(x, grid, align_corners=False), [(drawn(2, 4, 5, 5), {1: OUT})], {1: OUT})


@pytest.mark.parametrize("function", [torch.tril, torch.triu])
def test_triangles(function: Callable[[Tensor], Tensor]) -> None:
    agree(function, [(drawn(4, 3, 3), {0: OUT})], {0: OUT})


MASK = torch.tensor([True, False, True])
REPLACED: dict[str, Callable[[Tensor], Any]] = {
    "where": lambda x: torch.where(x > 0, x, 0.5),
    "masked_fill": lambda x: x.masked_fill(MASK, 0.0),
    "masked_fill_": lambda x: x.clone().masked_fill_(MASK, 0.0),
    "fill_": lambda x: x.clone().fill_(2.0),
    "zero_": lambda x: x.clone().zero_(),
    "copy_": lambda x: x.clone().copy_(torch.ones(3, dtype=x.dtype)),
    "nan_to_num": lambda x: x.nan_to_num(),
    "fmax": lambda x: torch.fmax(x, torch.zeros(3, dtype=x.dtype)),
    "write by a mask": lambda x: x.clone().masked_fill(torch.zeros_like(x).bool(), 1.0),
}


@pytest.mark.parametrize("name", REPLACED)
def test_what_does_not_exist_is_not_replaced(name: str) -> None:
    agree(REPLACED[name], [(drawn(4, 3), {0: OUT})], {0: OUT})


def test_what_does_not_exist_replaces_nothing() -> None:
    agree(lambda x, y: torch.where(MASK, x, y), [(drawn(4, 3), {0: OUT}), (drawn(4, 3), {0: OUT})], {0: OUT})


def test_normalised_weights() -> None:
    direction, length = (drawn(4, 6, 3), {0: OUT, 1: C}), (drawn(4, 1, 1), {0: OUT})
    agree(lambda v, g: torch._weight_norm(v, g, 0), [direction, length], {0: OUT, 1: C})


@pytest.mark.parametrize("keepdim", [True, False])
def test_logarithm_of_summed_exponentials(keepdim: bool) -> None:
    agree(lambda x: x.logsumexp(1, keepdim), [(drawn(3, 6), {1: C})], {})
    agree(lambda x: x.logsumexp(1, keepdim), [(drawn(4, 6), {0: OUT})], {0: OUT})


TO = torch.tensor([0, 2, 2])


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: x.scatter_add(0, TO.view(3, 1).expand_as(y), y),
        lambda x, y: x.scatter_reduce(0, TO.view(3, 1).expand_as(y), y, "mean"),
        lambda x, y: x.scatter_reduce(0, TO.view(3, 1).expand_as(y), y, "amax", include_self=False),
        lambda x, y: x.scatter(0, torch.tensor([[0], [2], [1]]).expand_as(y), y),
        lambda x, y: x.index_add(0, TO, y),
        lambda x, y: x.clone().index_add_(0, TO, y),
        lambda x, y: x.index_copy(0, torch.tensor([0, 2, 1]), y),
    ],
)
def test_rows_written_where_data_say(function: Callable[..., Tensor]) -> None:
    """Columns that are missing are so in every row, written to or not."""
    agree(function, [(drawn(4, 6), {1: C}), (drawn(3, 6), {1: C})], {1: C})


def test_zeros_that_nothing_is_added_to_are_missing_where_the_messages_are() -> None:
    def sums(y: Tensor) -> Tensor:
        return torch.zeros(4, y.shape[1], dtype=y.dtype).scatter_add_(0, TO.view(3, 1).expand_as(y), y)

    agree(sums, [(drawn(3, 6), {1: C})], {1: C})


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_which_one_is_empty(mode: str) -> None:
    index, offsets = torch.tensor([0, 2, 2]), torch.tensor([0, 2, 2])
    agree(lambda w: F.embedding_bag(index, w, offsets, mode=mode), [(drawn(5, 6), {1: C})], {1: C})


@pytest.fixture
def filled() -> Iterator[None]:
    """Memory that is not initialised holds NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    "new",
    [
        torch.empty_like,
        lambda x: torch.empty(x.shape),
        lambda x: x.new_empty(x.shape),
        lambda x: torch.empty_strided(x.shape, x.stride()),
        lambda x: x.new_empty_strided(x.shape, x.stride()),
        lambda x: torch.empty_permuted(x.shape, (1, 0)),
    ],
)
def test_memory_that_is_not_initialised_is_not_missing(new: Callable[[Tensor], Tensor]) -> None:
    """Rotations are written into it, half by half."""
    x = drawn(3, 4)
    with MissingData():
        out = new(x)
        out[:, 0::2] = x[:, :2]
        out[:, 1::2] = x[:, 2:]
    assert torch.equal(out, torch.stack([x[:, :2], x[:, 2:]], 2).flatten(1).to(out.dtype))


@pytest.mark.parametrize(
    "function",
    [
        lambda n: n.max(1).values,
        lambda n: n.min(1).indices,
        lambda n: n.amax(1),
        lambda n: n.sum(1),
        lambda n: n @ n.T,
        lambda n: torch.einsum("ij,kj->ik", n, n),
        lambda n: n.logsumexp(1),
        lambda n: F.pad(n, (1, 1)),
        lambda n: n.tril(),
        lambda n: n.clone().index_put_((torch.tensor([0]),), n[1]),
    ],
)
def test_whole_numbers_are_computed_as_they_are(function: Callable[[Tensor], Tensor]) -> None:
    """None of them is missing: lengths are read off masks (``mask.max(1)``), neighbours counted (``edges @ edges``)."""
    numbers = torch.randint(0, 5, (3, 4), generator=torch.Generator().manual_seed(0))
    with MissingData():
        found = function(numbers)
    assert found.dtype == function(numbers).dtype and torch.equal(found, function(numbers))
