"""Code that does not run as a trace needs it, and what stands in for it: some of torch looks at data for what does not change the
result, and scripted functions call operators that nothing announces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributions import Distribution
from torch.nn.modules import transformer


def _as_told(mask: torch.Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    """Whether a mask is said to be the causal one; if nothing is said it is applied as any other, with the same result."""
    return bool(is_causal)


@contextmanager
def without_hints() -> Iterator[None]:
    """Within, ``nn.TransformerEncoder`` and ``nn.TransformerDecoder`` do not compare their masks with the causal one, and
    distributions do not check their parameters."""
    module: Any = transformer
    before = module._detect_is_causal_mask, Distribution._validate_args
    module._detect_is_causal_mask, Distribution._validate_args = _as_told, False
    try:
        yield
    finally:
        module._detect_is_causal_mask, Distribution._validate_args = before


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
            raise TypeError(f"{function.name} is scripted (TorchScript), it has no Python to trace")
        return source(*args, **kwargs)

    kind.__call__ = call
    try:
        yield
    finally:
        kind.__call__ = before


def python_of(function: Any) -> Any:
    """What a scripted function was made of, as Dynamo finds it; anything else as it is."""
    scripted = isinstance(function, torch.jit.ScriptFunction)
    return getattr(function, "_torchdynamo_inline", function) if scripted else function


@contextmanager
def compiling(announced: bool) -> Iterator[None]:
    """Whether code that asks is told that it is traced."""
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = announced
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before
