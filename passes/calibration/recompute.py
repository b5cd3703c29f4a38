"""A backward pass in parts: what is alive between parts is kept, and each part runs again with gradients, the last one first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from graphprune.arithmetic import is_fractional
from graphprune.errors import UsageError
from graphprune.passes.calibration.interpreters import Stepwise

Part: TypeAlias = Sequence[fx.Node]
_Alive: TypeAlias = dict[fx.Node, Any]


class Recomputation:
    """One batch through a graph in parts, forward and back: Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016.

    parts: the nodes of the graph, in their order. arguments: of its placeholders. make: gives an interpreter of the graph on some
    arguments; ``watched`` says whether it shows what it sees to observers. within: gives a block in which a part's weights have
    values. starts: nodes from which on gradients are asked for.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        arguments: Sequence[Any],
        make: Callable[[Sequence[Any], bool], Stepwise],
        within: Callable[[Part], AbstractContextManager[None]],
        starts: set[str],
    ) -> None:
        self._parts, self._arguments, self._make, self._within = parts, arguments, make, within
        self._asks = _reached([node for part in parts for node in part], starts)

    def run(self, end: Callable[[Any], None]) -> Iterator[Stepwise]:
        """Go there and back. Yields the interpreter of each part before it runs, for messages. end: goes back from the result."""
        forward = self._make(self._arguments, False)
        before: list[tuple[_Alive, list[int]]] = []  # what is alive before each part, and how often it was written into
        for part in self._parts:
            before.append((dict(forward.env), [tensor._version for tensor in _tensors(forward.env)]))
            yield forward
            with self._within(part), torch.no_grad():
                forward.advance(part)
        forward.env.clear()
        gradients: Mapping[fx.Node, list[Tensor | None]] = {}
        for index in reversed(range(len(self._parts))):
            alive, versions = before.pop()
            if versions != [tensor._version for tensor in _tensors(alive)]:
                raise UsageError(
                    "The model writes into an activation that an earlier part of it has made, so that this part cannot run again. "
                    "Use a criterion of activations or of weights."
                )
            yield from self._back(index, alive, gradients, end)
            gradients = self._gradients

    def _back(
        self, index: int, alive: _Alive, gradients: Mapping[fx.Node, list[Tensor | None]], end: Callable[[Any], None]
    ) -> Iterator[Stepwise]:
        """Run a part again, and go back through it to what was alive before it."""
        part = self._parts[index]
        done = sum(node.op == "placeholder" for earlier in self._parts[:index] for node in earlier)
        again = self._make(list(islice(self._arguments, done, None)), True)
        leaves: dict[fx.Node, list[Any]] = {}
        for node, value in alive.items():
            found, spec = tree_flatten(value)
            leaves[node] = [self._leaf(node, item) for item in found]
            # Copies of what asks, so that operators which write into their input may do so.
            again.env[node] = tree_unflatten([_copy(item) for item in leaves[node]], spec)
        yield again
        with self._within(part), torch.enable_grad():
            result = again.advance(part)
            if index == len(self._parts) - 1:
                end(result)
            else:
                _go_back(again.env, gradients)
        del result
        again.env.clear()  # which holds the weights, by what made it
        self._gradients = {
            node: [item.grad if isinstance(item, Tensor) else None for item in found] for node, found in leaves.items()
        }

    def _leaf(self, node: fx.Node, item: Any) -> Any:
        if not isinstance(item, Tensor):
            return item
        return item.detach().requires_grad_(node in self._asks and is_fractional(item))


def _copy(item: Any) -> Any:
    return item.clone() if isinstance(item, Tensor) and item.requires_grad else item


def _go_back(alive: Mapping[fx.Node, Any], gradients: Mapping[fx.Node, list[Tensor | None]]) -> None:
    """From what is alive after a part, by the gradients that later parts have found for it."""
    pairs = [
        (value, gradient)
        for node, found in gradients.items()
        for value, gradient in zip(tree_leaves(alive[node]), found, strict=True)
        if gradient is not None and value.requires_grad
    ]
    if pairs:
        values, given = zip(*pairs, strict=True)
        torch.autograd.backward(values, given)


def _tensors(alive: Mapping[fx.Node, Any]) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(list(alive.values())) if isinstance(leaf, Tensor)]


def _reached(nodes: Sequence[fx.Node], starts: set[str]) -> set[fx.Node]:
    """Nodes that depend on some, and these."""
    found: set[fx.Node] = set()
    for node in nodes:
        if node.name in starts or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found
