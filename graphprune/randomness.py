"""Random numbers of our own, which leave the user's as they are."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode


@contextmanager
def own_randomness() -> Iterator[None]:
    """Leave the generators of torch, numpy and random as they were before the block."""
    with torch.random.fork_rng(), numbers_own():
        yield


@contextmanager
def numbers_own() -> Iterator[None]:
    """Leave the generators of numpy and random as they were before the block."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def seed_generators(seed: int) -> None:
    """Seed torch's own generators, of the CPU and of GPUs that are in use, and those of numpy and random."""
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


class DrawnByIndex(TorchDispatchMode):
    """Within this mode tensors are filled with random numbers in the order of their indices, whatever their layout in memory."""

    supports_higher_order_operators = True  # flex attention: whatever it draws, it draws as it does

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            return func(*args, **kwargs)
        first = args[0] if args and torch.Tag.nondeterministic_seeded in func.tags else None
        if not isinstance(first, torch.Tensor) or first.is_contiguous():
            return func(*args, **kwargs)
        drawn = func(first.contiguous(), *args[1:], **kwargs)
        return first.copy_(drawn) if func._schema.is_mutable else drawn
