"""Numbers with which layers of torch restate the shapes of their parameters.

The rewriter sees to layers that are calls in the graph. Recurrent layers, and those of derived classes, whose own code is traced,
would keep the old numbers; that code need not read them, but train mode or code around the model may.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd


def _of_convolution(layer: Any) -> Mapping[str, Any]:
    first, second, *extents = layer.weight.shape
    inputs, outputs = (first, second * layer.groups) if layer.transposed else (second * layer.groups, first)
    return {"in_channels": inputs, "out_channels": outputs, "kernel_size": tuple(extents)}


def _of_embedding(layer: Any) -> Mapping[str, int]:
    return dict(zip(("num_embeddings", "embedding_dim"), layer.weight.shape, strict=True))


def _of_recurrence(layer: Any) -> Mapping[str, int]:
    projected = layer.proj_size > 0
    inner = layer.weight_hr_l0 if projected else layer.weight_hh_l0
    return {
        "input_size": layer.weight_ih_l0.shape[1],
        "hidden_size": inner.shape[1],
        "proj_size": inner.shape[0] if projected else 0,
    }


#: Attributes by class, as the weights have them.
_RESTATED: Final[Mapping[type[nn.Module], Callable[[Any], Mapping[str, Any]]]] = {
    nn.Linear: lambda layer: dict(zip(("out_features", "in_features"), layer.weight.shape, strict=True)),
    nn.Embedding: _of_embedding,
    nn.EmbeddingBag: _of_embedding,
    _ConvNd: _of_convolution,
    _NormBase: lambda layer: {"num_features": layer.weight.numel()},
    nn.RNNBase: _of_recurrence,
    nn.GroupNorm: lambda layer: {"num_channels": layer.weight.numel()},
}


def restate(model: nn.Module, original: nn.Module) -> None:
    """Give layers of a slim copy of a model the numbers of their parameters, where those of the original are such."""
    layers = dict(original.named_modules())
    for path, layer in model.named_modules():
        for name, new in _numbers(layer).items():
            if vars(layer).get(name) == _numbers(layers[path]).get(name):
                vars(layer)[name] = new


def _numbers(layer: nn.Module) -> Mapping[str, Any]:
    numbers = next((found for kind, found in _RESTATED.items() if isinstance(layer, kind)), None)
    try:
        return {} if numbers is None else numbers(layer)
    except AttributeError:  # a layer without a weight
        return {}
