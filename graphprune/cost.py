"""The cost of a model as a function of its group widths: exact, symbolic when read, vectorised when evaluated.

Every axis length is ``constant + sum(coefficient * width)``; parameters and MACs are sums of products of axis lengths,
hence polynomials in the widths. ``1 MAC = 2 FLOPs``. MACs are those of convolutions and matrix products (attention
included), which is what ``torch.utils.flop_counter`` counts, divided by two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import sympy
import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from graphprune.groups import Groups
from graphprune.labels import Field, Value
from graphprune.program import Program

Floats = npt.NDArray[np.float64]


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


class _Products:
    """Products of a constant and a few axis lengths each, for any widths."""

    def __init__(self, groups: Groups, products: Iterable[Sequence[Field | int]]) -> None:
        """products: their factors; a field stands for the length of its axis, and its other axes count in full."""
        self.groups = groups
        self.constants: list[int] = []
        self.fields: list[list[Field]] = []
        places: list[list[int]] = []
        for factors in products:
            fields = [factor for factor in factors if not isinstance(factor, int)]
            vectors = [groups.vectors.index(labels) for labels in fields]
            others = [labels.size // groups.vectors.sizes[vector] for labels, vector in zip(fields, vectors, strict=True)]
            constant = prod(factor for factor in factors if isinstance(factor, int)) * prod(others)
            self.constants.append(constant)
            self.fields.append(fields)
            places.append(vectors)
        depth = max(map(len, places), default=0)
        # Index -1 reads the 1.0 that evaluate() appends.
        padded = [vectors + [-1] * (depth - len(vectors)) for vectors in places]
        self._places = np.array(padded, dtype=np.int64).reshape(len(padded), depth)

    def evaluate(self, widths: npt.ArrayLike) -> Floats:
        """Values for widths of shape (..., groups); result has shape (..., products)."""
        lengths = self.groups.lengths(widths)
        extended = np.concatenate([lengths, np.ones((*lengths.shape[:-1], 1))], axis=-1)
        result: Floats = np.array(self.constants, dtype=np.float64) * extended[..., self._places].prod(axis=-1)
        return result

    def formula(self, coefficients: Iterable[int]) -> sympy.Expr:
        """The sum of all products, each times its coefficient, as a polynomial in the width symbols."""
        terms = zip(coefficients, self.constants, self.fields, strict=True)
        return sympy.Add(*(n * c * sympy.Mul(*map(self.groups.length, fields)) for n, c, fields in terms))


@dataclass
class _Life:
    """A piece of memory: the graph steps of its first and last use, and the values that view it."""

    first: int
    last: int = 0
    values: list[Value] = field(default_factory=list)


class CostModel:
    """Parameters, MACs, weight bytes and peak activation bytes of a program for any widths of its groups."""

    def __init__(self, program: Program, groups: Groups) -> None:
        self.groups = groups
        self._program = program
        self._inside_shuffles = {name for shuffle in groups.trace.shuffles for name in shuffle.interior}
        tensors = _tensors(program)
        known = groups.trace.parameters
        self._volumes = _Products(groups, [_volume(known.get(n, Value(tuple(t.shape)))) for n, t in tensors.items()])
        self._trainable = np.array([isinstance(tensor, torch.nn.Parameter) for tensor in tensors.values()], dtype=np.int64)
        self._itemsizes = np.array([tensor.element_size() for tensor in tensors.values()], dtype=np.int64)
        self._macs = _Products(groups, [term.factors for term in groups.trace.macs])

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def parameters(self, widths: npt.ArrayLike) -> Floats:
        """Trainable parameters for widths of shape (..., groups); tied tensors count once."""
        result: Floats = self._volumes.evaluate(widths) @ self._trainable
        return result

    def macs(self, widths: npt.ArrayLike) -> Floats:
        """Multiply-accumulates of one forward pass at the example inputs' batch, for widths of shape (..., groups)."""
        result: Floats = self._macs.evaluate(widths).sum(axis=-1)
        return result

    def weight_bytes(self, widths: npt.ArrayLike) -> Floats:
        """Bytes of parameters and buffers for widths of shape (..., groups)."""
        result: Floats = self._volumes.evaluate(widths) @ self._itemsizes
        return result

    def channels(self, widths: npt.ArrayLike) -> Floats:
        """Prunable units left, for widths of shape (..., groups)."""
        total: Floats = np.asarray(widths, dtype=np.float64).sum(axis=-1)
        return total

    def measures(self) -> dict[str, Callable[[npt.ArrayLike], Floats]]:
        """What a target can be set on, by its kind."""
        return {"channels": self.channels, "params": self.parameters, "macs": self.macs}

    def activation_bytes(self, widths: npt.ArrayLike) -> int:
        """Peak bytes of live graph values (inputs included) for one width vector.

        Memory lives from the first node that makes it to the last one that reads it; views share their base's.
        """
        if not self._lives:
            return 0
        sizes = self._activations.evaluate(widths)
        first, last, count = np.array([(life.first, life.last, len(life.values)) for life in self._lives]).T
        most = np.maximum.reduceat(sizes, np.cumsum(count) - count)
        changes = np.zeros(last.max() + 2)
        np.add.at(changes, first, most)
        np.subtract.at(changes, last + 1, most)
        return int(np.cumsum(changes).max())

    @cached_property
    def _activations(self) -> _Products:
        """Bytes of every graph value, in the order of the lives."""
        values = [value for life in self._lives for value in life.values]
        return _Products(self.groups, [[value.itemsize, *_volume(value)] for value in values])

    @cached_property
    def _lives(self) -> list[_Life]:
        """When each piece of memory that graph values occupy is made and last read, and the values that view it."""
        lives: dict[int, _Life] = {}
        values = {node: self._values(node) for node in self._program.module.graph.nodes}
        for step, (node, made) in enumerate(values.items()):
            for value in () if node.op == "get_attr" else made:
                life = lives.setdefault(value.storage, _Life(step))
                life.values.append(value)
                life.last = step
            for arg in node.all_input_nodes:
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

    def costs(self, widths: npt.ArrayLike) -> Costs:
        """All costs of one width vector."""
        volumes = self._volumes.evaluate(widths)
        parameters, weight_bytes = int(volumes @ self._trainable), int(volumes @ self._itemsizes)
        return Costs(parameters, int(self.macs(widths)), weight_bytes, self.activation_bytes(widths))

    # -- symbolic ------------------------------------------------------------------------------------------------------

    @cached_property
    def parameters_formula(self) -> sympy.Expr:
        """Trainable parameters as a polynomial in the width symbols."""
        return self._volumes.formula(self._trainable.tolist())

    @cached_property
    def macs_formula(self) -> sympy.Expr:
        """Multiply-accumulates as a polynomial in the width symbols."""
        return self._macs.formula([1] * len(self._macs.constants))


def _volume(value: Value) -> list[Field | int]:
    """Factors of a tensor's number of elements: its axes that cannot shrink as one constant, and its fields."""
    return [prod(value.shape) // prod(field.size for field in value.fields), *value.fields]


def _tensors(program: Program) -> dict[str, Any]:
    """Parameters and buffers by first name, tied ones once."""
    tensors = program.tensors
    first = {id(tensor): name for name, tensor in reversed(tensors.items())}
    return {name: tensor for name, tensor in tensors.items() if first[id(tensor)] == name}
