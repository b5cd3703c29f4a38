"""Graphs that run one node at a time, and how their nodes are named in messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast
from zlib import crc32

from torch import Tensor, fx
from torch.utils._python_dispatch import _pop_mode_temporarily
from torch.utils._pytree import tree_leaves

from graphprune.arithmetic import is_fractional, taken_apart
from graphprune.channels.tape import plain_containers
from graphprune.passes.calibration.loading import loaded
from graphprune.randomness import seed_generators


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in what something returns, in order, those in output classes included."""
    return [leaf for leaf in tree_leaves(plain_containers(value)) if isinstance(leaf, Tensor)]


class Steps(fx.Interpreter):
    """Runs a graph one node at a time; what no later node reads is freed. weights: what nodes load, if they do. node: the one
    that runs."""

    def __init__(self, module: Any, weights: Mapping[str, Tensor] | None, arguments: list[Any]) -> None:
        super().__init__(module)
        self._weights = weights
        self.extra_traceback = False
        self.args_iter = iter(arguments)
        self.node: fx.Node | None = None
        self._pending = iter(self.graph.nodes)

    def __iter__(self) -> Iterator[tuple[fx.Node, list[Tensor]]]:
        return self

    def __next__(self) -> tuple[fx.Node, list[Tensor]]:
        node = self.node = next(self._pending)
        seed_generators(crc32(node.name.encode()))  # nodes of one name draw the same
        with taken_apart(node.target), loaded(self._weights, cast(fx.GraphModule, self.module), [node]):
            result = self.env[node] = self.run_node(node)
        for read in self.user_to_last_uses.get(node, []):
            del self.env[read]
        return node, tensors_of(result)


class Masked(Steps):
    """Runs the masked original. Modules of a model's own that nothing missing reaches, as none reaches those that do not trace,
    run as they are: they may hold what no mode of torch goes through, as compiled attention."""

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The module's result, outside of the arithmetic with missing data where that would change nothing."""
        module = self.fetch_attr(target)
        if type(module).__module__.startswith("torch.nn."):
            return super().call_module(target, args, kwargs)
        seen = (*tree_leaves((args, kwargs)), *module.parameters(), *module.buffers())
        if any(isinstance(leaf, Tensor) and bool(leaf.isnan().any()) for leaf in seen):
            return super().call_module(target, args, kwargs)
        with _pop_mode_temporarily():
            return super().call_module(target, args, kwargs)


def name_of(node: fx.Node) -> str:
    """What a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def unfilled(node: fx.Node) -> bool:
    """Whether a node makes memory as it was found."""
    return name_of(node).startswith(("empty", "new_empty"))


def described(node: fx.Node) -> str:
    """A node with what it calls and its source line, for messages."""
    place = node.meta.get("source", "")
    return f"node {node.name} ({name_of(node)}{f' at {place}' if place else ''})"


def undefined(steps: Steps) -> str:
    """What to say of an original that makes NaN of numbers by itself; empty where it makes none."""
    for node, made in steps:
        if not node.op.startswith("call"):
            continue
        if not unfilled(node) and any(is_fractional(leaf) and bool(leaf.isnan().any()) for leaf in made):
            return (
                f"The original itself gives NaN, first in {described(node)}, on random numbers of the shape of the example "
                "inputs and integers as they are there. Nothing is proved: give an example with other integers (masks, ids), or "
                "leave the proof out with verify=False (--no-verify)."
            )
    return ""
