"""Contractions with a parameter, operator by operator: the rows that go in, the rows that come out, and the matrix between.

``out[r, g, o] = sum_k rows[g, r, k] * matrix[g, k, o]``: ``g`` counts the groups, ``k`` a group's input channels times the taps
of its kernel, ``r`` samples times positions. The rules know ATen operators and nothing of modules.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor

Rule: TypeAlias = "Callable[[Sequence[Any]], tuple[Contraction, ...]]"

_RULES: dict[str, Rule] = {}


@dataclass(frozen=True)
class Contraction(ABC):
    """One call of such an operator. weight: the parameter as the operator sees it, often a view. bias: what it adds, if any."""

    activation: Tensor
    weight: Tensor
    bias: Tensor | None

    @abstractmethod
    def matrix(self, weight: Tensor) -> Tensor:
        """A tensor laid out as the weight, as (groups, inputs, taps, outputs)."""

    @abstractmethod
    def inputs(self, result: Tensor, picked: Tensor | None) -> Tensor:
        """What goes in at some positions (all: None) of the result: (groups, rows, inputs, taps)."""

    @abstractmethod
    def constants(self) -> Tensor:
        """The value that each input has everywhere, padding apart; NaN where it varies: (groups, inputs)."""

    @staticmethod
    @abstractmethod
    def places(shape: Sequence[int]) -> tuple[int, int]:
        """Of a result of this shape: the length of the axis that is never sampled, and the positions along each of it."""

    @staticmethod
    @abstractmethod
    def outputs(result: Tensor, picked: Tensor | None) -> Tensor:
        """What comes out there: (rows, groups * outputs)."""


def find_contraction(operator: Any, args: Sequence[Any], is_parameter: Callable[[Tensor], bool]) -> Contraction | None:
    """The contraction with a parameter that a call of an ATen operator is, or None."""
    rule = _RULES.get(operator._schema.name)
    for found in () if rule is None else rule(args):
        repeated = any(size > 1 and not step for size, step in zip(found.weight.shape, found.weight.stride(), strict=True))
        if is_parameter(found.weight) and not is_parameter(found.activation) and not repeated:
            return found
    return None


def sample_positions(kind: type[Contraction], result: Tensor, most: int, seed: int) -> Tensor | None:
    """Positions of a result, ``most`` in all (but one of each sample at least), drawn from a seed; None for all of them."""
    samples, count = kind.places(result.shape)
    most = max(1, most // max(1, samples))
    if count <= most:
        return None
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most].sort().values.to(result.device)


def laid_out_as(view: Tensor, parameter: Tensor, values: Tensor) -> Tensor:
    """Values for each element of a parameter (its shape), as the view of the parameter that an operator sees."""
    like = torch.empty_strided(parameter.shape, parameter.stride(), dtype=values.dtype, device=values.device)
    like.copy_(values)
    return like.as_strided(view.shape, view.stride(), view.storage_offset() - parameter.storage_offset())


def kept_mask(parameter: Tensor, axes: Mapping[int, list[int]]) -> Tensor:
    """Which elements of a parameter stay when its axes keep these indices."""
    kept = torch.ones(parameter.shape, dtype=torch.bool, device=parameter.device)
    for axis, indices in axes.items():
        gone = torch.ones(parameter.shape[axis], dtype=torch.bool, device=parameter.device)
        gone[indices] = False
        kept.movedim(axis, 0)[gone] = False
    return kept


def _contracts(*operators: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.update({f"aten::{name}": rule for name in operators})
        return rule

    return register


def _constants(values: Tensor, axis: int) -> Tensor:
    """The value along an axis where it does not vary, else NaN."""
    first = values.narrow(axis, 0, 1)
    return torch.where((values == first).all(axis), first.squeeze(axis), torch.nan)


# -- products of matrices ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Product(Contraction):
    """activation (groups, rows, inputs) times weight (groups, inputs, outputs); both without groups where there are none."""

    def matrix(self, weight: Tensor) -> Tensor:
        return (weight if weight.dim() == 3 else weight.unsqueeze(0)).unsqueeze(2)

    def inputs(self, result: Tensor, picked: Tensor | None) -> Tensor:
        rows = self.activation if self.activation.dim() == 3 else self.activation.unsqueeze(0)
        return (rows if picked is None else rows.index_select(1, picked)).unsqueeze(3)

    def constants(self) -> Tensor:
        return _constants(self.inputs(self.activation, None).squeeze(3), 1)

    @staticmethod
    def places(shape: Sequence[int]) -> tuple[int, int]:
        return 1, shape[-2]

    @staticmethod
    def outputs(result: Tensor, picked: Tensor | None) -> Tensor:
        rows = (result if result.dim() == 3 else result.unsqueeze(0)).transpose(0, 1).flatten(1)
        return rows if picked is None else rows.index_select(0, picked)


@dataclass(frozen=True)
class _LeftProduct(_Product):
    """weight (groups, outputs, inputs) times activation (groups, inputs, rows)."""

    def matrix(self, weight: Tensor) -> Tensor:
        return super().matrix(weight.mT)

    def inputs(self, result: Tensor, picked: Tensor | None) -> Tensor:
        return _Product(self.activation.mT, self.weight, self.bias).inputs(result, picked)

    @staticmethod
    def places(shape: Sequence[int]) -> tuple[int, int]:
        return 1, shape[-1]

    @staticmethod
    def outputs(result: Tensor, picked: Tensor | None) -> Tensor:
        return _Product.outputs(result.mT, picked)


@dataclass(frozen=True)
class _SharedProduct(_Product):
    """activation (samples, rows, inputs) times the same weight (inputs, outputs) for each sample."""

    def inputs(self, result: Tensor, picked: Tensor | None) -> Tensor:
        return _Product(self.activation.flatten(0, 1), self.weight, self.bias).inputs(result, picked)

    @staticmethod
    def places(shape: Sequence[int]) -> tuple[int, int]:
        return 1, shape[0] * shape[1]

    @staticmethod
    def outputs(result: Tensor, picked: Tensor | None) -> Tensor:
        return _Product.outputs(result.flatten(0, 1), picked)


@_contracts("mm", "bmm")
def _product(args: Sequence[Any]) -> tuple[Contraction, ...]:
    if args[1].dim() == 3 and not args[1].stride(0):
        return (_SharedProduct(args[0], args[1][0], None),)
    return _Product(args[0], args[1], None), _LeftProduct(args[1], args[0], None)


@_contracts("addmm", "baddbmm")
def _biased_product(args: Sequence[Any]) -> tuple[Contraction, ...]:
    return (_Product(args[1], args[2], args[0]),)


# -- convolutions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Convolution(Contraction):
    """activation (samples, channels, *space); weight (outputs, inputs, *kernel), or (inputs, outputs, *kernel) if transposed."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    groups: int

    def matrix(self, weight: Tensor) -> Tensor:
        grouped = torch.unflatten(weight, 0, (self.groups, -1)).flatten(3)
        return grouped.transpose(2, 3) if self.transposed else grouped.permute(0, 2, 3, 1)

    def inputs(self, result: Tensor, picked: Tensor | None) -> Tensor:
        index = self._sources(result.shape[2:], picked)
        space = self.activation.flatten(2)
        nothing = space.new_zeros(*space.shape[:2], 1)
        found = torch.cat([space, nothing], 2).index_select(2, index.flatten())
        found = torch.unflatten(torch.unflatten(found, 2, index.shape), 1, (self.groups, -1))  # samples, groups, inputs, rows, taps
        return found.permute(1, 0, 3, 2, 4).flatten(1, 2)

    def constants(self) -> Tensor:
        channels = self.activation.transpose(0, 1).flatten(1)
        return _constants(channels, 1).view(self.groups, -1)

    @staticmethod
    def places(shape: Sequence[int]) -> tuple[int, int]:
        return shape[0], prod(shape[2:])

    @staticmethod
    def outputs(result: Tensor, picked: Tensor | None) -> Tensor:
        space = result.flatten(2)
        return (space if picked is None else space.index_select(2, picked)).transpose(1, 2).flatten(0, 1)

    def _sources(self, space: Sequence[int], picked: Tensor | None) -> Tensor:
        """The position of the input that each tap reads, for each position of the output; one past the end for padding."""
        device, sizes, kernel = self.activation.device, self.activation.shape[2:], self.weight.shape[2:]
        positions = torch.arange(prod(space), device=device) if picked is None else picked
        taps = torch.arange(prod(kernel), device=device)
        source, inside, step = torch.zeros(len(positions), len(taps), dtype=torch.long, device=device), None, 1
        for axis in reversed(range(len(sizes))):
            place, tap = positions % space[axis], taps % kernel[axis]
            positions, taps = positions // space[axis], taps // kernel[axis]
            stride, padding, dilation = (given[axis % len(given)] for given in (self.stride, self.padding, self.dilation))
            if self.transposed:
                fine = place[:, None] + padding - tap * dilation
                at, there = fine.div(stride, rounding_mode="floor"), fine % stride == 0
            else:
                at = place[:, None] * stride - padding + tap * dilation
                there = torch.ones_like(at, dtype=torch.bool)
            there &= (at >= 0) & (at < sizes[axis])
            inside = there if inside is None else inside & there
            source, step = source + at * step, step * sizes[axis]
        return source if inside is None else torch.where(inside, source, step)


@_contracts("convolution")
def _convolution(args: Sequence[Any]) -> tuple[Contraction, ...]:
    activation, weight, bias, stride, padding, dilation, transposed, _, groups = args
    geometry = tuple(stride), tuple(padding), tuple(dilation), bool(transposed), int(groups)
    return (_Convolution(activation, weight, bias, *geometry),)
