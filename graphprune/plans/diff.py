"""What two plans for one model keep in common, and what only one of them keeps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

from graphprune.errors import PlanError
from graphprune.plans.plan import Plan

_Axis = tuple[str, int]


@dataclass(frozen=True)
class AxisDiff:
    """One axis of a parameter or buffer, and what each plan keeps of it.

    tensor, axis: where. size: of the original. both, only_a, only_b: how many indices stay in both plans, in one, in the other.
    alike: other axes that both plans cut in the very same way, as coupled ones are.
    """

    tensor: str
    axis: int
    size: int
    both: int
    only_a: int
    only_b: int
    alike: tuple[_Axis, ...] = ()

    @property
    def jaccard(self) -> float:
        """Indices in both plans as a share of those in either: 1 where they agree."""
        return self.both / (self.both + self.only_a + self.only_b)

    @property
    def same(self) -> bool:
        """Whether both plans keep the same indices."""
        return not self.only_a and not self.only_b


@dataclass(frozen=True)
class PlanDiff:
    """Two plans side by side.

    axes: every axis that one of them cuts, those that are cut alike once. original, a, b: elements of all parameters and
    buffers, of the original and of what each plan leaves.
    """

    axes: tuple[AxisDiff, ...]
    original: int
    a: int
    b: int

    @property
    def same(self) -> bool:
        """Whether both plans keep the same slices of everything."""
        return all(axis.same for axis in self.axes)

    @property
    def jaccard(self) -> float:
        """Indices in both plans as a share of those in either, over all axes that either cuts; 1 for plans that cut nothing."""
        both = sum(axis.both for axis in self.axes)
        either = sum(axis.both + axis.only_a + axis.only_b for axis in self.axes)
        return both / either if either else 1.0


def diff_plans(a: Plan, b: Plan) -> PlanDiff:
    """Compare two plans for one model. Raises PlanError, naming the first difference, where they are for two.

    >>> first, second = (
    ...     Plan(kept={"0.weight": {0: kept}}, model={"0.weight": "float32[4, 3]"}) for kept in ([0, 1, 2], [1, 2, 3])
    ... )
    >>> found = diff_plans(first, second)
    >>> found.axes[0].both, found.axes[0].jaccard, found.a
    (2, 0.5, 9)
    """
    _check_one_model(a, b)
    _check_kept(a, "A")
    _check_kept(b, "B")
    shapes = {name: _shape(text) for name, text in a.model.items()}
    together: dict[object, list[_Axis]] = {}
    for name, axis in sorted({*_axes(a), *_axes(b)}, key=lambda place: _order(shapes, *place)):
        key = shapes[name][axis], _kept(a, name, axis), _kept(b, name, axis)
        together.setdefault(key, []).append((name, axis))
    axes = tuple(_axis_diff(a, b, places, shapes) for places in together.values())
    return PlanDiff(axes, *(sum(_left(plan, shapes)) for plan in (None, a, b)))


def _check_one_model(a: Plan, b: Plan) -> None:
    for name in (*a.model, *b.model):
        found = [plan.model.get(name, "missing") for plan in (a, b)]
        if found[0] != found[1]:
            raise PlanError(f"The plans are for two models: {name} is {found[0]} in that of A and {found[1]} in that of B.")


def _check_kept(plan: Plan, which: str) -> None:
    """Raise PlanError for a plan that keeps what its own model does not have."""
    shapes = {name: _shape(text) for name, text in plan.model.items()}
    for name, axis in _axes(plan):
        kept, size = plan.kept[name][axis], dict(enumerate(shapes.get(name, ()))).get(axis, 0)
        if not kept or kept != sorted({*kept}) or kept[-1] >= size:
            raise PlanError(f"Plan {which} contradicts itself: axis {axis} of {name} has no such indices. Get an undamaged copy.")


def _axes(plan: Plan) -> Iterator[_Axis]:
    return ((name, axis) for name, axes in plan.kept.items() for axis in axes)


def _kept(plan: Plan, name: str, axis: int) -> tuple[int, ...] | None:
    """The indices that a plan keeps, None for all."""
    found = plan.kept.get(name, {}).get(axis)
    return None if found is None else tuple(found)


def _axis_diff(a: Plan, b: Plan, places: Sequence[_Axis], shapes: Mapping[str, tuple[int, ...]]) -> AxisDiff:
    name, axis = places[0]
    size = shapes[name][axis]
    left, right = _kept(a, name, axis), _kept(b, name, axis)
    counts = size if left is None else len(left), size if right is None else len(right)
    both = min(counts) if left is None or right is None else len({*left} & {*right})
    return AxisDiff(name, axis, size, both, counts[0] - both, counts[1] - both, tuple(places[1:]))


def _left(plan: Plan | None, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[int]:
    """Elements of every tensor that a plan leaves; of the original for None."""
    for name, shape in shapes.items():
        kept = {} if plan is None else plan.kept.get(name, {})
        yield prod(len(kept.get(axis, range(size))) for axis, size in enumerate(shape))


_DIGITS: Final = re.compile(r"(\d{1,18})")


def _order(shapes: Mapping[str, tuple[int, ...]], name: str, axis: int) -> tuple[object, ...]:
    """Layers by name, numbers in them as numbers; in a layer matrices before vectors, and what it makes before what it reads."""
    layer, _, leaf = name.rpartition(".")
    parts = [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in _DIGITS.split(layer)]
    return len(shapes[name]) < 2, axis, parts, leaf


def _shape(fingerprint: str) -> tuple[int, ...]:
    """The shape in a fingerprint such as ``float32[3, 4]``."""
    return tuple(map(int, re.findall(r"\d{1,18}", fingerprint.partition("[")[2])))
