"""Code of torch that looks at data, or that cannot be looked into, and what stands in for it while a model is traced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributions import Distribution
from torch.nn.modules import transformer


def _as_told(mask: torch.Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    """Whether a mask is said to be the causal one; if nothing is said it is applied as any other, with the same result."""
    return bool(is_causal)


def python_of(function: Any) -> Callable[..., Any] | None:
    """The Python function that a function of TorchScript was made of, as Dynamo finds it; None for one that was traced."""
    return getattr(function, "_torchdynamo_inline", None)


@contextmanager
def without_hints() -> Iterator[None]:
    """Within, nothing of torch looks at data for what does not change the result, and scripted functions run their Python.

    ``nn.TransformerEncoder`` and ``nn.TransformerDecoder`` do not compare their masks with the causal one, distributions do not
    check their parameters. TorchScript would run past the tracer, with the sizes of the example for good.
    """
    module: Any = transformer
    scripted: Any = torch.jit.ScriptFunction
    before = module._detect_is_causal_mask, Distribution._validate_args, scripted.__call__

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        if not torch._C._is_torch_function_enabled():  # in a module that runs as it is
            return before[2](function, *args, **kwargs)
        body = python_of(function)
        if body is None:
            raise TypeError(f"{function.name} is a function of TorchScript that was traced; it has no Python to trace")
        return body(*args, **kwargs)

    module._detect_is_causal_mask, Distribution._validate_args, scripted.__call__ = _as_told, False, call
    try:
        yield
    finally:
        module._detect_is_causal_mask, Distribution._validate_args, scripted.__call__ = before
