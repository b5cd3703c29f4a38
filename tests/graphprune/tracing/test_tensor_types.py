"""Types of tensors by name or class."""

from __future__ import annotations

import pytest
import torch

from graphprune.tracing.tensor_types import dtype_of, name_of
from graphprune.tracing.writer import Untraceable

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["torch.DoubleTensor", torch.DoubleTensor, torch.float64])
def test_a_type_of_the_same_device_is_a_dtype(kind: object) -> None:
    assert dtype_of(kind, CPU) == torch.float64
    assert name_of(torch.float64, CPU) == "torch.DoubleTensor"


@pytest.mark.parametrize("kind", ["torch.cuda.DoubleTensor", vars(torch.cuda)["DoubleTensor"]])
def test_a_type_of_another_device_is_not_traced(kind: object) -> None:
    with pytest.raises(Untraceable, match="another device"):
        dtype_of(kind, CPU)
