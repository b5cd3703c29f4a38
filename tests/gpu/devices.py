"""Where the flows run: on a GPU, and those that are quick on the CPU as well, so that only the device is new there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

GPU = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")])

#: Decorators of a test that takes a ``device``.
everywhere = pytest.mark.parametrize("device", ["cpu", GPU])
on_gpu = pytest.mark.parametrize("device", [GPU])


def on(item: Any, device: str) -> bool:
    """Whether all tensors of a module are on a device."""
    return all(tensor.device.type == device for tensor in (*item.parameters(), *item.buffers()))
