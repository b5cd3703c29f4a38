"""Types of tensors as older code names them: ``x.type()``, ``y.type("torch.FloatTensor")``, ``y.type(torch.FloatTensor)``."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from graphprune.tracing.untraced import Untraceable


def typed(tensor: torch.Tensor, dtype: Any = None, non_blocking: bool = False, **_: Any) -> Any:
    """``tensor.type()`` as on the model's own device, or ``tensor.type(dtype)``, which a device is no part of."""
    device = tensor.device
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        known = name_of(tensor.dtype, device) if dtype is None else dtype_of(dtype, device)
    return known if dtype is None else tensor.to(known)


def name_of(dtype: torch.dtype, device: torch.device) -> str:
    """The name of the type that tensors of this dtype have on a device.

    >>> name_of(torch.float32, torch.device("cpu"))
    'torch.FloatTensor'
    """
    return torch.empty(0, dtype=dtype, device=device).type()


def dtype_of(kind: Any, device: torch.device) -> torch.dtype:
    """The dtype of a type, which is one itself, a class or the name of one. Raises Untraceable for a type of another device."""
    if isinstance(kind, str):
        kind = attrgetter(kind.removeprefix("torch."))(torch)
    if isinstance(kind, torch.dtype):
        return kind
    name = f"{kind.__module__}.{kind.__name__}"
    if name != name_of(kind.dtype, device):
        raise Untraceable(f"{name} is a type of tensors on another device than the model's")
    return kind.dtype  # type: ignore[no-any-return]
