"""Measures: what a model costs, of one kind, as a function of its group widths. Selection meets targets on them.

A measure is a sum of terms, each of a few groups' widths (one layer's MACs depend on its input and its output channels), or
the largest of several such sums (peak memory: one sum for each step). The terms tell selection what is coupled to what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from math import prod
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import sympy
from scipy.sparse import csc_array

from graphprune.channels.groups import Groups, Lengths
from graphprune.channels.labels import Field, Value

Floats = npt.NDArray[np.float64]

#: A number at full width, and the fields whose lengths it is proportional to.
Product: TypeAlias = tuple[int, Sequence[Field]]

_AT_A_TIME = 1 << 20  # numbers in one step of an evaluation, so that any number of width vectors fits into memory


class Measure(Protocol):
    """One kind of cost, for any widths.

    name: as in a target. unit: of its values, empty for a count. terms: the prunable groups that each term depends on, by
    index. rows: which terms each of several sums adds up, shape (sums, terms), where the measure is the largest of them; None
    where it is the sum of all.
    """

    @property
    def name(self) -> str:
        """As in a target."""

    @property
    def unit(self) -> str:
        """Of the values; empty for a count."""

    @property
    def terms(self) -> Sequence[tuple[int, ...]]:
        """Indices of the groups that each term depends on."""

    @property
    def rows(self) -> csc_array | None:
        """Which terms each of several sums adds up; None for one sum of all."""

    def parts(self, widths: npt.ArrayLike) -> Floats:
        """The terms, for widths of shape (..., groups); shape (..., terms)."""

    def __call__(self, widths: npt.ArrayLike) -> Floats:
        """The measure, for widths of shape (..., groups); shape (...)."""


class Products:
    """Products of a constant and a few axis lengths each, for any widths."""

    def __init__(self, groups: Groups, products: Sequence[Product]) -> None:
        self.groups = groups
        self.constants: list[int] = []
        self.fields = [fields for _, fields in products]
        places = [[groups.vectors.index(field) for field in fields] for fields in self.fields]
        for (constant, _), vectors in zip(products, places, strict=True):
            for vector in vectors:
                constant //= groups.vectors.sizes[vector]
            self.constants.append(constant)
        depth = max(map(len, places), default=0)
        # Index -1 reads the 1.0 that evaluate() appends.
        padded = [vectors + [-1] * (depth - len(vectors)) for vectors in places]
        self.places = np.array(padded, dtype=np.int64).reshape(len(padded), depth)

    def evaluate(self, widths: npt.ArrayLike) -> Floats:
        """Values for widths of shape (..., groups); result has shape (..., products)."""
        lengths = self.groups.lengths(widths)
        extended = np.concatenate([lengths, np.ones((*lengths.shape[:-1], 1))], axis=-1)
        result: Floats = np.array(self.constants, dtype=np.float64) * extended[..., self.places].prod(axis=-1)
        return result

    def formula(self, coefficients: Iterable[int]) -> sympy.Expr:
        """The sum of all products, each times its coefficient, as a polynomial in the width symbols."""
        terms = zip(coefficients, self.constants, self.fields, strict=True)
        return sympy.Add(*(n * c * sympy.Mul(*map(self.groups.length, fields)) for n, c, fields in terms))


class Total:
    """A sum of products: parameters, MACs, bytes. Products of the same lengths are one term."""

    rows = None

    def __init__(self, name: str, unit: str, products: Products, coefficients: npt.ArrayLike) -> None:
        """coefficients: of each product, shape (products,)."""
        self.name = name
        self.unit = unit
        self._products = products
        self._weights = np.array(coefficients, dtype=np.int64)

    @cached_property
    def _merged(self) -> tuple[Lengths, npt.NDArray[np.int64], Floats]:
        """The different lengths, which of them each term multiplies (one past the last is 1), and the terms' coefficients."""
        lengths = self._products.groups.distinct_lengths
        places = np.append(lengths.of, lengths.constants.size)[self._products.places]
        keys, owner = np.unique(np.sort(places, axis=-1), axis=0, return_inverse=True)
        factors = self._weights * np.array(self._products.constants, dtype=np.float64)
        sums = np.bincount(owner.reshape(-1), factors, minlength=len(keys))
        return lengths, keys[sums != 0], sums[sums != 0]

    @cached_property
    def terms(self) -> Sequence[tuple[int, ...]]:
        """Indices of the groups that each term depends on."""
        lengths, places, _ = self._merged
        groups = [*np.split(lengths.slopes.indices, lengths.slopes.indptr[1:-1]), np.zeros(0, dtype=np.int64)]
        return [tuple(np.unique(np.concatenate([groups[place] for place in row])).tolist()) for row in places.tolist()]

    def parts(self, widths: npt.ArrayLike) -> Floats:
        """The terms, for widths of shape (..., groups); shape (..., terms)."""
        given = np.asarray(widths, dtype=np.float64)
        flat = given.reshape(prod(given.shape[:-1]), given.shape[-1])
        lengths, places, factors = self._merged
        known = np.ones((len(flat), lengths.constants.size + 1))
        known[:, :-1] = (lengths.slopes @ flat.T).T + lengths.constants
        result = np.tile(factors, (len(flat), 1))
        for column in places.T:
            result *= known[:, column]
        return result.reshape(*given.shape[:-1], factors.size)

    def __call__(self, widths: npt.ArrayLike) -> Floats:
        """The measure, for widths of shape (..., groups); shape (...)."""
        return _in_steps(lambda some: self.parts(some).sum(axis=-1), widths, self._merged[2].size)

    @cached_property
    def formula(self) -> sympy.Expr:
        """The measure as a polynomial in the width symbols."""
        return self._products.formula(self._weights.tolist())


class Peak:
    """The largest of several sums of products: peak memory, of what is alive at each step."""

    def __init__(self, name: str, unit: str, products: Products, pieces: npt.ArrayLike, rows: csc_array) -> None:
        """pieces: where the products of each term start; a term is the largest of its products. rows: the terms of each sum."""
        self.name = name
        self.unit = unit
        self.rows = rows
        self._products = products
        self._pieces = np.array(pieces, dtype=np.int64)

    @cached_property
    def terms(self) -> Sequence[tuple[int, ...]]:
        """Indices of the groups that each term depends on."""
        groups, fields = self._products.groups, self._products.fields
        ends = [*self._pieces[1:].tolist(), len(fields)]
        within = [range(start, end) for start, end in zip(self._pieces.tolist(), ends, strict=True)]
        return [tuple(sorted({g for at in places for field in fields[at] for g in groups.linear(field)[1]})) for places in within]

    def parts(self, widths: npt.ArrayLike) -> Floats:
        """The terms, for widths of shape (..., groups); shape (..., terms)."""
        values = self._products.evaluate(widths)
        if not self._pieces.size:
            return values
        result: Floats = np.maximum.reduceat(values, self._pieces, axis=-1)
        return result

    def __call__(self, widths: npt.ArrayLike) -> Floats:
        """The measure, for widths of shape (..., groups); shape (...)."""
        return _in_steps(self._peak, widths, len(self._products.constants) + self.rows.shape[0])

    def _peak(self, widths: Floats) -> Floats:
        sums = self.rows @ self.parts(widths).T
        result: Floats = sums.max(axis=0, initial=0.0)
        return result


class Count:
    """How many units are left."""

    name, unit, rows = "channels", "", None

    def __init__(self, groups: Groups) -> None:
        self.terms: Sequence[tuple[int, ...]] = [(group.index,) for group in groups.prunable]

    def parts(self, widths: npt.ArrayLike) -> Floats:
        """The terms, for widths of shape (..., groups); shape (..., terms)."""
        return np.asarray(widths, dtype=np.float64)

    def __call__(self, widths: npt.ArrayLike) -> Floats:
        """The measure, for widths of shape (..., groups); shape (...)."""
        total: Floats = self.parts(widths).sum(axis=-1)
        return total


def volume(value: Value, each: int = 1) -> Product:
    """A tensor's number of elements. each: what one counts for."""
    return each * prod(value.shape), value.fields


def product(factors: Iterable[Field | int]) -> Product:
    """The product of constants and of the sizes of fields."""
    known = list(factors)
    fields = [factor for factor in known if not isinstance(factor, int)]
    return prod(factor if isinstance(factor, int) else factor.size for factor in known), fields


def _in_steps(function: Callable[[Floats], Floats], widths: npt.ArrayLike, numbers: int) -> Floats:
    """A function of width vectors, applied to some of them at a time. numbers: that it needs for each."""
    given = np.asarray(widths, dtype=np.float64)
    flat = given.reshape(prod(given.shape[:-1]), given.shape[-1])
    step = max(1, _AT_A_TIME // max(1, numbers))
    done = [function(flat[start : start + step]) for start in range(0, len(flat), step)]
    return np.concatenate(done or [np.zeros(0)]).reshape(given.shape[:-1])
