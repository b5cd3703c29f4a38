"""Devices, as users name them."""

from __future__ import annotations

import torch

from graphprune.errors import UsageError


def check_device(device: str) -> None:
    """Raise UsageError for anything but ``cpu`` and ``cuda``, and for a device that is not here."""
    if device not in ("cpu", "cuda"):
        raise UsageError(f"There is no device {device!r}; choose cpu or cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("There is no CUDA device here that torch can use. Choose the device cpu, or another machine.")
