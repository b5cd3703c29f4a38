"""Example inputs: every way in which they can be given, and whether they fit the model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from graphprune.errors import CaptureError
from graphprune.program import Inputs


def normalise_inputs(example_inputs: Any) -> Inputs:
    """Example inputs as positional and keyword arguments."""
    if isinstance(example_inputs, Inputs):
        return example_inputs
    if isinstance(example_inputs, Mapping):
        return Inputs((), dict(example_inputs))
    if isinstance(example_inputs, (tuple, list)):
        return Inputs(tuple(example_inputs))
    return Inputs((example_inputs,))


def holds_tensor(value: Any) -> bool:
    """Whether there is a tensor anywhere in a structure."""
    return any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(value))


def bind(root: nn.Module, inputs: Inputs) -> inspect.BoundArguments:
    """The arguments by the names of the forward's parameters. Raises CaptureError when they do not fit or hold no tensor."""
    if not holds_tensor((inputs.args, dict(inputs.kwargs))):
        raise CaptureError(
            "The example inputs hold no tensor. Pass a tensor, a tuple of arguments, or a dict of keyword arguments."
        )
    try:
        return inspect.signature(root.forward).bind(*inputs.args, **inputs.kwargs)
    except TypeError as error:
        raise CaptureError(f"The example inputs do not fit {type(root).__name__}.forward: {error}.") from error
