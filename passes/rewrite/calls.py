"""How the constants of calls follow the widths: target shapes, split sizes, slice bounds, group counts, paddings, scales."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import fx

from graphprune.resizers import Site, resize_call

_ATEN = torch.ops.aten  # exported programs call operators by overload, with the arguments of the functions


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if position < len(node.args) else node.kwargs.get(name, default)


def _set(node: fx.Node, position: int, name: str, value: Any) -> None:
    if position < len(node.args):
        node.update_arg(position, value)
    else:
        node.update_kwarg(name, value)


def _input(node: fx.Node, name: str = "input") -> fx.Node:
    source = _argument(node, 0, name)
    assert isinstance(source, fx.Node)
    return source


def _resized(site: Site, sizes: Sequence[Any] | fx.Node, expected: Sequence[int]) -> Any:
    """A list of sizes with each element led to its expected value; a whole shape in one node is taken apart if need be."""
    if isinstance(sizes, fx.Node):
        if tuple(site.evaluate(sizes)) == tuple(expected):
            return sizes
        graph = site.node.graph
        with graph.inserting_before(site.node):
            sizes = [graph.call_function(operator.getitem, (sizes, index)) for index in range(len(expected))]
    kind: Any = type(sizes)
    return kind(site.size(size, want) for size, want in zip(sizes, expected, strict=True))


def _resize_sizes(site: Site, position: int, name: str, expected: Sequence[int]) -> None:
    """Sizes given as one list argument, or as the rest of the positional arguments."""
    node = site.node
    given = _argument(node, position, name)
    if isinstance(given, torch.dtype):
        return
    whole = isinstance(given, (tuple, list)) or (isinstance(given, fx.Node) and not isinstance(site.evaluate(given), int))
    if whole:
        _set(node, position, name, _resized(site, given, expected))
    elif given is not None:
        node.args = (*node.args[:position], *_resized(site, tuple(node.args[position:]), expected))


@resize_call(
    "view",
    "reshape",
    "expand",
    "broadcast_to",
    "new_zeros",
    "new_ones",
    "new_empty",
    "new_full",
    torch.reshape,
    torch.broadcast_to,
    _ATEN.view.default,
    _ATEN.reshape.default,
    _ATEN.expand.default,
    _ATEN.broadcast_to.default,
    _ATEN._unsafe_view.default,
    _ATEN.new_zeros.default,
    _ATEN.new_ones.default,
    _ATEN.new_empty.default,
    _ATEN.new_full.default,
)
def shape_of_output(site: Site) -> None:
    """The size arguments restate the output's shape; -1 keeps inferring."""
    name = "size" if str(site.node.target).startswith(("new_", "expand", "broadcast_to")) else "shape"
    _resize_sizes(site, 1, name, site.new_shape(site.node))


@resize_call(
    torch.zeros,
    torch.ones,
    torch.empty,
    torch.rand,
    torch.randn,
    torch.full,
    _ATEN.zeros.default,
    _ATEN.ones.default,
    _ATEN.empty.memory_format,
    _ATEN.rand.default,
    _ATEN.randn.default,
    _ATEN.full.default,
)
def created(site: Site) -> None:
    """``torch.zeros(size)`` and its kin: size restates the output's shape."""
    _resize_sizes(site, 0, "size", site.new_shape(site.node))


@resize_call(torch.eye, _ATEN.eye.default, _ATEN.eye.m)
def identity(site: Site) -> None:
    """``torch.eye(n, m)``: m is n where it is not given."""
    for position, name in enumerate(("n", "m")):
        given = _argument(site.node, position, name)
        if given is not None:
            _set(site.node, position, name, site.size(given, site.new_shape(site.node)[position]))


@resize_call("repeat", _ATEN.repeat.default)
def repeat(site: Site) -> None:
    """An axis of size 1 is repeated as often as its output is long; the others keep their number of copies."""
    source = _input(site.node, "self")
    lead = len(site.new_shape(site.node)) - len(site.new_shape(source))
    old = (1,) * lead + tuple(site.new_shape(source))
    expected = [new // max(1, size) for new, size in zip(site.new_shape(site.node), old, strict=True)]
    _resize_sizes(site, 1, "repeats", expected)


@resize_call("repeat_interleave", torch.repeat_interleave, _ATEN.repeat_interleave.self_int)
def repeat_interleave(site: Site) -> None:
    """``repeat_interleave(x, repeats, dim, output_size=None)``: as many copies of each index as the output has room for."""
    node, source = site.node, _input(site.node, "input" if callable(site.node.target) else "self")
    repeats, axis, size = (_argument(node, at, name) for at, name in ((1, "repeats"), (2, "dim"), (3, "output_size")))
    if not isinstance(site.evaluate_old(repeats), int):
        return
    shape = site.new_shape(source)
    length, expected = math.prod(shape) if axis is None else shape[axis], site.new_shape(node)[axis or 0]
    _set(node, 1, "repeats", site.size(repeats, expected // max(1, length)))
    if size is not None:
        _set(node, 3, "output_size", site.size(size, expected))


@resize_call("unflatten", torch.unflatten, _ATEN.unflatten.int)
def unflatten(site: Site) -> None:
    """``unflatten(x, dim, sizes)``: sizes restate the axes that dim becomes."""
    node = site.node
    axis = _argument(node, 1, "dim") % len(site.new_shape(_input(node)))
    sizes = _argument(node, 2, "sizes")
    count = len(site.evaluate(sizes) if isinstance(sizes, fx.Node) else sizes)
    _set(node, 2, "sizes", _resized(site, sizes, site.new_shape(node)[axis : axis + count]))


#: Calls that take sizes, and how they call them.
_SECTIONS: Final[Mapping[Any, str]] = {
    "split": "split_size",
    "split_with_sizes": "split_sizes",
    torch.split: "split_size_or_sections",
    _ATEN.split_with_sizes.default: "split_sizes",
}


@resize_call(
    "split",
    "chunk",
    "tensor_split",
    "split_with_sizes",
    torch.split,
    torch.chunk,
    torch.tensor_split,
    _ATEN.split.Tensor,
    _ATEN.split.sizes,
    _ATEN.split_with_sizes.default,
    _ATEN.chunk.default,
    _ATEN.tensor_split.sections,
    _ATEN.tensor_split.indices,
)
def split(site: Site) -> None:
    """Parts that the call as it is would not make of the kept channels are split by explicit sizes."""
    node = site.node
    axis = _argument(node, 2, "dim", 0)
    source = _input(node, "input" if node.op == "call_function" else "self")
    if site.takes_apart():
        return
    sizes = [shape[axis] for shape in site.new_shapes(node)]
    if node.target in _SECTIONS:
        alike = isinstance(_argument(node, 1, _SECTIONS[node.target]), int) and len(set(sizes)) == 1
        _set(node, 1, _SECTIONS[node.target], sizes[0] if alike else sizes)
        return
    with node.graph.inserting_before(node):
        parts = node.graph.call_function(torch.split, (source, sizes), {"dim": axis})
    parts.meta = dict(node.meta)
    site.replace(node, parts)


@resize_call("narrow", torch.narrow, _ATEN.narrow.default)
def narrow(site: Site) -> None:
    """``narrow(x, dim, start, length)``: both count kept indices."""
    node = site.node
    source = _input(node)
    axis = _argument(node, 1, "dim") % len(site.old_shape(source))
    kept = site.kept(source, axis)
    if kept is not None:
        start = site.evaluate_old(_argument(node, 2, "start"))
        _set(node, 2, "start", site.size(_argument(node, 2, "start"), int(kept[:start].sum())))
        _set(node, 3, "length", site.size(_argument(node, 3, "length"), site.new_shape(node)[axis]))


@resize_call(_ATEN.slice.Tensor)
def slice_(site: Site) -> None:
    """``slice(x, dim, start, end, step)``: as ``x[start:end:step]`` on one axis."""
    node = site.node
    source = _input(node)
    axis = _argument(node, 1, "dim", 0) % len(site.old_shape(source))
    bounds = slice(_argument(node, 2, "start"), _argument(node, 3, "end"), _argument(node, 4, "step", 1))
    new = _resized_slice(site, source, axis, bounds)
    if new is not bounds:
        node.args = (source, axis, new.start, new.stop, new.step)
        node.kwargs = {}


@resize_call(operator.getitem)
def getitem(site: Site) -> None:
    """``x[a:b, i, ...]`` on a tensor: bounds and positions count the kept indices before them."""
    source, index = site.node.args
    if isinstance(source, fx.Node) and site.is_tensor(source):
        site.node.args = (source, _resized_index(site, source, index))


@resize_call(operator.setitem)
def setitem(site: Site) -> None:
    """``x[a:b, i, ...] = value``: as when it is read."""
    source, index, value = site.node.args
    assert isinstance(source, fx.Node)
    site.node.args = (source, _resized_index(site, source, index), value)


@resize_call("select", torch.select, _ATEN.select.int)
def select(site: Site) -> None:
    """``select(x, dim, index)``: the index counts the kept ones before it."""
    node = site.node
    source = _input(node, "input" if node.op == "call_function" else "self")
    axis = _argument(node, 1, "dim") % len(site.old_shape(source))
    _set(node, 2, "index", _resized_position(site, source, axis, _argument(node, 2, "index")))


@resize_call("index_select", torch.index_select, _ATEN.index_select.default)
def index_select(site: Site) -> None:
    """``index_select(x, dim, index)``: a constant index counts the kept places that it names."""
    node = site.node
    source = _input(node, "input" if node.op == "call_function" else "self")
    axis = _argument(node, 1, "dim") % len(site.old_shape(source))
    _set(node, 2, "index", site.places(_argument(node, 2, "index"), source, axis))


@resize_call(_ATEN.index.Tensor)
def index(site: Site) -> None:
    """The operator behind ``x[:, i]``: as the call."""
    source, indices = _input(site.node), _argument(site.node, 1, "indices")
    site.node.args = (source, [item if item is None else site.places(item, source, axis) for axis, item in enumerate(indices)])


def _resized_index(site: Site, source: fx.Node, index: Any) -> Any:
    items = index if isinstance(index, tuple) else (index,)
    consumed = sum(1 for item in items if item is not None and item is not Ellipsis)
    axis = 0
    result: list[Any] = []
    for item in items:
        if item is Ellipsis:
            axis += len(site.old_shape(source)) - consumed
        if isinstance(item, slice):
            item = _resized_slice(site, source, axis, item)
        elif _is_position(site, item):
            item = _resized_position(site, source, axis, item)
        elif item is not None and item is not Ellipsis:
            item = site.places(item, source, axis)
        result.append(item)
        axis += item is not None and item is not Ellipsis
    return tuple(result) if isinstance(index, tuple) else result[0]


def _is_position(site: Site, item: Any) -> bool:
    if isinstance(item, fx.Node):
        return not site.is_tensor(item) and isinstance(site.evaluate_old(item), int)
    return isinstance(item, int) and not isinstance(item, bool)


def _resized_position(site: Site, source: fx.Node, axis: int, item: Any) -> Any:
    kept = site.kept(source, axis)
    if kept is None or kept.all():
        return item
    return (
        site.size(item, int(kept[: int(site.evaluate_old(item)) % len(kept)].sum()))
        if isinstance(item, fx.Node)
        else int(kept[: item % len(kept)].sum())
    )


def _resized_slice(site: Site, source: fx.Node, axis: int, item: slice) -> slice:
    kept = site.kept(source, axis)
    if kept is None or kept.all():
        return item
    start, stop, step = slice(*map(site.evaluate_old, (item.start, item.stop, item.step))).indices(len(kept))
    offset = start % step  # runs of ``step`` neighbours are kept whole, and one of each is taken
    stop = start + len(range(start, stop, step)) * step - offset if step > 1 else stop

    def bound(value: Any, new: int) -> Any:
        return value if value is None else site.size(value, new) if isinstance(value, fx.Node) else new

    begin, end = int(kept[: start - offset].sum()) + offset, int(kept[:stop].sum())
    return slice(bound(item.start, begin), bound(item.stop, end), item.step)


@resize_call(F.pad, torch._C._nn.pad, _ATEN.pad.default, _ATEN.constant_pad_nd.default)
def pad(site: Site) -> None:
    """Amounts on a labelled axis count the kept indices of the padding."""
    node = site.node
    source, amounts = _input(node), _argument(node, 1, "pad")
    rank = len(site.old_shape(source))
    if isinstance(amounts, fx.Node):
        return
    result = list(amounts)
    for pair in range(len(amounts) // 2):
        axis = rank - 1 - pair
        outside, inside = site.kept(node, axis), site.kept(source, axis)
        if outside is None and inside is None:
            continue
        for side in (0, 1):
            amount = int(site.evaluate_old(amounts[2 * pair + side]))
            mask = outside if amount > 0 else inside
            if amount and mask is not None:
                edge = mask[: abs(amount)] if side == 0 else mask[-abs(amount) :]
                result[2 * pair + side] = site.size(amounts[2 * pair + side], int(edge.sum()) * (1 if amount > 0 else -1))
    _set(node, 1, "pad", type(amounts)(result))


@resize_call(F.layer_norm, torch.layer_norm, F.rms_norm, _ATEN.layer_norm.default, _ATEN.rms_norm.default)
def layer_norm(site: Site) -> None:
    """normalized_shape restates the last axes of the input."""
    node = site.node
    given = _argument(node, 1, "normalized_shape")
    count = len(site.evaluate(given) if isinstance(given, fx.Node) else given)
    _set(node, 1, "normalized_shape", _resized(site, given, site.new_shape(_input(node))[-count:]))


@resize_call(F.group_norm, torch.group_norm, _ATEN.group_norm.default)
def group_norm(site: Site) -> None:
    """num_groups is a kept count where whole groups go."""
    groups = _argument(site.node, 1, "num_groups")
    _set(site.node, 1, "num_groups", site.size(groups, site.scalar("num_groups", site.evaluate(groups))))


@resize_call(
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
    *(getattr(getattr(_ATEN, f"conv{n}d"), overload) for n in (1, 2, 3) for overload in ("default", "padding")),
    _ATEN.conv_transpose1d.default,
    _ATEN.conv_transpose2d.input,
    _ATEN.conv_transpose3d.input,
)
def convolution(site: Site) -> None:
    """groups is a kept count where whole groups go; it stands at the same place in all of them."""
    _groups(site, 6)


@resize_call(_ATEN.convolution.default)
def any_convolution(site: Site) -> None:
    """The operator behind them all has its groups last."""
    _groups(site, 8)


def _groups(site: Site, position: int) -> None:
    groups = _argument(site.node, position, "groups", 1)
    old = int(site.evaluate_old(groups))
    new = site.scalar("groups", old)
    if new != old:
        _set(site.node, position, "groups", site.size(groups, new))


@resize_call(F.scaled_dot_product_attention, _ATEN.scaled_dot_product_attention.default)
def attention(site: Site) -> None:
    """The implicit scale ``head_dim ** -0.5`` stays that of the original."""
    node = site.node
    query = _input(node, "query")
    old = site.old_shape(query)[-1]
    if old != site.new_shape(query)[-1] and _argument(node, 6, "scale") is None:
        _set(node, 6, "scale", old**-0.5)


@resize_call(torch.channel_shuffle, F.channel_shuffle, _ATEN.channel_shuffle.default)
def channel_shuffle(site: Site) -> None:
    """groups is a kept count where every channel is a group; any other shuffle is redone as a whole."""
    groups = _argument(site.node, 1, "groups")
    _set(site.node, 1, "groups", site.size(groups, site.scalar("groups", site.evaluate(groups))))
