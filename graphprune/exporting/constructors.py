"""Layers of ``torch.nn`` as the calls that make them: ``nn.Conv2d(3, 16, (3, 3), bias=False)``.

Layers keep what they were made with as attributes of the same names. A call is taken for one that makes the layer only if it
does: what it makes has the same attributes, and tensors of the same names, shapes and dtypes.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import nn

from graphprune.errors import ArtifactError
from graphprune.ir.twins import named_tensors

_OWN: Final = frozenset(nn.Module().__dict__)
_DERIVED: Final = ("_flat_weights", "_flat_weight_refs")  # what recurrent layers make of their parameters
_RECURRENT: Final = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size")
_SIGNATURES: Final[Mapping[type[nn.Module], tuple[str, ...]]] = {
    nn.RNN: (*_RECURRENT, "nonlinearity"),
    nn.LSTM: _RECURRENT,
    nn.GRU: _RECURRENT,
}
"""What layers take that do not say so in their signatures."""


def call_of(layer: nn.Module) -> str:
    """The call that makes this layer, whatever the values of its tensors. Raises ArtifactError where there is none."""
    kind = type(layer)
    home = _home(kind)
    for positional, named in _guesses(layer):
        if _makes(layer, positional, named):
            for name in list(named):  # of (1, 1) and 1 the default is one
                fewer = {key: value for key, value in named.items() if key != name}
                named = fewer if _makes(layer, positional, fewer) else named
            arguments = [*map(repr, positional), *(f"{name}={value!r}" for name, value in named.items())]
            return f"{home}.{kind.__name__}({', '.join(arguments)})"
    raise ArtifactError(f"no call of {kind.__name__} makes a layer with these settings")


def _home(kind: type[nn.Module]) -> str:
    """The shortest path that a class has: modules may be hidden by functions of their names, as torchvision's stochastic_depth."""
    if getattr(nn, kind.__name__, None) is kind:
        return "nn"
    parts = kind.__module__.split(".")
    homes = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return next(home for home in homes if getattr(sys.modules[home], kind.__name__, None) is kind)


def _guesses(layer: nn.Module) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """Arguments that may have made a layer: all that are not at their defaults, by what its attributes say."""
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for parameter in _parameters(type(layer)):
        value = _value(layer, parameter)
        if parameter.default is inspect.Parameter.empty:
            if value is not inspect.Parameter.empty:
                positional.append(value)
        elif value is not inspect.Parameter.empty and value != parameter.default:
            named[parameter.name] = value
    yield positional, named
    dtype = next((tensor.dtype for tensor in layer.parameters() if tensor.is_floating_point()), torch.float32)
    yield positional, named | {"dtype": dtype}


def _parameters(kind: type[nn.Module]) -> list[inspect.Parameter]:
    hidden = _SIGNATURES.get(kind)
    if hidden is None:
        found = list(inspect.signature(kind).parameters.values())
        return [one for one in found if one.kind is not one.VAR_KEYWORD and one.kind is not one.VAR_POSITIONAL]
    base = inspect.signature(nn.RNNBase).parameters
    return [base.get(name, inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default="tanh")) for name in hidden]


def _value(layer: nn.Module, parameter: inspect.Parameter) -> Any:
    """What an attribute says of an argument: itself; of a tensor, whether there is one; nothing where there is no attribute."""
    found = getattr(layer, parameter.name, inspect.Parameter.empty)
    if isinstance(parameter.default, bool) and (found is None or isinstance(found, torch.Tensor)):
        return found is not None
    return inspect.Parameter.empty if isinstance(found, (torch.Tensor, nn.Module)) or callable(found) else found


def _makes(layer: nn.Module, positional: list[Any], named: dict[str, Any]) -> bool:
    try:
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            made = type(layer)(*positional, **named)
        return _described(made, made) == _described(layer, made) and _tensors(made) == _tensors(layer)
    except Exception:  # arguments that are not its own, or settings that do not compare
        return False


def _described(layer: nn.Module, made: nn.Module) -> list[Any]:
    others = dict(made.named_modules())
    return [(name, type(one), _settings(one, others[name])) for name, one in layer.named_modules()]


def _settings(layer: nn.Module, made: nn.Module) -> dict[str, Any]:
    """Attributes that the layer's class reads. Others are notes of somebody else: transformers marks what it has initialised."""
    known = {*made.__dict__, *dir(type(layer))} - _OWN
    return {name: value for name, value in layer.__dict__.items() if name in known and name not in _DERIVED}


def _tensors(layer: nn.Module) -> dict[str, tuple[type, torch.Size, torch.dtype, bool]]:
    kept = {name.rpartition(".")[2] for one in layer.modules() for name in one._non_persistent_buffers_set}
    return {
        name: (type(tensor), tensor.shape, tensor.dtype, name.rpartition(".")[2] in kept)
        for name, tensor in named_tensors(layer).items()
    }
