"""Structural checks: graph, module attributes and tensor shapes agree. Cheap enough to run after every pass.

``fx.Graph.lint`` sees neither shapes nor module attributes, so a half-done rewrite passes it; what it does see is looked
at here in the same pass. All this is consistency within the module; that it computes the right thing is for
:mod:`graphprune.verification` to prove.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

from graphprune.ir.twins import modules_by_path, named_tensors


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

    Checked: nodes read only nodes that come before them in the same graph, and have names of their own; what get_attr,
    call_module and call_function nodes refer to exists; the attributes of the usual torch.nn layers that the graph calls
    agree with the shapes of their tensors; no parameter or buffer has an axis of size zero.
    """
    modules = modules_by_path(module)
    seen: dict[fx.Node, None] = {}
    names: set[str] = set()
    problems: list[Problem] = []
    for node in module.graph.nodes:
        found = [*_order_problems(node, seen, names), *_target_problems(module, modules, node)]
        problems += [Problem(node.name, check, f"node {node.name} {message}") for check, message in found]
        seen[node] = None
        names.add(node.name)
    return problems + list(_tensor_problems(module))


def graph_text(module: fx.GraphModule) -> str:
    """The graph as Python source, with the shape and dtype of every parameter and buffer as comments.

    Two modules with equal texts run the same operators on tensors of the same shapes.
    """
    lines = [f"# {name}: {_describe(tensor)}" for name, tensor in named_tensors(module).items()]
    return "\n".join([module.graph.python_code("self").src.strip(), "", *lines, ""])


def _describe(tensor: torch.Tensor) -> str:
    if is_lazy(tensor):
        return "uninitialised"
    return f"{str(tensor.dtype).removeprefix('torch.')}[{', '.join(map(str, tensor.shape))}]"


Findings: TypeAlias = Iterator[tuple[str, str]]  # what was looked at, and the finding


def _order_problems(node: fx.Node, seen: Container[fx.Node], names: Container[str]) -> Findings:
    for source in node.all_input_nodes:
        if source not in seen:
            where = "does not come before it" if source.graph is node.graph else "belongs to another graph"
            yield "order", f"reads {source.name}, which {where}"
    if node.name in names:
        yield "name", "has the name of another node"


def _target_problems(module: fx.GraphModule, modules: Mapping[str, nn.Module], node: fx.Node) -> Findings:
    layer = modules.get(str(node.target)) if node.op == "call_module" else None
    if layer is not None:
        for check, message in _layer_problems(layer):
            yield check, f"calls {node.target}, whose {message}"
    elif node.op in ("get_attr", "call_module"):
        found, value = _lookup(module, modules, str(node.target))
        if not found:
            yield "target", f"({node.op}) refers to {node.target}, which the module does not have"
        elif node.op == "call_module" and not isinstance(value, nn.Module):
            yield "target", f"calls {node.target}, which is no module but {type(value).__name__}"
    elif node.op == "call_function" and not callable(node.target):
        yield "target", f"calls {node.target!r}, which is no function"


def _lookup(module: nn.Module, modules: Mapping[str, nn.Module], path: str) -> tuple[bool, Any]:
    holder, _, last = path.rpartition(".")
    known = modules.get(holder)
    value: Any = module if known is None else known
    for name in path.split(".") if known is None else [last]:
        if not hasattr(value, name):
            return False, None
        value = getattr(value, name)
    return True, value


def _layer_problems(layer: nn.Module) -> Findings:
    shapes = next((_LAYERS[cls] for cls in type(layer).__mro__ if cls in _LAYERS), None)
    for name, expected in shapes(layer).items() if shapes else ():
        tensor = getattr(layer, name, None)
        if isinstance(tensor, torch.Tensor) and not is_lazy(tensor) and tuple(tensor.shape) != expected:
            yield name, f"{name} has shape {tuple(tensor.shape)} where its attributes ({layer.extra_repr()}) say {expected}"


def _tensor_problems(module: nn.Module) -> Iterator[Problem]:
    for name, tensor in named_tensors(module).items():
        if is_lazy(tensor):
            yield Problem(name, "size", f"tensor {name} is uninitialised")
        elif 0 in tensor.shape:
            yield Problem(name, "size", f"tensor {name} has shape {tuple(tensor.shape)}, with nothing left of an axis")


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
    nn.EmbeddingBag: _embedding,
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
