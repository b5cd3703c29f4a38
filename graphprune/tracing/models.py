"""What can be captured: modules of Python with plain tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from graphprune.errors import CaptureError
from graphprune.ir.twins import checked_module, named_tensors, unwrapped


def check_plain(root: nn.Module) -> None:
    """Raise CaptureError for weights that are no plain tensors: quantised ones, of which no slices can be scored or cut."""
    for name, tensor in named_tensors(root).items():
        if is_traceable_wrapper_subclass(tensor) or tensor.is_quantized:
            kind = tensor.dtype if tensor.is_quantized else type(tensor).__name__
            raise CaptureError(
                f"{name} of {type(root).__name__} is no plain tensor but of {kind}. Prune the model first, and quantise the slim "
                "one."
            )


def checked_model(model: Any) -> nn.Module:
    """The model without wrappers. Raises CaptureError for what is no module, or a scripted one."""
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(
            f"{type(model).__name__} is a scripted (TorchScript) model, which has no Python to trace. "
            "Capture the model before torch.jit.script or torch.jit.trace."
        )
    blank = next((name for name, tensor in named_tensors(checked_module(model)).items() if is_lazy(tensor)), None)
    if blank is not None:
        raise CaptureError(f"{blank} of {type(model).__name__} is lazy and has no shape yet. Run the model once before.")
    return unwrapped(model)
