"""Tensors on their way into a safetensors file and out of it: one entry for each, with what the format does not keep.

safetensors keeps dtype, shape and bytes. Whether a tensor is a Parameter, whether it requires a gradient, and its memory format are
facts written beside it. A tensor object that has several names (tied weights) has one entry, under its first name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from graphprune.artifact import values
from graphprune.errors import ArtifactError

_NAMES = (
    "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 complex64 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool"
)
_STORABLE = frozenset(getattr(torch, name) for name in _NAMES.split())


@dataclass
class TensorTable:
    """Collects the tensors of a module while it is written.

    tensors: entry name -> tensor, detached; facts: entry name -> what the format does not keep, as plain data.
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    _entries: dict[int, str] = field(default_factory=dict)

    def add(self, name: str, tensor: torch.Tensor) -> str:
        """The entry of a tensor: its own name, or the first name of a tied one. Raises ArtifactError where it has no data."""
        if id(tensor) not in self._entries:
            if type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.layout != torch.strided or tensor.is_quantized:
                raise ArtifactError(f"the tensor {name} ({type(tensor).__name__}, {tensor.layout}) is not a plain dense tensor")
            if tensor.dtype not in _STORABLE:
                raise ArtifactError(f"the tensor {name} has dtype {tensor.dtype}, which safetensors cannot hold")
            if tensor.is_meta:
                raise ArtifactError(f"the tensor {name} is on the meta device and has no data")
            self._entries[id(tensor)] = name
            self.tensors[name] = tensor.detach()
            self.facts[name] = _facts(tensor)
        return self._entries[id(tensor)]


def _facts(tensor: torch.Tensor) -> dict[str, Any]:
    shape, stride = tuple(tensor.shape), tuple(tensor.stride())
    keeps = stride != _contiguous(shape) and _dense(shape, stride)
    return {
        "dtype": values.CONSTANTS.write(tensor.dtype),
        "shape": list(shape),
        "stride": list(stride) if keeps else None,
        "parameter": isinstance(tensor, nn.Parameter),
        "requires_grad": tensor.requires_grad,
    }


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(max(size, 1) for size in shape[axis + 1 :]) for axis in range(len(shape)))


def _dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether the strides are those of a permuted contiguous tensor: no gaps, no overlap (axes of size 1 may have any in reach)."""
    if len(shape) != len(stride) or not all(0 <= step <= max(math.prod(shape), 1) for step in stride):
        return False
    expected = 1
    for step, size in sorted((step, size) for step, size in zip(stride, shape, strict=True) if size != 1):
        if step != expected:
            return False
        expected *= size
    return True


def restore(facts: Any, stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a file as they were: entry name -> tensor or Parameter, independent of the file.

    facts: what :class:`TensorTable` collected. Raises ArtifactError when an entry is missing, is too many, or
    is not what its facts say.
    """
    facts = values.of_type(facts, dict, "the table of tensors")
    for missing in [*(set(facts) - set(stored)), *(set(stored) - set(facts))]:
        raise ArtifactError(f"the tensor {values.shorten(missing)} is in the table or in the file, but not in both")
    return {name: _restore(name, record, stored[name]) for name, record in facts.items()}


def _restore(name: str, record: Any, stored: torch.Tensor) -> torch.Tensor:
    dtype = values.CONSTANTS.read(values.field(record, "dtype", dict))
    shape = values.field(record, "shape", list)
    if dtype != stored.dtype or shape != list(stored.shape):
        found = f"{stored.dtype} {list(stored.shape)}"
        raise ArtifactError(f"the tensor {values.shorten(name)} is {found}, but its table says {dtype} {values.shorten(shape)}")
    grad = values.field(record, "requires_grad", bool)
    if grad and not (dtype.is_floating_point or dtype.is_complex):
        raise ArtifactError(f"the tensor {values.shorten(name)} of {dtype} cannot require a gradient")
    tensor = torch.empty_strided(tuple(shape), _stride(name, record, tuple(shape)), dtype=dtype).copy_(stored)
    if values.field(record, "parameter", bool):
        return nn.Parameter(tensor, requires_grad=grad)
    return tensor.requires_grad_(grad)


def _stride(name: str, record: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    stride = record.get("stride")
    if stride is None:
        return _contiguous(shape)
    if any(type(step) is not int for step in values.of_type(stride, list, "a stride")) or not _dense(shape, tuple(stride)):
        raise ArtifactError(f"the tensor {values.shorten(name)} has strides {values.shorten(stride)} that do not fit its shape")
    return tuple(stride)
