"""Example inputs: every way in which they can be given, and whether they fit the model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from graphprune.errors import CaptureError
from graphprune.ir.handed import Taken
from graphprune.ir.program import Inputs


@dataclass(frozen=True)
class ModuleCall:
    """A call of a module: its path in the model (empty for the model itself), its arguments, and what of them other calls make."""

    path: str
    inputs: Inputs
    taken: tuple[Taken, ...] = ()


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


def options_of(arguments: Sequence[tuple[str, Any]], positional: int) -> dict[str, Any]:
    """The arguments that hold no tensor and that a slim model can take, too: plain values, with no positional tensor behind them.

    arguments: names and values in order, of which the first ones are ``positional``. Sizes (``x.shape``) become tuples.
    """
    last = max((place for place, (_, value) in enumerate(arguments[:positional]) if holds_tensor(value)), default=-1)
    options = [(name, tuple(value) if type(value) is torch.Size else value) for name, value in arguments[last + 1 :]]
    return {name: value for name, value in options if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    """Whether code can state a value as it is: None, a number or a text, or a tuple or list of such."""
    if type(value) in (tuple, list):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def argument_names(module: nn.Module) -> Iterator[str]:
    """Names of the positional arguments, without end where the forward takes any number of them."""
    for name, parameter in inspect.signature(module.forward).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            yield from (f"{name}_{index}" for index in count())
        yield name


def with_names(module: nn.Module, args: Sequence[Any]) -> list[tuple[str, Any]]:
    """Positional arguments with their names; without any, no signature is read, which takes a while."""
    return list(zip(argument_names(module), args, strict=False)) if args else []


def check_inputs(root: nn.Module, inputs: Inputs) -> None:
    """Raise CaptureError when the inputs hold no tensor, or none with elements, or do not fit the model's forward."""
    if not holds_tensor((inputs.args, dict(inputs.kwargs))):
        raise CaptureError(
            f"The example inputs hold no tensor{_instead(inputs)}. "
            "Pass a tensor, a tuple of arguments, or a dict of keyword arguments."
        )
    tensors = [leaf for leaf in tree_leaves((inputs.args, dict(inputs.kwargs))) if isinstance(leaf, torch.Tensor)]
    if not any(tensor.numel() for tensor in tensors):
        raise CaptureError(
            f"The example inputs ({inputs.describe()}) have no elements, and sizes of zero stand for no others. "
            "Give a batch with something in it."
        )
    try:
        inspect.signature(root.forward).bind(*inputs.args, **inputs.kwargs)
    except TypeError as error:
        hint = ""
        if inputs.kwargs and "unexpected" not in str(error):
            hint = " A dict is taken as keyword arguments; for a forward that takes one, give ({...},)."
        elif len(inputs.args) > 1 and "too many" in str(error):
            hint = (
                " A tuple or list is taken as arguments; a batch is one tensor, and for a forward that takes a list, give ([...],)."
            )
        raise CaptureError(
            f"The example inputs ({inputs.describe()}) do not fit {type(root).__name__}.forward: {error}.{hint}"
        ) from error


def _instead(inputs: Inputs) -> str:
    """What there is in example inputs instead of tensors, and how to make tensors of it."""
    leaves = tree_leaves((inputs.args, dict(inputs.kwargs)))
    if any(isinstance(leaf, np.ndarray) for leaf in leaves):
        return ", but an array of numpy: torch.from_numpy makes a tensor of it"
    if any(hasattr(leaf, "__iter__") and not isinstance(leaf, str) for leaf in leaves):
        return ", but what gives batches: take one of them, next(iter(...))"
    if leaves and all(isinstance(leaf, (int, float)) for leaf in leaves):
        return ", but numbers: torch.zeros makes a tensor of a shape, torch.tensor of data"
    return ""
