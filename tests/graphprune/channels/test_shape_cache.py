"""The shape cache makes what the operator would make, whatever layouts and sizes came before."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graphprune.channels.shape_cache import ShapeCache

aten = torch.ops.aten
SIZES = st.sampled_from([1, 2, 3, 5])
LAYOUTS = st.sampled_from(["plain", "transposed", "expanded", "channels last"])


def operand(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> Tensor:
    if layout == "transposed":
        return torch.empty(shape[::-1], dtype=dtype, device="meta").permute(*reversed(range(len(shape))))
    if layout == "expanded":
        return torch.empty((1, *shape[1:]), dtype=dtype, device="meta").expand(shape)
    result = torch.empty(shape, dtype=dtype, device="meta")
    return result.contiguous(memory_format=torch.channels_last) if layout == "channels last" else result


def layout_of(tensor: Tensor) -> Any:
    """Shape, dtype, and the strides that matter: an axis of size 1 may have any."""
    strides = tuple(step for size, step in zip(tensor.shape, tensor.stride(), strict=True) if size > 1)
    return tuple(tensor.shape), strides, tensor.dtype


@st.composite
def calls(draw: Any) -> tuple[Any, tuple[Any, ...]]:
    """An element-wise call on one or two operands of four axes, which broadcast."""
    shape = tuple(draw(SIZES) for _ in range(4))
    other = tuple(draw(st.sampled_from([1, n])) for n in shape)
    dtypes = st.sampled_from([torch.float32, torch.float64])
    one, two = operand(shape, draw(LAYOUTS), draw(dtypes)), operand(other, draw(LAYOUTS), draw(dtypes))
    binary = draw(st.sampled_from([aten.add.Tensor, aten.mul.Tensor, aten.maximum.default]))
    unary = draw(st.sampled_from([aten.relu.default, aten.neg.default, aten.clone.default]))
    return draw(st.sampled_from([(binary, (one, two)), (binary, (two, one)), (unary, (one,))]))  # type: ignore[no-any-return]


@settings(max_examples=40, derandomize=True, deadline=None, database=None)
@given(st.lists(calls(), min_size=5, max_size=25), st.booleans())
def test_element_wise_calls_of_any_layout(sequence: list[Any], any_size: bool) -> None:
    cache = ShapeCache()
    for func, operands in sequence * 2:
        assert layout_of(cache.run(func, operands, {}, any_size)) == layout_of(func(*operands))


@settings(max_examples=30, derandomize=True, deadline=None, database=None)
@given(st.lists(st.tuples(SIZES, SIZES, SIZES, st.booleans()), min_size=4, max_size=20))
def test_products_and_reductions(sequence: list[tuple[int, int, int, bool]]) -> None:
    cache = ShapeCache()
    for m, k, n, flipped in sequence * 2:
        a = torch.empty((k, m), device="meta").t() if flipped else torch.empty((m, k), device="meta")
        b = torch.empty((k, n), device="meta")
        assert layout_of(cache.run(aten.mm.default, (a, b), {})) == layout_of(a @ b)
        assert layout_of(cache.run(aten.sum.dim_IntList, (a, [1], flipped), {})) == layout_of(a.sum(1, keepdim=flipped))
        for found, wanted in zip(cache.run(aten.split.Tensor, (b, 2), {}), b.split(2), strict=True):
            assert layout_of(found) == layout_of(wanted)


def test_in_place_calls_return_their_operand_and_views_share_memory() -> None:
    cache = ShapeCache()
    for _ in range(3):
        x = torch.empty(2, 3, device="meta")
        assert cache.run(aten.relu_.default, (x,), {}, True) is x
        view = cache.run(aten.view.default, (x, [6]), {})
        assert view.untyped_storage()._cdata == x.untyped_storage()._cdata
        fresh = cache.run(aten.relu.default, (x,), {}, True)
        assert fresh.untyped_storage()._cdata != x.untyped_storage()._cdata
