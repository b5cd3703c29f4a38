"""Arithmetic with missing data: the original model, run at full width, as if removed channels did not exist.

NaN marks an element that does not exist. Element-wise operators and views need nothing: NaN goes where the element
goes. Only what *combines* elements must leave the missing ones out: products and sums read them as zero, means and
variances count the present ones, extrema and softmax pass over them, and a result made of nothing is missing.

This is the oracle of verification. It sees ATen operators and the plan's kept indices, and shares no code, no labels
and no shapes with the analysis or the rewriter. An error of theirs shows as a wrong number or as a NaN that reaches a
channel which the plan keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from graphprune.arithmetic import is_fractional

Handler = Callable[..., Any]

_HANDLERS: dict[str, Handler] = {}


def _handles(*operators: str) -> Callable[[Handler], Handler]:
    def register(function: Handler) -> Handler:
        _HANDLERS.update({name if "::" in name else f"aten::{name}": function for name in operators})
        return function

    return register


class MissingData(TorchDispatchMode):
    """Within this mode NaN means missing (see the module's docstring). Weights and inputs must be free of other NaNs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = _HANDLERS.get(func._schema.name)
        if handler is None or _of_whole_numbers(args, kwargs):
            return func(*args, **(kwargs or {}))
        return handler(func, *args, **(kwargs or {}))


def _of_whole_numbers(args: Any, kwargs: Any) -> bool:
    """Whether what an operator reads are integers and truths alone, of which none is missing."""
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    return bool(given) and not any(is_fractional(tensor) for tensor in given)


def present(tensor: Tensor) -> Tensor:
    """Missing elements read as zero."""
    if tensor.is_floating_point():
        return tensor.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    return tensor.masked_fill(tensor.isnan(), 0) if tensor.is_complex() else tensor


def _absent(tensor: Tensor, dims: Sequence[int]) -> Tensor:
    """Where every element along ``dims`` is missing; of an axis that the model itself leaves empty none is."""
    missing = tensor.isnan()
    for dim in sorted({d % tensor.dim() for d in dims}, reverse=True):
        missing = missing.all(dim) & (missing.shape[dim] > 0)
    return missing


# -- products ------------------------------------------------------------------------------------------------------------


@_handles("convolution", "_convolution")
def _convolution(func: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any, **kwargs: Any) -> Tensor:
    transposed, groups = bool(rest[3]), int(rest[5])
    result: Tensor = func(present(x), present(weight), None if bias is None else present(bias), *rest, **kwargs)
    if transposed:
        gone = _absent(weight.unflatten(0, (groups, -1)).flatten(3), [1, 3]).flatten()
    else:
        gone = _absent(weight, range(1, weight.dim()))
    shape = [1] * result.dim()
    shape[1] = -1
    read = [1, *(axis for axis in range(2, x.dim()) if transposed or not _reads_its_own_place(axis - 2, weight, *rest[:2]))]
    return result.masked_fill(
        gone.view(shape) | _absent(x, read).view([1 if d in read else n for d, n in enumerate(x.shape)]), torch.nan
    )


def _reads_its_own_place(axis: int, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> bool:
    """Whether each place of a convolution's result is made of one place of its input along an axis of space."""
    return (weight.shape[2 + axis], stride[axis % len(stride)], padding[axis % len(padding)]) == (1, 1, 0)


@_handles("torchvision::deform_conv2d")
def _deformable(func: Any, x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *rest: Any) -> Tensor:
    result: Tensor = func(present(x), present(weight), offset, mask, present(bias), *rest)
    return result.masked_fill(_absent(weight, range(1, weight.dim())).view(1, -1, 1, 1), torch.nan)


@_handles("mm", "bmm")
def _matmul(func: Any, a: Tensor, b: Tensor) -> Tensor:
    gone = _absent(a, [-1]).unsqueeze(-1) | _absent(b, [-2]).unsqueeze(-2)
    result: Tensor = func(present(a), present(b))
    return result.masked_fill(gone, torch.nan)


@_handles("addmm", "baddbmm")
def _add_matmul(func: Any, c: Tensor, a: Tensor, b: Tensor, **kwargs: Any) -> Tensor:
    gone = _absent(a, [-1]).unsqueeze(-1) | _absent(b, [-2]).unsqueeze(-2)
    result: Tensor = func(present(c), present(a), present(b), **kwargs)
    return result.masked_fill(gone | c.isnan(), torch.nan)


@_handles("_grouped_mm", "transformers::grouped_mm_fallback")
def _grouped_matmul(func: Any, x: Tensor, weight: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
    """Rows times the matrix of their expert; forms without a rule are never cut."""
    result: Tensor = func(present(x), present(weight), *rest, **kwargs)
    if x.dim() != 2 or weight.dim() != 3:
        return result
    return result.masked_fill(_absent(x, [1]).unsqueeze(1) | _absent(weight, [0, 1]), torch.nan)


@_handles("mv")
def _matvec(func: Any, a: Tensor, b: Tensor) -> Tensor:
    result: Tensor = func(present(a), present(b))
    return result.masked_fill(_absent(a, [-1]), torch.nan)


@_handles("dot", "vdot")
def _dot(func: Any, a: Tensor, b: Tensor) -> Any:
    return func(present(a), present(b))


@_handles(
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
def _attention(func: Any, q: Tensor, k: Tensor, v: Tensor, *rest: Any, **kwargs: Any) -> Any:
    kwargs.setdefault("scale", q.shape[-1] ** -0.5)
    if kwargs.get("attn_mask") is not None:
        kwargs["attn_mask"] = present(kwargs["attn_mask"])
    first, *others = func(*(present(item) if isinstance(item, Tensor) else item for item in (q, k, v, *rest)), **kwargs)
    gone = _absent(q, [-1]).unsqueeze(-1) | _absent(v, [-2]).unsqueeze(-2)
    return (first.masked_fill(gone, torch.nan), *others)


@_handles("_trilinear")
def _trilinear(func: Any, a: Tensor, b: Tensor, c: Tensor, *expanded: Any, **kwargs: Any) -> Tensor:
    for dims, index in zip(expanded[:3], range(3), strict=True):
        for dim in dims:
            a, b, c = (t.unsqueeze(dim) if place == index else t for place, t in enumerate((a, b, c)))
    product, summed = a * b * c, list(expanded[3])
    return present(product).sum(summed).masked_fill(_absent(product, summed), torch.nan)


@_handles("constant_pad_nd")
def _pad(func: Any, x: Tensor, amounts: Sequence[int], value: Any = 0) -> Any:
    """Padding of what does not exist does not exist: what is missing all along a padded axis."""
    for pair in range(len(amounts) // 2):
        if any(amounts[2 * pair : 2 * pair + 2]):
            axis = x.dim() - 1 - pair
            gone = _absent(x, [axis]).unsqueeze(axis)
            x = func(x, [0, 0] * pair + list(amounts[2 * pair : 2 * pair + 2]), value).masked_fill(gone, torch.nan)
    return x.clone() if not any(amounts) else x


@_handles("im2col", "col2im", "grid_sampler_2d", "grid_sampler_3d", "max_unpool2d", "max_unpool3d")
def _per_channel(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Places outside read as zero, and so do those that nothing goes to, but not those of a channel that does not exist."""
    result: Tensor = func(present(x), *args, **kwargs)
    name = func._schema.name.partition("::")[2]
    axis = x.dim() - {"im2col": 3, "col2im": 2, "max_unpool2d": 3, "max_unpool3d": 4}.get(name, x.dim() - 1)
    gone = _absent(x, range(axis + 1, x.dim()))
    rows, channels = result.shape[axis], x.shape[axis]
    gone = gone.repeat_interleave(rows // channels, -1) if rows >= channels else gone.unflatten(-1, (rows, -1)).all(-1)
    return result.masked_fill(gone.view(*gone.shape, *[1] * (result.dim() - gone.dim())), torch.nan)


@_handles("tril", "triu")
def _triangle(func: Any, x: Tensor, *args: Any) -> Tensor:
    result: Tensor = func(present(x), *args)
    return result.masked_fill(_absent(x, [-2, -1]).unsqueeze(-1).unsqueeze(-1), torch.nan)


@_handles("view_as_real")
def _parts(func: Any, x: Tensor) -> Any:
    """Of a complex number that is missing both parts are."""
    return func(x.masked_fill_(x.isnan(), complex(torch.nan, torch.nan)))  # in place: it is a view


# -- what puts numbers in the place of others ----------------------------------------------------------------------------


@_handles("where", "masked_fill", "masked_fill_", "fill", "fill_", "zero_", "copy_", "nan_to_num", "fmax", "fmin")
def _replaced(func: Any, *args: Any, **kwargs: Any) -> Any:
    """What does not exist is not replaced, and replaces nothing: it stays missing."""
    floats = [t for t in args if isinstance(t, Tensor) and is_fractional(t)]
    missing = [t.isnan() for t in floats]  # before it is written to
    result = func(*args, **kwargs)
    if not is_fractional(result):
        return result
    for gone in missing:
        if gone.any():
            result = result.masked_fill_(gone, torch.nan) if result is args[0] else result.masked_fill(gone, torch.nan)
    return result


@_handles("index_put", "index_put_")
def _put(func: Any, x: Tensor, indices: Sequence[Tensor | None], source: Tensor, *rest: Any) -> Tensor:
    """What is missing stays so; what is missing all along the places that are written is missing all along the result's axes."""
    sizes = [index.dim() if index is not None and index.dtype in (torch.bool, torch.uint8) else 1 for index in indices]
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    axes = [s + i for s, n, index in zip(starts, sizes, indices, strict=True) if index is not None for i in range(n)]
    places = x[tuple(slice(None) if index is None else index for index in indices)]
    lead = axes[0] if axes[-1] - axes[0] == len(axes) - 1 else 0
    gone = _absent(source.expand(places.shape), range(lead, lead + places.dim() - x.dim() + len(axes)))
    for axis in axes:
        gone = gone.unsqueeze(axis)
    gone = gone | x.isnan()  # before it is written to
    result: Tensor = func(x, indices, source, *rest)
    return result.masked_fill_(gone, torch.nan) if result is x else result.masked_fill(gone, torch.nan)


@_handles(
    *(
        f"{name}{form}"
        for name in ("scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy", "index_reduce")
        for form in ("", "_")
    )
)
def _scattered(func: Any, x: Tensor, dim: int, index: Tensor, source: Any, *rest: Any, **kwargs: Any) -> Tensor:
    """What is missing all along the axis that is scattered into or from is missing all along the result's, written to or not."""
    gone = [_absent(one, [dim]) for one in (x, source) if isinstance(one, Tensor) and one.dim() and is_fractional(one)]
    result: Tensor = func(x, dim, index, source, *rest, **kwargs)
    for missing in [one.unsqueeze(dim) for one in gone]:
        if missing.any() and all(n in (1, size) for n, size in zip(missing.shape, result.shape, strict=True)):
            result = result.masked_fill_(missing, torch.nan) if result is x else result.masked_fill(missing, torch.nan)
    return result


@_handles("_embedding_bag", "_embedding_bag_forward_only")
def _embedding_bag(func: Any, weight: Tensor, *args: Any, **kwargs: Any) -> Any:
    """A bag may be empty, and is zero then, but for columns that do not exist."""
    first, *others = func(weight, *args, **kwargs)
    return (first.masked_fill(_absent(weight, [0]), torch.nan), *others)


@_handles("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted")
def _uninitialised(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Memory that was freed may hold the NaN of what was missing there: none of these elements is missing."""
    return func(*args, **kwargs).zero_()


# -- sums and statistics -------------------------------------------------------------------------------------------------


def _dims(x: Tensor, dim: Any) -> list[int]:
    if dim is None or (isinstance(dim, Sequence) and not dim):
        return list(range(x.dim()))
    return [d % x.dim() for d in (dim if isinstance(dim, Sequence) else [dim])] if x.dim() else []


def _count(x: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    counted: Tensor = (~x.isnan()).sum(dims, keepdim=keepdim) if dims else (~x.isnan()).to(torch.int64)
    return counted


@_handles("sum", "nansum", "norm", "linalg_vector_norm")
def _sum(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    position = 1 if func._schema.name.endswith("norm") else 0  # a norm's exponent comes first
    dims = _dims(x, args[position] if len(args) > position else kwargs.get("dim"))
    keepdim = bool(args[position + 1] if len(args) > position + 1 else kwargs.get("keepdim", False))
    result = func(present(x), *args, **kwargs)
    return result.masked_fill(_count(x, dims, keepdim) == 0, torch.nan)


@_handles("count_nonzero")
def _counted(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    return func(present(x), *args, **kwargs)


@_handles("mean")
def _mean(func: Any, x: Tensor, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Tensor:
    dims = _dims(x, dim)
    total: Tensor = present(x).sum(dims, keepdim=keepdim)
    return total / _count(x, dims, keepdim)  # 0 / 0 is missing


def _moments(x: Tensor, dims: list[int], correction: float) -> tuple[Tensor, Tensor]:
    """Mean and variance over the present elements, dims kept."""
    count = _count(x, dims, True)
    mean = present(x).sum(dims, keepdim=True) / count
    square = present((x - mean) ** 2).sum(dims, keepdim=True)
    return mean, square / (count - correction)


@_handles("var", "std", "var_mean", "std_mean")
def _variance(func: Any, x: Tensor, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    keepdim = bool(kwargs.get("keepdim", False))
    correction = kwargs.get("correction", 1)
    if isinstance(dim, bool):
        dim, correction = None, int(dim)
    elif args:
        correction, keepdim = int(bool(args[0])), bool(args[1]) if len(args) > 1 else keepdim
    dims = _dims(x, dim)
    mean, spread = _moments(x, dims, 1 if correction is None else correction)
    name = func._schema.name
    spread = spread.sqrt() if "std" in name else spread
    if not keepdim:
        spread, mean = (t.squeeze(dims) for t in (spread, mean))
    return (spread, mean) if name.endswith("_mean") else spread


@_handles("native_layer_norm")
def _layer_norm(func: Any, x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
    x = _normalised(x, weight)
    mean, variance = _moments(x, list(range(x.dim() - len(shape), x.dim())), 0)
    scale = (variance + eps).rsqrt()
    return _affine((x - mean) * scale, weight, bias), mean, scale


@_handles("native_batch_norm", "cudnn_batch_norm")
def _batch_norm(
    func: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Any, variance: Any, training: bool, *rest: Any
) -> Any:
    """By statistics of the input itself: over what is present."""
    result = func(x, weight, bias, mean, variance, training, *rest)
    if not training or mean is not None:
        return result
    average, spread = _moments(x, [axis for axis in range(x.dim()) if axis != 1], 0)
    shape = [1, -1] + [1] * (x.dim() - 2)
    affine = [None if t is None else t.view(shape) for t in (weight, bias)]
    return (_affine((x - average) * (spread + rest[-1]).rsqrt(), *affine), *result[1:])


@_handles("_fused_rms_norm", "rms_norm")
def _rms_norm(func: Any, x: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float | None = None) -> Any:
    dims = list(range(x.dim() - len(shape), x.dim()))
    x = _normalised(x, weight)
    square = present(x * x).sum(dims, keepdim=True) / _count(x, dims, True)
    scale = (square + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt()
    result = _affine(x * scale, weight, None)
    return (result, scale) if func._schema.name == "aten::_fused_rms_norm" else result


@_handles("native_group_norm")
def _group_norm(
    func: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, c: int, hw: int, group: int, eps: float
) -> Any:
    shape = [1, c] + [1] * (x.dim() - 2)
    own, shift = [None if t is None else t.view(shape) for t in (weight, bias)]
    grouped = _normalised(x, own).reshape(n, group, -1)
    mean, variance = _moments(grouped, [2], 0)
    scale = (variance + eps).rsqrt()
    normal = ((grouped - mean) * scale).reshape(x.shape)
    return _affine(normal, own, shift), mean.view(n, group), scale.view(n, group)


@_handles("_weight_norm_interface")
def _weight_norm(func: Any, v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    length = present(v).square().sum([d for d in range(v.dim()) if d != dim % v.dim()], keepdim=True).sqrt()
    return v * (g / length), length


def _normalised(x: Tensor, weight: Tensor | None) -> Tensor:
    """What a norm reads: no place that it has no weight for, be it padding, which exists beside whatever channels do."""
    return x if weight is None else x.masked_fill(weight.isnan(), torch.nan)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


@_handles("amax", "amin", "max", "min")
def _extremum(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    if args and isinstance(args[0], Tensor):
        return func(x, *args, **kwargs)
    worst = -torch.inf if func._schema.name in ("aten::amax", "aten::max") else torch.inf
    result = func(x.masked_fill(x.isnan(), worst), *args, **kwargs)
    if isinstance(result, tuple):
        return (result[0].masked_fill(result[0] == worst, torch.nan), *result[1:])
    return result.masked_fill(result == worst, torch.nan)


@_handles("logsumexp")
def _logsumexp(func: Any, x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    result: Tensor = func(x.masked_fill(x.isnan(), -torch.inf), dim, keepdim)
    return result.masked_fill(_count(x, _dims(x, dim), keepdim) == 0, torch.nan)


@_handles("_softmax", "_log_softmax", "_safe_softmax")
def _softmax(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    result: Tensor = func(x.masked_fill(x.isnan(), -torch.inf), *args, **kwargs)
    return result.masked_fill(x.isnan(), torch.nan)
