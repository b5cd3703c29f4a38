"""What each layer has to do at any widths: multiply-accumulates, elements made, bytes moved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import fx
from torch.utils._pytree import tree_leaves

from graphprune.channels.groups import Groups
from graphprune.channels.labels import Value
from graphprune.channels.tape import Step, tape_of
from graphprune.costs.measures import Product, Products, product, volume
from graphprune.ir.program import Program
from graphprune.ir.twins import modules_by_path
from graphprune.latency.fit import Floats
from graphprune.rules import only_moves


@dataclass(frozen=True)
class Work:
    """Of each layer, shape (..., layers): multiply-accumulates, elements made by them (0 without), and bytes read and written."""

    macs: Floats
    made: Floats
    bytes: Floats


class Layers:
    """The layers of a program: its nodes that make tensors. groups_of: the groups that each one's work depends on."""

    def __init__(self, program: Program, groups: Groups) -> None:
        self._groups = groups
        self._inside = {name for shuffle in groups.trace.shuffles for name in shuffle.interior}
        steps = {step.node: step for step in tape_of(program).steps}
        self._tree = modules_by_path(program.module)
        macs: dict[str, list[Product]] = {}
        for term in groups.trace.macs:
            macs.setdefault(term.node, []).append(product(term.factors))
        nodes = [n for n in program.module.graph.nodes if n.op.startswith("call") and self._values(n)]
        moved = [self._moved(node, steps.get(node.name)) for node in nodes]
        self._macs = _Sums(groups, [macs.get(node.name, []) for node in nodes])
        self._made = _Sums(groups, [[volume(v) for v in self._values(n)] if n.name in macs else [] for n in nodes])
        self._bytes = _Sums(groups, [[volume(value, value.itemsize) for value in values] for values in moved])
        owners = zip(self._macs.groups_of, self._made.groups_of, self._bytes.groups_of, strict=True)
        self.groups_of: list[tuple[int, ...]] = [tuple(sorted({*a, *b, *c})) for a, b, c in owners]

    def at(self, widths: npt.ArrayLike) -> Work:
        """The work for widths of shape (..., groups)."""
        return Work(*(sums(widths) for sums in (self._macs, self._made, self._bytes)))

    def _values(self, node: fx.Node) -> list[Value]:
        found = None if node.name in self._inside else self._groups.trace.values.get(node.name)
        return [leaf for leaf in tree_leaves(found) if isinstance(leaf, Value)]

    def _moved(self, node: fx.Node, step: Step | None) -> list[Value]:
        """What a node reads, owns and writes; a view touches nothing."""
        read = [value for one in node.all_input_nodes for value in self._values(one)]
        written = self._values(node)
        only_views = step is not None and all(only_moves(operation.operator) for operation in step.operations)
        if only_views and {value.storage for value in written} <= {value.storage for value in read}:
            return []
        return [*read, *self._owned(node), *written]

    def _owned(self, node: fx.Node) -> Iterator[Value]:
        if node.op == "call_module":
            trace = self._groups.trace
            for name, _ in self._tree[str(node.target)].named_parameters():
                path = f"{node.target}.{name}"
                value = trace.parameters.get(trace.aliases.get(path, path))
                if value is not None:
                    yield value


class _Sums:
    """For each layer a sum of products of constants and axis lengths."""

    def __init__(self, groups: Groups, sums: Sequence[Sequence[Product]]) -> None:
        self._products = Products(groups, [product for products in sums for product in products])
        self._begins = np.cumsum([0, *map(len, sums)])
        self.groups_of = [
            {group for _, fields in products for labels in fields for group in groups.linear(labels)[1]} for products in sums
        ]

    def __call__(self, widths: npt.ArrayLike) -> Floats:
        """The sums for widths of shape (..., groups); shape (..., layers)."""
        values = self._products.evaluate(widths)
        totals = np.concatenate([np.zeros((*values.shape[:-1], 1)), values.cumsum(axis=-1)], axis=-1)
        result: Floats = totals[..., self._begins[1:]] - totals[..., self._begins[:-1]]
        return result
