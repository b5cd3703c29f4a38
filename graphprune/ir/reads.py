"""Nodes that read numbers from tensors: what they say depends on data, not on shapes."""

from __future__ import annotations

import operator
from typing import Any, Final

import torch
from torch import fx

_READS: Final[frozenset[Any]] = frozenset({"item", "tolist", torch.equal, torch.allclose})
_NAMES: Final = ("nonzero", "masked_select", "unique", "unique_consecutive", "_unique2", "bincount", "repeat_interleave")
_PACKS: Final = (torch._pack_padded_sequence, torch._pad_packed_sequence)
_SHAPED: Final[frozenset[Any]] = frozenset(_NAMES).union(_PACKS, [getattr(torch, name) for name in _NAMES])


def reads_numbers(node: fx.Node) -> bool:
    """Whether the node's value is a number, or a list of such, that it reads from tensors."""
    return node.target in _READS


def question(node: fx.Node) -> Any:
    """What a node that reads numbers calls, as a function of its arguments."""
    return getattr(torch.Tensor, node.target) if isinstance(node.target, str) else node.target


def depends_on_values(graph: fx.Graph) -> bool:
    """Whether the sizes of what a graph computes, or whether it does compute, depend on the values of integers that it is given."""
    return any(map(_may_depend, graph.nodes))


def _may_depend(node: fx.Node) -> bool:
    by_tensor = node.target is operator.getitem and bool(_nodes_in(node.args[1:]))
    return node.target is torch._assert_async or node.target in _READS | _SHAPED or by_tensor


def _nodes_in(tree: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(tree, found.append)
    return found
