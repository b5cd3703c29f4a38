"""Example inputs as plain data: shapes and dtypes of tensors, and constants as they are; never the tensors' contents."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from graphprune.artifact.values import CONSTANTS, field, of_type, shorten
from graphprune.errors import ArtifactError
from graphprune.program import Inputs

MAX_BYTES = 2**33
"""Example inputs larger than this are refused: they would fill the memory of whoever opens the file."""


def _write(value: torch.Tensor, write: Callable[[Any], Any]) -> dict[str, Any]:
    return {"shape": [int(size) for size in value.shape], "dtype": write(value.dtype)}


def _read(data: Any, read: Callable[[Any], Any]) -> torch.Tensor:
    shape = field(data, "shape", list)
    dtype = read(field(data, "dtype", dict))
    sizes = all(type(size) is int and 0 <= size <= MAX_BYTES for size in shape) and len(shape) <= 64
    if not sizes or not isinstance(dtype, torch.dtype) or math.prod(shape) * dtype.itemsize > MAX_BYTES:
        raise ArtifactError(f"an example input has an impossible shape or dtype: {shorten(data)}")
    return torch.zeros(shape, dtype=dtype)


_CODEC = CONSTANTS.extended({torch.Tensor: ("tensor", _write), torch.nn.Parameter: ("tensor", _write)}, {"tensor": _read})


def encode_inputs(inputs: Inputs) -> dict[str, Any]:
    """Inputs as plain data. Raises ArtifactError for an argument that is neither a tensor nor a constant."""
    try:
        kwargs = {key: _CODEC.write(item) for key, item in inputs.kwargs.items()}
        return {"args": [_CODEC.write(item) for item in inputs.args], "kwargs": kwargs}
    except ArtifactError as error:
        raise ArtifactError(f"an example input cannot be stored: {error}") from error


def decode_inputs(data: Any) -> Inputs:
    """Inputs with zeros for tensors. Raises ArtifactError for anything that is not allowed."""
    args = tuple(_CODEC.read(item) for item in field(data, "args", list))
    kwargs = {of_type(key, str, "a keyword"): _CODEC.read(item) for key, item in field(data, "kwargs", dict).items()}
    return Inputs(args, kwargs)
