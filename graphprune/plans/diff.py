"""What two plans for one model keep in common, and what only one of them keeps."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

from graphprune.artifact import read_artifact
from graphprune.errors import PlanError, first_line
from graphprune.files import check_archive
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


def read_plan(path: str | Path) -> Plan:
    """The plan in a file: the JSON of one, or a slim model with its plan (.safetensors, .pt2).

    Raises PlanError or ArtifactError where it has none.
    """
    file = Path(path)
    readers = {".safetensors": _of_artifact, ".pt2": _of_program}
    if file.suffix not in readers:
        return Plan.load(file)
    text = readers[file.suffix](file)
    if text is None:
        raise PlanError(f"{path} holds no plan. Give the plan that made it, or a slim model that graphprune wrote.")
    return Plan.parse(text, f"The plan in {path}")


def _of_artifact(path: Path) -> str | None:
    return read_artifact(path).plan


def _of_program(path: Path) -> str | None:
    if not path.is_file():
        raise PlanError(f"Cannot read the plan in {path}: it is no file. Check the path.")
    check_archive(path)
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((name for name in archive.namelist() if name.endswith("extra/plan.json")), None)
            return None if name is None else archive.read(name).decode()
    except Exception as error:  # zipfile and zlib raise whatever the damaged part leads to
        raise PlanError(f"Cannot read the plan in {path}: {first_line(error).rstrip('.')}. Get an undamaged copy.") from error


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
