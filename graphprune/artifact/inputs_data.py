"""Example inputs as plain data: shapes and dtypes of tensors, and constants as they are; never the tensors' contents."""

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


def _write(value: torch.Tensor, write: Callable[[Any], Any]) -> dict[str, Any]:
    return {"shape": [int(size) for size in value.shape], "dtype": write(value.dtype)}


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
        if not size:
            return torch.zeros(shape, dtype=dtype)
        zeros = np.zeros(size, dtype=np.uint8)  # pages of zeros, which take no memory until they are used
        return torch.from_numpy(zeros).view(dtype).view(shape)


_CODEC = CONSTANTS.extended({torch.Tensor: ("tensor", _write), torch.nn.Parameter: ("tensor", _write)}, {})


def encode_inputs(inputs: Inputs) -> dict[str, Any]:
    """Inputs as plain data. Raises ArtifactError for an argument that is neither a tensor nor a constant."""
    try:
        kwargs = {key: _CODEC.write(item) for key, item in inputs.kwargs.items()}
        return {"args": [_CODEC.write(item) for item in inputs.args], "kwargs": kwargs}
    except ArtifactError as error:
        raise ArtifactError(f"an example input cannot be stored: {error}") from error


def decode_inputs(data: Any) -> Inputs:
    """Inputs with zeros for tensors. Raises ArtifactError for anything that is not allowed."""
    reader = _Reader()
    args = tuple(reader.read(item) for item in field(data, "args", list))
    kwargs = {of_type(key, str, "a keyword"): reader.read(item) for key, item in field(data, "kwargs", dict).items()}
    return Inputs(args, kwargs)
