"""The cost of a model as a function of its group widths: exact, symbolic when read, vectorised when evaluated.

Every axis length is ``constant + sum(coefficient * width)``; parameters and MACs are sums of products of axis lengths,
hence polynomials in the widths. ``1 MAC = 2 FLOPs``. MACs are those of convolutions and matrix products (attention
included), which is what ``torch.utils.flop_counter`` counts, divided by two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csc_array
from torch import fx
from torch.utils._pytree import tree_leaves

from graphprune.channels.groups import Groups
from graphprune.channels.labels import Value
from graphprune.costs.measures import Count, Measure, Peak, Product, Products, Total, product, volume
from graphprune.errors import LatencyError
from graphprune.ir.program import Program
from graphprune.latency.source import Latency
from graphprune.rules import tensors_in, views_only


@dataclass(frozen=True)
class Costs:
    """What a model costs at the example inputs. macs: multiply-accumulates; flops are twice that. Sizes are in bytes."""

    parameters: int
    macs: int
    weight_bytes: int
    activation_bytes: int

    @property
    def flops(self) -> int:
        """Floating-point operations: 2 for each multiply-accumulate."""
        return 2 * self.macs


@dataclass
class _Life:
    """A piece of memory: the graph steps of its first and last use, and the values that view it."""

    first: int
    last: int = 0
    values: list[Value] = field(default_factory=list)


class CostModel:
    """Parameters, MACs, weight bytes, peak activation bytes and bytes moved of a program, for any widths of its groups."""

    def __init__(self, program: Program, groups: Groups) -> None:
        self.groups = groups
        self._program = program
        self._inside_shuffles = {name for shuffle in groups.trace.shuffles for name in shuffle.interior}
        tensors = _tensors(program)
        known = groups.trace.parameters
        self._volumes = Products(groups, [volume(known[n]) if n in known else (t.numel(), ()) for n, t in tensors.items()])
        self._trainable = np.array([isinstance(tensor, torch.nn.Parameter) for tensor in tensors.values()], dtype=np.int64)
        self._itemsizes = np.array([tensor.element_size() for tensor in tensors.values()], dtype=np.int64)
        self._macs = Products(groups, [product(term.factors) for term in groups.trace.macs])

    def measures(self, latency: Latency | None = None) -> Mapping[str, Measure]:
        """What a target can be set on, by its kind. latency: where it is known from. Raises LatencyError where that is of other
        groups."""
        known: list[Measure] = [Count(self.groups), self.parameters, self.macs, self.flops, self.weight_bytes, self.memory]
        if latency is not None:
            if dict(latency.groups) != {group.name: group.size for group in self.groups.prunable}:
                raise LatencyError(
                    "The latency table is of other groups: it was measured with another exclude or policy. Measure anew."
                )
            known.append(latency.model)
        return {measure.name: measure for measure in known}

    @cached_property
    def parameters(self) -> Total:
        """Trainable parameters; tied tensors count once."""
        return Total("params", "", self._volumes, self._trainable)

    @cached_property
    def macs(self) -> Total:
        """Multiply-accumulates of one forward pass at the example inputs' batch."""
        return Total("macs", "", self._macs, np.ones(len(self._macs.constants)))

    @cached_property
    def flops(self) -> Total:
        """Floating-point operations: 2 for each multiply-accumulate."""
        return Total("flops", "", self._macs, np.full(len(self._macs.constants), 2))

    @cached_property
    def weight_bytes(self) -> Total:
        """Bytes of parameters and buffers."""
        return Total("weight_bytes", "B", self._volumes, self._itemsizes)

    @cached_property
    def memory(self) -> Peak:
        """Peak bytes of live graph values, inputs included.

        Memory lives from the first node that makes it to the last one that reads it; views share their base's.
        """
        lives = self._lives
        values = [value for life in lives for value in life.values]
        count = np.array([len(life.values) for life in lives], dtype=np.int64)
        products = Products(self.groups, [volume(value, value.itemsize) for value in values])
        steps = [step for life in lives for step in range(life.first, life.last + 1)]
        columns = [0, *accumulate(life.last + 1 - life.first for life in lives)]
        alive = csc_array((np.ones(len(steps)), steps, columns), shape=(len(self._program.module.graph.nodes), len(lives)))
        return Peak("memory", "B", products, np.cumsum(count) - count, alive)

    @cached_property
    def bytes_moved(self) -> Total:
        """Bytes that the operators read and write, run one by one: each tensor once for each operator; views move none.

        It is that of the original's operators: where a width of one makes a copy needless, the slim model moves less. A shuffle
        is one copy, however it is spelled.
        """
        trace = self.groups.trace
        known, targets = trace.known, [trace.values[shuffle.target] for shuffle in trace.shuffles]
        products = [volume(value, 2 * value.itemsize) for value in targets]
        whole = self._inside_shuffles | {shuffle.target for shuffle in trace.shuffles}
        steps = [step for step in trace.tape.steps if step.node not in whole]
        for operation in (operation for step in steps for operation in step.operations):
            if not views_only(operation.operator):
                given = {id(tensor): tensor for tensor in tensors_in((*operation.args, *operation.kwargs.values()))}
                products += [_bytes_of(tensor, known) for tensor in (*given.values(), *tensors_in((operation.output,)))]
        return Total("bytes_moved", "B", Products(self.groups, products), np.ones(len(products)))

    def costs(self, widths: npt.ArrayLike) -> Costs:
        """All costs of one width vector."""
        volumes = self._volumes.evaluate(widths)
        parameters, weight_bytes = int(volumes @ self._trainable), int(volumes @ self._itemsizes)
        return Costs(parameters, int(self._macs.evaluate(widths).sum()), weight_bytes, int(self.memory(widths)))

    @cached_property
    def _lives(self) -> list[_Life]:
        """When each piece of memory that graph values occupy is made and last read, and the values that view it."""
        lives: dict[int, _Life] = {}
        values = {node: self._values(node) for node in self._program.module.graph.nodes}
        by_name = {node.name: node for node in values}
        read = {shuffle.target: by_name[shuffle.source] for shuffle in self.groups.trace.shuffles}
        for step, (node, made) in enumerate(values.items()):
            for value in () if node.op == "get_attr" else made:
                life = lives.setdefault(value.storage, _Life(step))
                life.values.append(value)
                life.last = step
            for arg in (*node.all_input_nodes, *([read[node.name]] if node.name in read else [])):
                for value in values[arg]:
                    if value.storage in lives:
                        lives[value.storage].last = step
        return list(lives.values())

    def _values(self, node: fx.Node) -> list[Value]:
        if node.name in self._inside_shuffles:
            return []  # the pruned model goes from the shuffle's source to its target in one step
        found = self.groups.trace.values.get(node.name)
        if isinstance(found, Value):
            return [found]
        return [leaf for leaf in tree_leaves(found) if isinstance(leaf, Value)]


def _bytes_of(tensor: torch.Tensor, known: Mapping[int, tuple[torch.Tensor, Value]]) -> Product:
    """A tensor's size in bytes."""
    found = known.get(id(tensor))
    return tensor.element_size() * tensor.numel(), found[1].fields if found else ()


def _tensors(program: Program) -> dict[str, Any]:
    """Parameters and buffers by first name, tied ones once."""
    tensors = program.tensors
    first = {id(tensor): name for name, tensor in reversed(tensors.items())}
    return {name: tensor for name, tensor in tensors.items() if first[id(tensor)] == name}
