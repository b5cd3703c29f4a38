"""Structural checks: graph, module attributes and tensor shapes agree. Cheap enough to run after every pass.

``fx.Graph.lint`` sees neither shapes nor module attributes, so a half-done rewrite passes it. What is checked here is
consistency within the module; that it computes the right thing is for :mod:`graphprune.verification` to prove.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy


@dataclass(frozen=True)
class Problem:
    """One inconsistency.

    place: the graph node or the tensor. check: what was looked at; (place, check) identifies the problem. message: the
    whole finding, for people.
    """

    place: str
    check: str
    message: str


Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


def find_problems(module: fx.GraphModule) -> list[Problem]:
    """Everything that is inconsistent in a graph module; an empty list for a sound one.

    Checked: ``fx.Graph.lint``; targets of get_attr and call_module nodes exist; the attributes of the usual torch.nn
    layers that the graph calls agree with the shapes of their tensors; no parameter or buffer has an axis of size zero.
    """
    problems = [problem for node in module.graph.nodes for problem in _node_problems(module, node)]
    if not any(problem.check == "target" for problem in problems):  # lint would only say the same, less precisely
        problems += _lint(module)
    return problems + list(_tensor_problems(module))


def graph_text(module: fx.GraphModule) -> str:
    """The graph as Python source, with the shape and dtype of every parameter and buffer as comments.

    Two modules with equal texts run the same operators on tensors of the same shapes.
    """
    tensors = itertools.chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
    lines = [f"# {name}: {_describe(tensor)}" for name, tensor in tensors]
    return "\n".join([module.graph.python_code("self").src.strip(), "", *lines, ""])


def _describe(tensor: torch.Tensor) -> str:
    if is_lazy(tensor):
        return "uninitialised"
    return f"{str(tensor.dtype).removeprefix('torch.')}[{', '.join(map(str, tensor.shape))}]"


def _node_problems(module: fx.GraphModule, node: fx.Node) -> Iterator[Problem]:
    if node.op not in ("get_attr", "call_module"):
        return
    found, value = _lookup(module, str(node.target))
    if not found:
        yield Problem(node.name, "target", f"node {node.name} ({node.op}) refers to {node.target}, which the module does not have")
    elif node.op == "call_module" and not isinstance(value, nn.Module):
        yield Problem(node.name, "target", f"node {node.name} calls {node.target}, which is no module but {type(value).__name__}")
    elif node.op == "call_module":
        for check, message in _layer_problems(value):
            yield Problem(node.name, check, f"node {node.name} calls {node.target}, whose {message}")


def _lookup(module: nn.Module, path: str) -> tuple[bool, Any]:
    value: Any = module
    for name in path.split("."):
        if not hasattr(value, name):
            return False, None
        value = getattr(value, name)
    return True, value


def _layer_problems(layer: nn.Module) -> Iterator[tuple[str, str]]:
    kind = next((cls for cls in type(layer).__mro__ if cls in _LAYERS), None)
    if kind is None:
        return
    for name, expected in _LAYERS[kind](layer).items():
        tensor = getattr(layer, name, None)
        if isinstance(tensor, torch.Tensor) and not is_lazy(tensor) and tuple(tensor.shape) != expected:
            yield name, f"{name} has shape {tuple(tensor.shape)} where its attributes ({layer.extra_repr()}) say {expected}"


def _tensor_problems(module: nn.Module) -> Iterator[Problem]:
    for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        if is_lazy(tensor):
            yield Problem(name, "size", f"tensor {name} is uninitialised")
        elif 0 in tensor.shape:
            yield Problem(name, "size", f"tensor {name} has shape {tuple(tensor.shape)}, with nothing left of an axis")


def _lint(module: fx.GraphModule) -> list[Problem]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module.graph.lint()
    except (RuntimeError, ValueError) as error:
        text = str(error).strip().splitlines()[0]
        return [Problem("graph", "lint", f"graph does not lint: {text}")]
    return []


def _convolution(layer: Any) -> Shapes:
    weight = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
    return {"weight": weight, "bias": (layer.out_channels,)}


def _transposed_convolution(layer: Any) -> Shapes:
    weight = (layer.in_channels, layer.out_channels // layer.groups, *layer.kernel_size)
    return {"weight": weight, "bias": (layer.out_channels,)}


def _linear(layer: Any) -> Shapes:
    return {"weight": (layer.out_features, layer.in_features), "bias": (layer.out_features,)}


def _embedding(layer: Any) -> Shapes:
    return {"weight": (layer.num_embeddings, layer.embedding_dim)}


def _channel_norm(layer: Any) -> Shapes:
    return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (layer.num_features,))


def _group_norm(layer: Any) -> Shapes:
    return dict.fromkeys(("weight", "bias"), (layer.num_channels,))


def _layer_norm(layer: Any) -> Shapes:
    return dict.fromkeys(("weight", "bias"), tuple(layer.normalized_shape))


def _prelu(layer: Any) -> Shapes:
    return {"weight": (layer.num_parameters,)}


_LAYERS: Final[Mapping[type[nn.Module], Callable[[Any], Shapes]]] = {
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.ConvTranspose1d: _transposed_convolution,
    nn.ConvTranspose2d: _transposed_convolution,
    nn.ConvTranspose3d: _transposed_convolution,
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.BatchNorm1d: _channel_norm,
    nn.BatchNorm2d: _channel_norm,
    nn.BatchNorm3d: _channel_norm,
    nn.SyncBatchNorm: _channel_norm,
    nn.InstanceNorm1d: _channel_norm,
    nn.InstanceNorm2d: _channel_norm,
    nn.InstanceNorm3d: _channel_norm,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _layer_norm,
    nn.PReLU: _prelu,
}
