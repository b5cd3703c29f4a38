"""Arithmetic with unknown data: which elements of a model's values are the same constant whatever its inputs are.

NaN marks an element that depends on the inputs. Only moves and operators known to pass NaN on are trusted with it; of all others,
all results are unknown if any operand is. So what is not NaN is proved to be constant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

Rule = Callable[..., Any]

_RULES: dict[str, Rule] = {}

_NAMES: Final = """
add add_ sub sub_ mul mul_ div div_ neg rsub exp log sqrt rsqrt abs reciprocal
relu relu_ gelu silu silu_ mish sigmoid sigmoid_ tanh tanh_ softplus elu elu_ leaky_relu leaky_relu_
hardtanh hardtanh_ clamp clamp_ hardswish hardswish_ hardsigmoid hardsigmoid_ _prelu_kernel
view _unsafe_view permute transpose transpose_ t t_ unsqueeze unsqueeze_ squeeze squeeze_ expand
slice select cat stack split split_with_sizes unbind clone
_to_copy detach alias constant_pad_nd index_select flip roll
avg_pool2d avg_pool3d _adaptive_avg_pool2d mean sum upsample_nearest2d upsample_bilinear2d
"""

#: Operators all of whose results are NaN where an operand is: element by element, moves, and averages.
TRANSPARENT: Final = frozenset(f"aten::{name}" for name in _NAMES.split())


def _handles(*operators: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        _RULES.update({f"aten::{name}": function for name in operators})
        return function

    return register


class UnknownData(TorchDispatchMode):
    """Within this mode NaN means: depends on the inputs (see the module's docstring)."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._unknown: dict[int, Tensor] = {}  # tensors of integers and booleans, which hold no NaN, by their storage

    def hide(self, tensor: Tensor) -> Tensor:
        """An input of unknown content."""
        if tensor.is_floating_point():
            return torch.full_like(tensor, torch.nan)
        self._unknown[tensor.untyped_storage()._cdata] = tensor
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        hidden = any(operand.untyped_storage()._cdata in self._unknown for operand in operands)
        if not hidden and name in _RULES:
            return _RULES[name](func, *args, **kwargs)
        unknown = hidden or any(operand.is_floating_point() and bool(operand.isnan().any()) for operand in operands)
        moves = not func._schema.is_mutable and any(given.alias_info is not None for given in func._schema.returns)
        if not unknown or (not hidden and (moves or name in TRANSPARENT)):
            return func(*args, **kwargs)
        if func._schema.is_mutable:
            return self._cover(args[0], in_place=True)
        # NaN can be an index out of bounds to a kernel that is not made for it.
        args, kwargs = tree_map(lambda leaf: _known(leaf) if isinstance(leaf, Tensor) else leaf, (args, kwargs))
        return tree_map(lambda leaf: self._cover(leaf) if isinstance(leaf, Tensor) else leaf, func(*args, **kwargs))

    def _cover(self, result: Tensor, *, in_place: bool = False) -> Tensor:
        if result.is_floating_point():
            return result.fill_(torch.nan) if in_place else torch.full_like(result, torch.nan)
        self._unknown[result.untyped_storage()._cdata] = result
        return result


_ANY: Final = 0.5  # of a count: what fast algorithms of convolutions leave of zero is less


def _known(tensor: Tensor) -> Tensor:
    return tensor if not tensor.is_floating_point() else tensor.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)


def _unknown(tensor: Tensor) -> Tensor:
    return tensor.isnan().to(tensor.dtype)


def _matters(tensor: Tensor) -> Tensor:
    """1 where a factor is not known to be zero."""
    return ((tensor != 0) | tensor.isnan()).to(tensor.dtype)


@_handles("convolution")
def _convolution(func: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    result: Tensor = func(_known(x), weight, bias, *rest)
    reached: Tensor = func(_unknown(x), _matters(weight), None, *rest)
    return result.masked_fill(reached > _ANY, torch.nan)


@_handles("mm", "bmm")
def _product(func: Any, a: Tensor, b: Tensor) -> Tensor:
    result: Tensor = func(_known(a), _known(b))
    reached = func(_unknown(a), _matters(b)) + func(_matters(a), _unknown(b))
    return result.masked_fill(reached > _ANY, torch.nan)


@_handles("addmm", "baddbmm")
def _biased_product(func: Any, c: Tensor, a: Tensor, b: Tensor, **kwargs: Any) -> Tensor:
    result: Tensor = func(c, _known(a), _known(b), **kwargs)
    zero = torch.zeros_like(c)
    reached = func(zero, _unknown(a), _matters(b)) + func(zero, _matters(a), _unknown(b))
    return result.masked_fill(reached > _ANY, torch.nan)


@_handles("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
def _batch_norm(func: Any, x: Tensor, weight: Tensor | None, *rest: Any, **kwargs: Any) -> Any:
    result = func(_known(x), weight, *rest, **kwargs)
    gone = x.isnan()
    if weight is not None:
        gone = gone & (weight != 0).view(1, -1, *[1] * (x.dim() - 2))
    return (result[0].masked_fill(gone, torch.nan), *result[1:])
