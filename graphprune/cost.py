"""The cost of a model as a function of its group widths: exact, symbolic when read, vectorised when evaluated.

Every axis length is ``constant + sum(coefficient * width)``; parameters and MACs are sums of products of axis lengths,
hence polynomials in the widths. ``1 MAC = 2 FLOPs``. MACs are those of convolutions and matrix products (attention
included), which is what ``torch.utils.flop_counter`` counts, divided by two.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
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
from graphprune.twins import named_tensors

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


class _Lengths:
    """All distinct axis lengths as one affine map of the widths."""

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        self.index: dict[tuple[int, tuple[tuple[int, int], ...]], int] = {}
        self._by_field: dict[int, int] = {}
        self._held: list[Field] = []

    def add(self, field: Field) -> int:
        """Index of the length of the field's axis."""
        known = self._by_field.get(id(field))
        if known is None:
            constant, terms = self.groups.linear(field)
            key = (constant, tuple(sorted(terms.items())))
            known = self._by_field[id(field)] = self.index.setdefault(key, len(self.index))
            self._held.append(field)
        return known

    def matrix(self) -> tuple[Floats, Floats]:
        """``lengths = constants + coefficients @ widths``."""
        constants = np.array([key[0] for key in self.index], dtype=np.float64)
        coefficients = np.zeros((len(self.index), len(self.groups.prunable)))
        for row, (_, terms) in enumerate(self.index):
            for group, count in terms:
                coefficients[row, group] = count
        return constants, coefficients


class _Polynomial:
    """``sum(coefficient * product(lengths))`` over terms with at most a few factors each."""

    def __init__(self, terms: Sequence[tuple[int, tuple[int, ...]]]) -> None:
        self.terms = terms
        depth = max((len(factors) for _, factors in terms), default=0)
        self.coefficients = np.array([c for c, _ in terms], dtype=np.float64)
        # Index -1 reads the 1.0 that evaluate() appends.
        self.factors = np.array([list(f) + [-1] * (depth - len(f)) for _, f in terms], dtype=np.int64).reshape(len(terms), depth)

    def evaluate(self, lengths: Floats) -> Floats:
        """Values for lengths of shape (..., lengths); result has shape (...)."""
        extended = np.concatenate([lengths, np.ones((*lengths.shape[:-1], 1))], axis=-1)
        result: Floats = (self.coefficients * extended[..., self.factors].prod(axis=-1)).sum(axis=-1)
        return result


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
        self._lengths = _Lengths(groups)
        self._tensors = _tensors(program.module)
        volumes = {name: self._tensor_volume(name, tensor) for name, tensor in self._tensors.items()}
        self._parameters = _Polynomial([volumes[n] for n, t in self._tensors.items() if isinstance(t, torch.nn.Parameter)])
        self._bytes = _Polynomial([(volumes[n][0] * t.element_size(), volumes[n][1]) for n, t in self._tensors.items()])
        self._macs = _Polynomial([self._product(term.factors) for term in groups.trace.macs])
        self._constants, self._coefficients = self._lengths.matrix()

    def _tensor_volume(self, name: str, tensor: torch.Tensor) -> tuple[int, tuple[int, ...]]:
        return self._volume(self.groups.trace.parameters.get(name, Value(tuple(tensor.shape))))

    def _volume(self, value: Value) -> tuple[int, tuple[int, ...]]:
        return self._fixed_volume(value), tuple(self._lengths.add(field) for field in value.fields)

    def _fixed_volume(self, value: Value) -> int:
        """Product of the axes that cannot shrink."""
        varied = [self.groups.units_along(field)[0] for field in value.fields]
        return prod(size for axis, size in enumerate(value.shape) if axis not in varied)

    def _product(self, factors: Sequence[Field | int]) -> tuple[int, tuple[int, ...]]:
        fields = [f for f in factors if not isinstance(f, int)]
        # A field over several axes shrinks along one; the others count in full.
        others = prod(f.size // self.groups.units_along(f)[1].size for f in fields)
        return others * prod(f for f in factors if isinstance(f, int)), tuple(self._lengths.add(f) for f in fields)

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def _evaluate(self, polynomial: _Polynomial, widths: npt.ArrayLike) -> Floats:
        lengths = self._constants + np.asarray(widths, dtype=np.float64) @ self._coefficients.T
        return polynomial.evaluate(lengths)

    def parameters(self, widths: npt.ArrayLike) -> Floats:
        """Trainable parameters for widths of shape (..., groups); tied tensors count once."""
        return self._evaluate(self._parameters, widths)

    def macs(self, widths: npt.ArrayLike) -> Floats:
        """Multiply-accumulates of one forward pass at the example inputs' batch, for widths of shape (..., groups)."""
        return self._evaluate(self._macs, widths)

    def weight_bytes(self, widths: npt.ArrayLike) -> Floats:
        """Bytes of parameters and buffers for widths of shape (..., groups)."""
        return self._evaluate(self._bytes, widths)

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
        full = np.asarray(widths)
        changes: dict[int, int] = defaultdict(int)
        for life in self._lives:
            size = max(self._value_bytes(value, full) for value in life.values)
            changes[life.first] += size
            changes[life.last + 1] -= size
        return max(accumulate(changes[step] for step in sorted(changes)), default=0)

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

    def _value_bytes(self, value: Value, widths: npt.NDArray[np.int64]) -> int:
        size = value.itemsize * self._fixed_volume(value)
        for field_ in value.fields:
            constant, terms = self.groups.linear(field_)
            size *= constant + sum(n * int(widths[g]) for g, n in terms.items())
        return size

    def costs(self, widths: npt.ArrayLike) -> Costs:
        """All costs of one width vector."""
        return Costs(
            int(self.parameters(widths)), int(self.macs(widths)), int(self.weight_bytes(widths)), self.activation_bytes(widths)
        )

    # -- symbolic ------------------------------------------------------------------------------------------------------

    def _symbolic(self, polynomial: _Polynomial) -> sympy.Expr:
        lengths = [self.groups.expression(constant, dict(terms)) for constant, terms in self._lengths.index]
        return sympy.Add(*(c * sympy.Mul(*(lengths[i] for i in factors)) for c, factors in polynomial.terms))

    @cached_property
    def parameters_formula(self) -> sympy.Expr:
        """Trainable parameters as a polynomial in the width symbols."""
        return self._symbolic(self._parameters)

    @cached_property
    def macs_formula(self) -> sympy.Expr:
        """Multiply-accumulates as a polynomial in the width symbols."""
        return self._symbolic(self._macs)


def _tensors(module: torch.nn.Module) -> dict[str, Any]:
    """Parameters and buffers by first name, tied ones once."""
    tensors = named_tensors(module)
    first = {id(tensor): name for name, tensor in reversed(tensors.items())}
    return {name: tensor for name, tensor in tensors.items() if first[id(tensor)] == name}
