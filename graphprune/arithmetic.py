"""Arithmetic of its own precision, whatever switches and libraries say: for proofs, and for what is compared across devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

# What decides how float32 products are rounded. Convolutions on a GPU are in TF32, with 10 bits, unless told otherwise.
_BACKENDS: Final[Any] = torch.backends  # whose types do not tell of all switches
_SWITCHES: Final = (
    _BACKENDS.cuda.matmul,
    _BACKENDS.cudnn.conv,
    _BACKENDS.cudnn.rnn,
    _BACKENDS.mkldnn.matmul,
    _BACKENDS.mkldnn.conv,
    _BACKENDS.mkldnn.rnn,
)
_AS_IT_IS: Final = ("none", "ieee")


def _calls(*names: str) -> frozenset[Any]:
    """What a node calls where a graph says this: ATen's operators, as exported programs have them."""
    packets = [getattr(torch.ops.aten, name) for name in names]
    return frozenset(packets) | {getattr(packet, overload) for packet in packets for overload in packet.overloads()}


#: Calls that libraries run as one kernel over all steps of a sequence.
RECURRENT: Final = _calls("lstm", "gru", "rnn_tanh", "rnn_relu") | {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}
_ATTENTION: Final = _calls("scaled_dot_product_attention") | {F.scaled_dot_product_attention}


def is_fractional(tensor: torch.Tensor) -> bool:
    """Whether a tensor is of numbers that gradients go through, real or complex: not of integers or truths."""
    return tensor.is_floating_point() or tensor.is_complex()


def real_parts(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor; of a complex one the real and imaginary parts, on an axis at the end."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


@contextmanager
def callers_modes_off() -> Iterator[None]:
    """Without the inference mode and the autocast that the caller may be in, also as a decorator.

    In inference mode torch does not take composed operators apart, and what it makes can never be trained.
    """
    with torch.inference_mode(False), _autocast_off():
        yield


@contextmanager
def _autocast_off() -> Iterator[None]:
    accelerator = torch.accelerator.current_accelerator()
    with ExitStack() as stack:
        for kind in ("cpu", *([] if accelerator is None else [accelerator.type])):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def full_precision() -> Iterator[None]:
    """Products of float32 numbers are taken in float32, not in TF32 or bfloat16, whatever switches and autocast say; these are as
    before afterwards.

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
        with _autocast_off():
            yield
    finally:
        for switch, precision in coarse:
            switch.fp32_precision = precision


@contextmanager
def taken_apart(target: Any) -> Iterator[None]:
    """What a graph node calls runs as separate products and element-wise operators, whatever fused kernels there are for it."""
    if target in _ATTENTION:
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
