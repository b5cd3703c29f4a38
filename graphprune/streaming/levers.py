"""What a config can state: which of its numbers, changed together, make the groups of a model narrower, and in what steps.

No architecture is known by name. Numbers are changed alone, then by two and three, by as little as leaves each of them whole, and
a model is built of the changed config, on the meta device. Numbers are a lever where that model is the original cut to some widths:
its tensors have the shapes, and it runs the same operators on them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from math import gcd
from typing import Any, Final, TypeAlias

import numpy as np

from graphprune.channels.groups import Groups, Ints, Kept, Lengths
from graphprune.channels.levers import Lever, Numbers
from graphprune.streaming.configs import Config, Path, Shapes, attempt, changed, numbers

_TOGETHER: Final = 3  # numbers, or lists of them, of one lever, at most
_MOST: Final = 400  # models that are built in a search

Agrees = Callable[[Config, Ints], str]


class Finder:
    """A search for the levers of a config.

    short: the config, or one of fewer layers. shapes: of the state of a model built from a config; raises where the config is
    none. groups: those of the model of ``short``. agrees: why the model of a config is not that one cut to some widths, although it
    has the shapes; or an empty text. asked: what the code of the model asks the config for that it does not have.
    """

    def __init__(
        self, short: Config, shapes: Callable[[Config], Shapes], groups: Groups, agrees: Agrees, asked: Sequence[Path] = ()
    ) -> None:
        self._config = self._given = short
        self._asked = asked
        self._shapes = shapes
        self._groups = groups
        self._agrees = agrees
        self._full = shapes(short)

    def run(self) -> list[Lever]:
        """The levers of the groups, of which none moves one of another.

        What the class has values for is stated where it decides shapes, if more groups can be moved with it than without.
        """
        found = self._run(fixed=True)
        if self._covered.all() or all(lever.groups for lever in found):
            return found
        moved, others = self._covered.sum(), self._run(fixed=False)
        return others if self._covered.sum() > moved else found

    def _run(self, *, fixed: bool) -> list[Lever]:
        self._config, self._left = self._given, _MOST
        self._covered = self._groups.widths < 2  # a group of one unit has nothing to move
        if self._covered.all():
            return []
        found = list(self._unstated(fixed=fixed))
        for paths in self._candidates():
            if self._covered.all() or not self._left:
                break
            if not any(lever.numbers.keys() & paths for lever in found):
                found += self._lever(paths)
        return found

    def _candidates(self) -> Iterator[tuple[Path, ...]]:
        """Numbers that may be a lever: first of those that decide shapes, then with others that decide which tensors there are, and
        last with those that no shape shows, as numbers of heads, where there are as many units. A list of numbers is also one."""
        values = dict(numbers(self._config))
        trials = {some: self._trials(some, values) for some in [*((path,) for path in values), *_lists(values)]}
        hopeless = self._hopeless(trials)
        by_kind: dict[str, list[tuple[Path, ...]]] = {"shapes": [], "tensors": [], "": []}
        for some, found in trials.items():
            if hopeless.isdisjoint(some):
                by_kind[self._decided(found)].append(some)
        pool: list[tuple[Path, ...]] = []
        for kind, each in by_kind.items():
            sizes = set(self._groups.widths[~self._covered].tolist())
            more = [some for some in each if kind or not sizes.isdisjoint(values[path] for path in some)]
            pool += more
            for together in _some_of(pool):
                paths = tuple(dict.fromkeys(chain(*together)))
                if not set(more).isdisjoint(together) and len(paths) == sum(map(len, together)):
                    yield paths

    def _unstated(self, *, fixed: bool) -> Iterator[Lever]:
        """Levers of numbers that the config leaves to its class; from then on it states them as the class has it.

        fixed: also state those that are no lever by themselves, where they decide shapes: others may be free of them then.
        """
        lengths = {length for shape in self._full.values() for length in shape if length > 1}
        lengths |= {member.multiplicity for group in self._groups.prunable for member in group.members if member.multiplicity > 1}
        longest = max(lengths)
        for path in (*_blanks(self._config), *self._asked):
            for length in sorted(lengths) if self._attempt({path: longest - 1}) != self._full else ():
                if self._attempt({path: length}) == self._full:
                    stated = changed(self._config, {path: length})
                    if not self._agrees(stated, self._groups.widths):
                        before, self._config = self._config, stated
                        lever = self._lever((path,)) or ([Lever((), 1, {path: length})] if fixed else [])
                        self._config = stated if lever else before
                        yield from lever
                    break

    def _trials(self, paths: tuple[Path, ...], values: Numbers) -> list[Shapes | None]:
        """The shapes with one less of some numbers, and with half of them."""
        less = {tuple(values[path] - 1 for path in paths), tuple(values[path] // 2 for path in paths)}
        return [self._attempt(dict(zip(paths, some, strict=True))) for some in sorted(less) if all(some)]

    def _decided(self, found: Sequence[Shapes | None]) -> str:
        """What numbers decide by themselves, as trials show: shapes, or whether there is such a model; which tensors there are; or
        nothing."""
        if any(shapes is None or (shapes != self._full and shapes.keys() == self._full.keys()) for shapes in found):
            return "shapes"
        return "tensors" if any(shapes != self._full for shapes in found) else ""

    def _hopeless(self, trials: Mapping[tuple[Path, ...], Sequence[Shapes | None]]) -> set[Path]:
        """Numbers that change a length which has to stay, and which no other number changes: nothing would make up for it."""
        single = {paths[0]: found for paths, found in trials.items() if len(paths) == 1}
        if any(found and not any(found) for found in single.values()):
            return set()  # what a number does that none is tried of is not known
        moving, by_axis = _moving(self._groups), dict[tuple[str, int], set[Path]]()
        for path, found in single.items():
            for shapes in found:
                for axis in set() if shapes is None else _changed(self._full, shapes) - moving:
                    by_axis.setdefault(axis, set()).add(path)
        return {path for paths in by_axis.values() if len(paths) == 1 for path in paths}

    def _lever(self, paths: Sequence[Path]) -> list[Lever]:
        """The lever of these numbers, in the finest steps that their class takes; none where they are no lever."""
        values = dict(numbers(self._config))
        found = _Finest(self._groups, self._full, self._attempt).of({path: values[path] for path in paths})
        if found is None or self._covered[list(found.lever.groups)].any():
            return []
        if self._agrees(changed(self._config, found.less), found.widths):
            return []
        self._covered[list(found.lever.groups)] = True
        return [found.lever]

    def _attempt(self, changes: Numbers) -> Shapes | None:
        self._left = max(0, self._left - 1)
        return attempt(self._shapes, changed(self._config, changes)) if self._left else None


def at_full_depth(
    levers: Collection[Lever], config: Config, shapes: Callable[[Config], Shapes], groups: Groups
) -> tuple[Lever, ...]:
    """Those of the levers found on few layers that a model of full depth has. groups: of that model."""
    config = changed(config, {path: value for lever in levers for path, value in lever.numbers.items()})
    finest = _Finest(groups, shapes(config), lambda changes: attempt(shapes, changed(config, changes)))
    found = [finest.of(lever.numbers) for lever in levers if lever.groups]
    moving = [one.lever for one in found if one is not None]
    return (*moving, *(lever for lever in levers if not lever.groups)) if moving else ()


@dataclass(frozen=True)
class _Found:
    """A lever, and one step of it that was tried: the changed numbers, and the widths of all groups."""

    lever: Lever
    less: Numbers
    widths: Ints


@dataclass(frozen=True)
class _Finest:
    """Levers in the finest steps that they have. full: shapes of the whole model. attempt: of that of other numbers, if any."""

    groups: Groups
    full: Shapes
    attempt: Callable[[Numbers], Shapes | None]

    def of(self, stated: Numbers) -> _Found | None:
        """The lever of some numbers; None where they are none.

        Steps that its class refuses are left in, where coarser ones are good: they may be fine together with other numbers.
        """
        refused: list[int] = []
        for steps in _finest_first(gcd(*stated.values())):
            less = Lever((), steps, stated).at(steps - 1)
            shapes = self.attempt(less)
            widths = None if shapes is None else widths_of(self.groups, self.full, shapes)
            moved = None if widths is None else _moved(widths, self.groups.widths, steps)
            if shapes is None:
                refused.append(steps)
            elif widths is None or moved is None:
                refused.clear()
            else:
                whole = [finer for finer in refused if not (self.groups.widths[moved] % finer).any()]
                return _Found(Lever(tuple(moved.tolist()), max([steps, *whole]), stated), less, widths)
        return None


def first_units(groups: Groups, widths: Ints) -> Kept:
    """Of every group as many units as it is to be wide, the first ones."""
    keep = np.ones(groups.unit_count, dtype=bool)
    for group, width in zip(groups.prunable, widths.tolist(), strict=True):
        keep[group.units[width:]] = False
    return Kept(groups, keep)


def widths_of(groups: Groups, full: Shapes, shapes: Shapes) -> Ints | None:
    """The widths at which the tensors of a model have these shapes; None where there are none.

    full: the shapes of the whole model. Groups that no given tensor has channels of keep their width.
    """
    equations = _equations(groups, full, shapes)
    if equations is None:
        return None
    widths, unknown = groups.widths.copy(), {group for slopes, _ in equations for group in slopes}
    while solvable := [
        (each, group) for each in equations for group in unknown.intersection(each[0]) if len(unknown & each[0].keys()) == 1
    ]:
        for (slopes, length), group in solvable:
            rest = length - sum(slope * int(widths[other]) for other, slope in slopes.items() if other != group)
            widths[group], over = divmod(rest, slopes[group])
            if over or not 1 <= widths[group] <= groups.widths[group]:
                return None
            unknown.discard(group)
    exact = all(sum(slope * int(widths[group]) for group, slope in slopes.items()) == length for slopes, length in equations)
    return widths if exact and not unknown else None


_Equation: TypeAlias = tuple[Mapping[int, int], int]  # a sum of widths, times these slopes by group, and what it has to be


def _equations(groups: Groups, full: Shapes, shapes: Shapes) -> list[_Equation] | None:
    """What the widths have to meet; None where two axes of one length want others, or one that no width moves does."""
    if full.keys() != shapes.keys() or any(len(full[name]) != len(shape) for name, shape in shapes.items()):
        return None
    lengths = groups.distinct_lengths
    labelled = {(name, axis): int(lengths.of[vector]) for name, axis, vector in groups.axes}
    wanted: dict[int, int] = {}
    for name, shape in shapes.items():
        for axis, length in enumerate(shape):
            row = labelled.get((name, axis))
            if length != (full[name][axis] if row is None else wanted.setdefault(row, length)):
                return None
    return [(_slopes(lengths, row), length - int(lengths.constants[row])) for row, length in wanted.items()]


def _moving(groups: Groups) -> set[tuple[str, int]]:
    """Axes, by tensor and number, whose length depends on the widths of groups."""
    lengths = groups.distinct_lengths
    return {(name, axis) for name, axis, vector in groups.axes if _slopes(lengths, int(lengths.of[vector]))}


def _changed(full: Shapes, shapes: Shapes) -> set[tuple[str, int]]:
    """Axes of tensors of both that have another length."""
    both = {name: (shape, full[name]) for name, shape in shapes.items() if name in full and len(shape) == len(full[name])}
    return {(name, axis) for name, (new, old) in both.items() for axis in range(len(new)) if new[axis] != old[axis]}


def _lists(paths: Iterable[Path]) -> list[tuple[Path, ...]]:
    """The numbers of each list of several."""
    found: dict[Path, list[Path]] = {}
    for path in paths:
        if isinstance(path[-1], int):
            found.setdefault(path[:-1], []).append(path)
    return [tuple(some) for some in found.values() if len(some) > 1]


def _slopes(lengths: Lengths, row: int) -> dict[int, int]:
    terms = slice(*lengths.slopes.indptr[row : row + 2].tolist())
    return dict(zip(lengths.slopes.indices[terms].tolist(), lengths.slopes.data[terms].tolist(), strict=True))


def _moved(widths: Ints, full: Ints, steps: int) -> Ints | None:
    """The groups that have lost one step of their units; None where none has, or some have lost another share."""
    moved = np.flatnonzero(widths < full)
    alike = widths[moved] * steps == full[moved] * (steps - 1)
    return moved if moved.size and alike.all() else None


def _some_of(each: Sequence[tuple[Path, ...]]) -> Iterator[tuple[tuple[Path, ...], ...]]:
    """As many of them as a lever may have, the fewest first."""
    return chain.from_iterable(combinations(each, together) for together in range(1, _TOGETHER + 1))


def _finest_first(whole: int) -> Iterator[int]:
    """Numbers of steps that divide a whole one: each half as many as the one before, as far as that goes, and two."""
    steps = whole
    while steps >= 2:
        yield steps
        if steps % 2:
            break
        steps //= 2


def _blanks(config: Any, path: Path = ()) -> Iterator[Path]:
    """Where a config leaves something to its class."""
    items = list(config.items()) if isinstance(config, Mapping) else list(enumerate(config)) if isinstance(config, list) else []
    for key, value in items:
        if value is None:
            yield (*path, key)
        else:
            yield from _blanks(value, (*path, key))
