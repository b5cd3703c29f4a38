"""What a model's Python asks of a tensor besides its values.

Sizes and strides remember where they come from; the device is that of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from graphprune.tracing.sizes import Shape, shape_of, stride_of
from graphprune.tracing.writer import Writer


def _shape(writer: Writer, tensor: torch.Tensor) -> Shape:
    return shape_of(writer.operand(tensor))


def _size(writer: Writer, tensor: torch.Tensor, dim: int | None = None) -> Any:
    sizes = _shape(writer, tensor)
    return sizes if dim is None else sizes[dim]


def _stride(writer: Writer, tensor: torch.Tensor, dim: int | None = None) -> Any:
    strided = writer.operand(tensor)
    if dim is not None:
        return stride_of(strided, dim % strided.dim())
    return tuple([stride_of(strided, axis) for axis in range(strided.dim())])


def _numel(writer: Writer, tensor: torch.Tensor) -> Any:
    return math.prod(_shape(writer, tensor))


def _dim(_: Writer, tensor: torch.Tensor) -> int:
    return tensor.dim()


def _dtype(_: Writer, tensor: torch.Tensor) -> torch.dtype:
    return tensor.dtype


def _device(writer: Writer, tensor: torch.Tensor) -> torch.device:
    """An object of its own: where it is passed on, it is that tensor's device."""
    device = torch.device(str(writer.device))
    writer.note_device(device, tensor)
    return device


def _get_device(writer: Writer, _: torch.Tensor) -> int:
    return -1 if writer.device.index is None else writer.device.index


def _is_on(kind: str) -> Callable[[Writer, torch.Tensor], bool]:
    """``tensor.is_cuda`` and its like: of the model's own device, for the model is not to see that its tensors have no values."""
    return lambda writer, _: bool(writer.device.type == kind)


def _check(writer: Writer, condition: Any, message: str = "") -> None:
    """``torch._assert``; of a tensor's values nothing is known. A check that its comparison has just become says the same."""
    if isinstance(condition, torch.Tensor):
        return
    assert condition, message
    last = writer.last_node()
    if message and last is not None and last.target is torch._assert:
        last.args = (last.args[0], message)


FACTS: Final[Mapping[Any, Callable[..., Any]]] = {
    torch.Tensor.shape.__get__: _shape,  # type: ignore[attr-defined]
    torch.Tensor.size: _size,
    torch.Tensor.stride: _stride,
    torch.Tensor.numel: _numel,
    torch.Tensor.nelement: _numel,
    torch.Tensor.dim: _dim,
    torch.Tensor.ndim.__get__: _dim,  # type: ignore[attr-defined]
    torch.Tensor.dtype.__get__: _dtype,  # type: ignore[attr-defined]
    torch.Tensor.device.__get__: _device,
    torch.Tensor.get_device: _get_device,
    torch._assert: _check,
    **{getattr(torch.Tensor, f"is_{kind}").__get__: _is_on(kind) for kind in ("cpu", "cuda", "meta", "mps", "xpu")},
}
"""Answers by the call that asks; each gets the trace's writer, and the arguments."""
