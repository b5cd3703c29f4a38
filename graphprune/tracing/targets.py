"""How calls that the tracer sees are spelled as graph nodes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import cache
from types import FunctionType, MethodDescriptorType, MethodWrapperType, WrapperDescriptorType
from typing import Any, Final, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn import init

from graphprune.resizers import module_resizer
from graphprune.tracing.tensor_types import of_sizes

_NAMES: Final = (
    "add sub mul truediv floordiv mod pow matmul eq ne lt le gt ge neg pos invert abs getitem setitem "
    "iadd isub imul itruediv and_ or_ xor lshift rshift"
)
_OPERATORS: Final = {f"__{name.strip('_')}__": getattr(operator, name) for name in _NAMES.split(" ")} | {
    "__div__": operator.truediv,
    "__idiv__": operator.itruediv,
}
_SWAPPED: Final = {
    "__radd__": operator.add, "__rsub__": operator.sub, "__rmul__": operator.mul, "__rdiv__": operator.truediv,
    "__rtruediv__": operator.truediv, "__rpow__": operator.pow, "__rfloordiv__": operator.floordiv, "__rmod__": operator.mod,
    "__rmatmul__": operator.matmul,
}  # fmt: skip

# The C slots of binary arithmetic announce themselves as these methods; the sign reads better.
_SIGNS: Final = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv, "matmul": operator.matmul}


# Factories of data: with the same arguments the same numbers each time. (Those of zeros and ones are sizes above all.)
CONSTANT_FACTORIES: Final = frozenset({torch.arange, torch.tensor, torch.as_tensor, torch.linspace, torch.logspace, torch.eye})

# Those that are calls all the same where a layer's width says how many numbers: what goes together in them their own rules say.
KEPT_AS_CALLS: Final = frozenset({torch.eye})

_IN_PLACE: Final = "add sub mul div truediv floordiv mod pow matmul and or xor lshift rshift"
_WRITING: Final = {"__setitem__"} | {f"__i{name}__" for name in _IN_PLACE.split(" ")}


class Target(NamedTuple):
    """Operation and target of an fx node. swapped: the first two arguments change places. attribute: follows the first."""

    op: str
    target: Any
    swapped: bool = False
    attribute: str = ""


@cache
def spell(func: Any, binary: bool) -> Target:
    """The node for a call as ``__torch_function__`` announces it; binary: it has two positional arguments and no others."""
    if isinstance(func, MethodWrapperType):  # the getter of a property
        return Target("call_function", getattr, attribute=getattr(func.__self__, "__name__", ""))
    name = func.__name__ if isinstance(func, (MethodDescriptorType, WrapperDescriptorType)) else _PYTHON_METHODS.get(func)
    if name is not None:
        if name in _SWAPPED:
            return Target("call_function", _SWAPPED[name], swapped=True)
        sign = _OPERATORS.get(name) or (_SIGNS.get(name) if binary else None)
        return Target("call_method", name) if sign is None else Target("call_function", sign)
    return Target("call_function", func)


# Methods of tensors that are Python functions; some are wrapped under another name.
_PYTHON_METHODS: Final = {method: name for name, method in vars(torch.Tensor).items() if isinstance(method, FunctionType)}


# Functions of torch.nn.functional that restate widths of their own (head counts): their bodies are traced instead.
_OPENED: Final = {F.multi_head_attention_forward: {"has_torch_function": lambda _: False}}


def _new(tensor: torch.Tensor, *given: Any, **options: Any) -> Any:
    """``x.new(n, m)`` of older code, which makes an empty tensor of sizes, one of data, or another object of a tensor."""
    if given and isinstance(given[0], torch.Tensor):
        return given[0].view(given[0].shape)
    sizes = of_sizes(given)
    return tensor.new_tensor(given[0], **options) if sizes is None else tensor.new_empty(tuple(sizes), **options)


def _renorm(input: torch.Tensor, p: float, dim: int, maxnorm: float) -> torch.Tensor:
    others = [axis for axis in range(input.dim()) if axis != dim % input.dim()]
    norm = torch.linalg.vector_norm(input, p, others, keepdim=True)
    return input * torch.where(norm > maxnorm, maxnorm / (norm + 1e-7), 1.0)


def _logdet(matrix: torch.Tensor) -> torch.Tensor:
    found = torch.linalg.slogdet(matrix)
    return torch.add(found[1], found[0].log())


def _within(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of ``torch.nn.init`` as the calls that it makes."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with patch.object(torch.overrides, "has_torch_function_variadic", lambda *_: False):
            return function(*args, **kwargs)

    return call


# Calls that are traced as others. Those that take sizes from another tensor: sizes that go along with a width can follow it, a
# tensor's shape as a whole cannot. Memory that is not filled, under a name that says so; what has no rule but its parts do; and
# what writes a NaN, which stands for what is missing when the slim model is proved.
_AS_OTHERS: Final[dict[Any, Callable[..., Any]]] = {
    torch.Tensor.expand_as: lambda tensor, other: tensor.expand(other.shape),
    torch.Tensor.view_as: lambda tensor, other: tensor.view(other.shape),
    torch.Tensor.reshape_as: lambda tensor, other: tensor.reshape(other.shape),
    torch.Tensor.new: _new,
    torch.logdet: _logdet,
    torch.Tensor.logdet: _logdet,
    torch.renorm: _renorm,
    torch.Tensor.renorm: _renorm,
    **{function: _within(function) for function in (init.uniform_, init.normal_, init.constant_, init.kaiming_uniform_)},
}


@cache
def opened(func: Any) -> Callable[..., Any] | None:
    """The body of a function that is traced through: the same code, which does not announce itself; None for all others."""
    changes = _OPENED.get(func)
    if changes is None:
        return _AS_OTHERS.get(func)
    body = FunctionType(func.__code__, func.__globals__ | changes, func.__name__, func.__defaults__)
    body.__kwdefaults__ = func.__kwdefaults__
    return body


def writes(func: Any) -> bool:
    """Whether a call writes into its first argument."""
    name = getattr(func, "__name__", "")
    return name in _WRITING or (name.endswith("_") and not name.endswith("__"))


def is_layer(module: nn.Module) -> bool:
    """Whether calls of the module are one node: it can follow new widths, and nothing is hooked into it."""
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    return module_resizer(module) is not None or (is_bare(module) and type(module).__module__.startswith("torch.nn.modules."))


def is_bare(module: nn.Module) -> bool:
    """Whether a module has neither tensors nor modules in it."""
    return not (module._parameters or module._buffers or module._modules)
