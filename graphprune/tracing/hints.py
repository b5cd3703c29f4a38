"""Functions that do not run as a trace needs it: some of torch look at data for a hint, which only chooses between ways to the
same result; scripted ones call operators that nothing announces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules import transformer


def _as_told(mask: torch.Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    """Whether a mask is said to be the causal one; if nothing is said it is applied as any other, with the same result."""
    return bool(is_causal)


@contextmanager
def without_hints() -> Iterator[None]:
    """``nn.TransformerEncoder`` and ``nn.TransformerDecoder`` do not compare their masks with the causal one within."""
    module: Any = transformer
    before = module._detect_is_causal_mask
    module._detect_is_causal_mask = _as_told
    try:
        yield
    finally:
        module._detect_is_causal_mask = before


@contextmanager
def without_scripts() -> Iterator[None]:
    """Within, functions of ``torch.jit.script`` are the Python functions that they were made of where calls are announced to a
    mode; those that were made of none cannot be traced."""
    kind: Any = torch.jit.ScriptFunction
    before = kind.__call__

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        if not torch._C._is_torch_function_mode_enabled():
            return before(function, *args, **kwargs)
        source = python_of(function)
        if source is function:
            raise RuntimeError(f"{function.name} is scripted (TorchScript), it has no Python to trace")
        return source(*args, **kwargs)

    kind.__call__ = call
    try:
        yield
    finally:
        kind.__call__ = before


def python_of(function: Any) -> Any:
    """What a scripted function was made of; anything else as it is."""
    scripted = isinstance(function, torch.jit.ScriptFunction)
    return getattr(function, "_torchdynamo_inline", function) if scripted else function
