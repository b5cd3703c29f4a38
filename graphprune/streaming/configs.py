"""The config of a slim model: which numbers of a transformers config say what a plan left, if any do.

No architecture is known by name. Every integer of the config is a candidate, and a change of it is believed when a model built from
the changed config, on the meta device, has the tensors of the slim one and runs the same operators on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import combinations
from typing import Any, Final, TypeAlias, cast

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Mapping[str, Shape]
Path: TypeAlias = tuple[str | int, ...]
Config: TypeAlias = dict[str, Any]

MOST: Final = 400  #: Models that are built in a search.
_SMALL: Final = 2  # numbers below are flags and counts that no width stands behind
_FEW: Final = 2  # layers, in a search that can do with few


@dataclass(frozen=True)
class Fit:
    """A config that makes the slim model, or why there is none. changes: by the path in the config, old and new number; the old one
    is None where it was left to the model's class. stated: every number of the config that is another then, also what its class
    derives; lists as a whole."""

    config: Config | None
    changes: Mapping[str, tuple[int | None, int]]
    reason: str = ""
    stated: Mapping[str, int | list[int]] = field(default_factory=dict)

    def describe(self) -> str:
        """In a sentence or two."""
        if self.config is None:
            return f"No config of this architecture makes the slim model ({self.reason}), so from_pretrained cannot load it."
        changes = ", ".join(f"{name} {'unset' if old is None else old} -> {new}" for name, (old, new) in self.changes.items())
        changes = changes or "nothing to change"
        return f"config.json: {changes}. Its model runs the same operators on the same shapes as the slim graph."


class Search:
    """A search for the config of a slim model.

    shapes: of the state of a model built from a config; raises where the config is none. agrees: why a model built from a config is
    not the slim one although its shapes are, or an empty text. most: models that are built.
    """

    def __init__(
        self, config: Config, shapes: Callable[[Config], Shapes], agrees: Callable[[Config], str], most: int = MOST
    ) -> None:
        self.config = config
        self._shapes = shapes
        self._agrees = agrees
        self._most = most
        self._built: dict[tuple[tuple[Path, int], ...], Shapes | None] = {}
        self._best: tuple[int, str] | None = None
        self._short: dict[Path, int] = {}

    def run(self, wanted: Shapes) -> Fit:
        """The first config found whose model has these shapes, of which some are those of the original, and agrees."""
        full = self._shapes(self.config)
        self._short = few_layers(self.config, self._shapes)
        reason = ""
        for changes in self._fits(wanted, {}, set()):
            for more in self._completed(changes, full, wanted):
                fit = self.check(more, wanted)
                if fit.config is not None:
                    return fit
                reason = reason or fit.reason
        return Fit(None, {}, reason or (self._best[1] if self._best else "nothing differs from the original"))

    def check(self, changes: Mapping[Path, int], wanted: Shapes) -> Fit:
        """The config with these numbers, if its model has these shapes and agrees."""
        candidate = changed(self.config, changes)
        differs = _difference(attempt(self._shapes, candidate), wanted) or self._agrees(candidate)
        if differs:
            return Fit(None, {}, differs)
        pairs = {".".join(map(str, path)): (_at(self.config, path), new) for path, new in changes.items()}
        return Fit(candidate, {name: pair for name, pair in pairs.items() if pair[0] != pair[1]})

    def _shapes_with(self, changes: Mapping[Path, int]) -> Shapes | None:
        key = tuple(sorted(changes.items(), key=str))
        if key not in self._built and len(self._built) < self._most:
            self._built[key] = attempt(self._shapes, changed(self.config, {**changes, **self._short}))
        return self._built.get(key)

    def _fits(self, wanted: Shapes, changes: dict[Path, int], seen: set[tuple[tuple[Path, int], ...]]) -> Iterator[dict[Path, int]]:
        """Changes under which all shapes are as wanted: depth first, each change leaving fewer axes wrong."""
        found = self._shapes_with(changes)
        key = tuple(sorted(changes.items(), key=str))
        if found is None or key in seen:
            return
        seen.add(key)
        wrong = _wrong(found, wanted)
        if self._best is None or len(wrong) < self._best[0]:
            self._best = len(wrong), _difference(found, wanted)
        if not wrong:
            yield changes
            return
        for together in (1, 2):  # two numbers at once only where no single one helps
            better = [more for more in self._steps(set(wrong), changes, together) if self._improves(more, wanted, len(wrong))]
            for more in better:
                yield from self._fits(wanted, more, seen)
            if better:
                return

    def _improves(self, changes: Mapping[Path, int], wanted: Shapes, wrong: int) -> bool:
        found = self._shapes_with(changes)
        return found is not None and len(_wrong(found, wanted)) < wrong

    def _steps(self, wrong: set[tuple[int, int]], changes: Mapping[Path, int], together: int) -> Iterator[dict[Path, int]]:
        """Changes of so many numbers more, by the ratio of an axis that is wrong: (length, wanted length)."""
        free = [(path, value) for path, value in numbers(self.config) if path not in changes and path not in self._short]
        for ratio in _ratios(wrong):
            scaled = {path: int(value * ratio) for path, value in free if (value * ratio).denominator == 1}
            yield from ({**changes, **dict(some)} for some in combinations(scaled.items(), together))

    def _completed(self, changes: dict[Path, int], full: Shapes, wanted: Shapes) -> Iterator[dict[Path, int]]:
        """The changes, and with one number more that no shape shows, such as a number of heads."""
        yield changes
        ratios = _ratios(_wrong(full, wanted))
        for path, value in numbers(self.config):
            for ratio in ratios:
                if path not in changes and (value * ratio).denominator == 1:
                    more = {**changes, path: int(value * ratio)}
                    if self._shapes_with(more) == self._shapes_with(changes):
                        yield more


def attempt(shapes: Callable[[Config], Shapes], config: Config) -> Shapes | None:
    """The shapes of a config's model; None where there is no such model."""
    try:
        return shapes(config)
    except Exception:  # whatever a class of models says of numbers that do not go together
        return None


def changed(config: Config, changes: Mapping[Path, int]) -> Config:
    """A copy of a config with other numbers."""
    copy = deepcopy(config)
    for path, value in changes.items():
        _holder(copy, path)[path[-1]] = value
    return copy


def few_layers(config: Config, shapes: Callable[[Config], Shapes]) -> dict[Path, int]:
    """A number that says how many blocks repeat, set to a few so that a search builds small models; if there is one."""
    full = shapes(config)
    for path, value in numbers(config):
        if value > _FEW:
            found = attempt(shapes, changed(config, {path: _FEW}))
            if found is not None and len(found) < len(full) and all(full.get(name) == shape for name, shape in found.items()):
                return {path: _FEW}
    return {}


def others(new: Config, old: Any, where: str = "") -> dict[str, int | list[int]]:
    """The numbers of a config that are not those of another, by their dotted names; lists of numbers as a whole.

    >>> others({"width": 4, "depths": [1, 3], "vision": {"width": 8}}, {"width": 4, "depths": [1, 4], "vision": {}})
    {'depths': [1, 3], 'vision.width': 8}
    """
    found: dict[str, int | list[int]] = {}
    for key, value in new.items():
        before = old.get(key) if isinstance(old, Mapping) else None
        if isinstance(value, Mapping):
            found |= others(dict(value), before, f"{where}{key}.")
        elif value != before and (type(value) is int or (isinstance(value, list) and all(type(one) is int for one in value))):
            found[f"{where}{key}"] = value
    return found


def numbers(config: Any, path: Path = ()) -> Iterator[tuple[Path, int]]:
    """All integers in a config that may be sizes, with where they are."""
    items: Sequence[tuple[str | int, Any]] = ()
    if isinstance(config, Mapping):
        items = list(config.items())
    elif isinstance(config, list):
        items = list(enumerate(config))
    elif type(config) is int and config >= _SMALL:
        yield path, config
    for key, value in items:
        yield from numbers(value, (*path, key))


def _at(config: Any, path: Path) -> int | None:
    holder = _holder(config, path)
    return cast("int | None", holder.get(path[-1]) if isinstance(holder, Mapping) else holder[path[-1]])


def _holder(config: Any, path: Path) -> Any:
    for key in path[:-1]:
        config = config[key]
    return config


def _wrong(found: Shapes, wanted: Shapes) -> list[tuple[int, int]]:
    """(length, wanted length) of every axis that is not as wanted, of the tensors that were built."""
    return [
        (length, goal)
        for name, shape in found.items()
        if name in wanted
        for length, goal in zip(shape, wanted[name], strict=True)
        if length != goal
    ]


def _ratios(wrong: Iterable[tuple[int, int]]) -> list[Fraction]:
    """By what lengths would have to be multiplied, the least first; nothing makes one of 0 another."""
    return sorted({Fraction(goal, length) for length, goal in wrong if length})


def _difference(found: Shapes | None, wanted: Shapes) -> str:
    """The first tensor that is not as wanted, in words; an empty text where all are."""
    if found is None:
        return "the model's class refuses the changed config"
    for name, shape in wanted.items():
        if name in found and found[name] != shape:
            return f"{name} is {list(shape)} in the slim model, and {list(found[name])} by the nearest config"
    return "" if found.keys() == wanted.keys() else "the number of layers would have to change"
