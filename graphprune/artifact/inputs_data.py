"""Example inputs as plain data: shapes and dtypes of tensors, and constants as they are.

Contents only of tensors of integers (masks, lengths), and only for a graph that decides by them: it may not run on others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from graphprune.artifact.values import CONSTANTS, field, of_type, shorten
from graphprune.errors import ArtifactError
from graphprune.ir.program import Inputs

MAX_BYTES = 2**33
"""Example inputs larger than this together are refused: they would fill the memory of whoever uses the file."""


MOST_INTEGERS = 2**16
"""Tensors with more elements are written without their contents."""


def _write(value: torch.Tensor, write: Callable[[Any], Any]) -> dict[str, Any]:
    return {"shape": [int(size) for size in value.shape], "dtype": write(value.dtype)}


def _write_integers(value: torch.Tensor, write: Callable[[Any], Any]) -> dict[str, Any]:
    fractional = value.is_floating_point() or value.is_complex()
    if fractional or value.is_meta or value.numel() > MOST_INTEGERS:
        return _write(value, write)
    return _write(value, write) | {"integers": value.flatten().tolist()}


class _Reader:
    """Makes the tensors of one file, as long as there is room."""

    def __init__(self) -> None:
        self._left = MAX_BYTES
        self.read = CONSTANTS.extended({}, {"tensor": self._tensor}).read

    def _tensor(self, data: Any, read: Callable[[Any], Any]) -> torch.Tensor:
        shape = field(data, "shape", list)
        dtype = read(field(data, "dtype", dict))
        sizes = all(type(size) is int and 0 <= size <= MAX_BYTES for size in shape) and len(shape) <= 64
        size = math.prod(shape) * dtype.itemsize if sizes and isinstance(dtype, torch.dtype) else MAX_BYTES + 1
        self._left -= size
        if self._left < 0:
            raise ArtifactError(f"an example input has an impossible shape or dtype: {shorten(data)}")
        if "integers" in data:
            return _of_integers(data, shape, dtype)
        if not size:
            return torch.zeros(shape, dtype=dtype)
        zeros = np.zeros(size, dtype=np.uint8)  # pages of zeros, which take no memory until they are used
        return torch.from_numpy(zeros).view(dtype).view(shape)


def _of_integers(data: dict[str, Any], shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    integers = field(data, "integers", list)
    fractional = dtype.is_floating_point or dtype.is_complex
    if fractional or len(integers) != math.prod(shape) or not all(type(item) in (int, bool) for item in integers):
        raise ArtifactError(f"an example input has other contents than its shape and dtype say: {shorten(data)}")
    try:
        return torch.tensor(integers, dtype=dtype).view(shape)
    except (RuntimeError, OverflowError) as error:
        raise ArtifactError(f"an example input holds an impossible integer: {shorten(data)}") from error


_CODEC = CONSTANTS.extended({torch.Tensor: ("tensor", _write), torch.nn.Parameter: ("tensor", _write)}, {})
_WITH_INTEGERS = CONSTANTS.extended(
    {torch.Tensor: ("tensor", _write_integers), torch.nn.Parameter: ("tensor", _write_integers)}, {}
)


def encode_inputs(inputs: Inputs, *, integers: bool = False) -> dict[str, Any]:
    """Inputs as plain data. Raises ArtifactError for an argument that is neither a tensor nor a constant.

    integers: keep the contents of tensors of integers.
    """
    codec = _WITH_INTEGERS if integers else _CODEC
    try:
        kwargs = {key: codec.write(item) for key, item in inputs.kwargs.items()}
        return {"args": [codec.write(item) for item in inputs.args], "kwargs": kwargs}
    except ArtifactError as error:
        raise ArtifactError(f"an example input cannot be stored: {error}") from error


def decode_inputs(data: Any) -> Inputs:
    """Inputs, with zeros where contents were not kept. Raises ArtifactError for anything that is not allowed."""
    reader = _Reader()
    args = tuple(reader.read(item) for item in field(data, "args", list))
    kwargs = {of_type(key, str, "a keyword"): reader.read(item) for key, item in field(data, "kwargs", dict).items()}
    return Inputs(args, kwargs)
