"""Arithmetic of its own precision, whatever switches and libraries say: for proofs, and for what is compared across devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

# What decides how float32 products are rounded. Convolutions on a GPU are in TF32, with 10 bits, unless told otherwise.
_SWITCHES: Final[tuple[Any, ...]] = (
    torch.backends.cuda.matmul,
    torch.backends.cudnn.conv,
    torch.backends.cudnn.rnn,
    torch.backends.mkldnn.matmul,
    torch.backends.mkldnn.conv,
    torch.backends.mkldnn.rnn,
)
_AS_IT_IS: Final = ("none", "ieee")
#: Calls that libraries run as one kernel over all steps of a sequence.
RECURRENT: Final = frozenset({torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu})


@contextmanager
def full_precision() -> Iterator[None]:
    """Products of float32 numbers are taken in float32, not in TF32 or bfloat16; the switches are as before afterwards.

    >>> torch.backends.cudnn.conv.fp32_precision
    'tf32'
    >>> with full_precision():
    ...     torch.backends.cudnn.conv.fp32_precision
    'ieee'
    """
    coarse = [(switch, switch.fp32_precision) for switch in _SWITCHES if switch.fp32_precision not in _AS_IT_IS]
    try:
        for switch, _ in coarse:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for switch, precision in coarse:
            switch.fp32_precision = precision


@contextmanager
def taken_apart(target: Any) -> Iterator[None]:
    """What a graph node calls runs as separate products and element-wise operators, whatever fused kernels there are for it."""
    if target is F.scaled_dot_product_attention:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    elif target in RECURRENT:
        before = torch.backends.cudnn.enabled, torch.backends.mkldnn.set_flags(_enabled=False)[0]
        torch.backends.cudnn.enabled = False
        try:
            yield
        finally:
            torch.backends.cudnn.enabled = before[0]
            torch.backends.mkldnn.set_flags(_enabled=before[1])
    else:
        yield
