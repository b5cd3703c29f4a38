"""Types of tensors as older code names them: ``x.type()``, ``y.type("torch.FloatTensor")``, ``y.type(torch.FloatTensor)``.

They also make tensors, of sizes or of data, in calls that torch does not announce: ``torch.FloatTensor(n, m)``.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes

from graphprune.tracing.source import in_brackets, source_line
from graphprune.tracing.untraced import Untraceable

LIFTS: Final = torch.ops.aten.lift_fresh.default
"""What a type runs that makes a tensor of data, as no call of torch announces it: ``torch.FloatTensor([1.0])``."""

EMPTY: Final = torch.ops.aten.empty.memory_format
"""What a type runs that makes a tensor of sizes."""


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
    if kind is torch.Tensor:  # which stands for the type of tensors made without one
        kind = torch.Tensor().type()
    if isinstance(kind, str):
        kind = attrgetter(kind.removeprefix("torch."))(torch)
    if isinstance(kind, torch.dtype):
        return kind
    name = f"{kind.__module__}.{kind.__name__}"
    if name != name_of(kind.dtype, device):
        raise Untraceable(f"{name} is a type of tensors on another device than the model's")
    return kind.dtype  # type: ignore[no-any-return]


def of_sizes(given: tuple[Any, ...]) -> Any:
    """The sizes that the arguments of a type are, or of ``x.new``; None for data."""
    sizes = given[0] if len(given) == 1 and isinstance(given[0], torch.Size) else given
    return sizes if all(isinstance(size, int) for size in sizes) else None


def _making(kind: Any) -> Callable[..., Any]:
    """The type's calls, as the calls of functions that say the same."""

    def make(*given: Any, **options: Any) -> Any:
        dtype = torch.get_default_dtype() if kind is torch.Tensor else kind.dtype
        if given and not options and (sizes := of_sizes(given)) is not None:
            return torch.empty(tuple(sizes), dtype=dtype)
        is_data = len(given) == 1 and isinstance(given[0], (list, tuple, np.ndarray))
        return torch.tensor(given[0], dtype=dtype, **options) if is_data else kind(*given, **options)

    make.__name__ = kind.__name__
    return make


MAKING: Final = {
    kind: _making(kind)
    for kind in (torch.Tensor, *vars(torch).values())
    if kind is torch.Tensor or type(kind) is type(torch.FloatTensor)
}
"""What stands for a type, where it is called by its name."""


def check_made(func: Any, args: Any) -> None:
    """Raise Untraceable for a tensor of sizes that a type has made under another name, since they may be others in another call.

    So may integers among its data, which the type reads without asking; of other numbers it asks each what it is.
    """
    if func is EMPTY and any(args[0]):
        raise Untraceable(f"a type of tensors makes one of sizes{in_brackets(source_line())}; torch.empty does so for any sizes")
    if func is LIFTS and not (args[0].is_floating_point() or args[0].is_complex()) and args[0].numel():
        raise Untraceable(f"a type of tensors makes one of integers{in_brackets(source_line())}; torch.tensor does so for any")
