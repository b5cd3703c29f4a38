"""Functions of torch that look at data for a hint, which only chooses between ways to the same result."""

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
