"""Boxes around the layers of a drawing: a large model is drawn as its modules, which open into what is in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import isqrt
from typing import Final

from graphprune.reporting.layers import Layer

MOST: Final = 250  # shapes that a browser lays out at once, and an eye takes in
_EDGES: Final = 2  # edges for each of them
_Path = tuple[str, ...]


@dataclass
class _Box:
    """A module. boxes: modules in it, by name. order: these and its layers, in the order of their first call."""

    boxes: dict[str, _Box] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)


def boxes(layers: Mapping[str, Layer], most: int = MOST) -> dict[str, _Path]:
    """The boxes around every layer by key, outermost first.

    A box is a module with more than one thing in it; a join is where the last layer before it is. More than ``most`` things in one
    module come in runs, as boxes of their own.

    >>> found = boxes({key: Layer(key, "layer", key) for key in ("stem", "body.0.a", "body.0.b", "body.1")})
    >>> found["stem"], found["body.0.b"], found["body.1"]
    ((), ('body', 'body.0'), ('body',))
    """
    root = _Box()
    homes: dict[str, _Path] = {}
    for key, layer in layers.items():
        homes[key] = _modules(key) if layer.kind == "layer" else _home(layer, homes)
        box = root
        for name in homes[key]:
            if name not in box.boxes:
                box.boxes[name] = _Box()
                box.order.append(name)
            box = box.boxes[name]
        box.order.append(key)
    return dict(_around(root, (), most))


def opened(layers: Mapping[str, Layer], around: Mapping[str, _Path], most: int = MOST) -> list[str]:
    """Boxes that are open at first: level by level, as long as no more than ``most`` shapes and twice as many edges are seen.

    >>> layers = {key: Layer(key, "layer", key) for key in ("stem", "body.0.a", "body.0.b", "body.1")}
    >>> opened(layers, boxes(layers), most=3)
    ['body']
    """
    level = max((len(path) for path in around.values()), default=0)
    while level and not _fits(layers, around, level, most):
        level -= 1
    return list(dict.fromkeys(name for path in around.values() for name in path[:level]))


def _fits(layers: Mapping[str, Layer], around: Mapping[str, _Path], level: int, most: int) -> bool:
    """Whether what is seen where boxes of so many levels are open, and the edges between it, are not too many."""
    seen = {key: path[level] if len(path) > level else key for key, path in around.items()}
    edges = {(seen[source], seen[key]) for key, layer in layers.items() for source in layer.sources if source in seen}
    return len(set(seen.values())) <= most and len(edges) <= _EDGES * most


def _modules(key: str) -> _Path:
    parts = key.split(".")
    return tuple(".".join(parts[:end]) for end in range(1, len(parts)))


def _home(layer: Layer, homes: Mapping[str, _Path]) -> _Path:
    known = [source for source in layer.sources if source in homes]
    return homes[known[-1]] if known and layer.kind == "join" else ()


def _around(box: _Box, path: _Path, most: int) -> Iterator[tuple[str, _Path]]:
    """Every layer in a box with the boxes around it, given those around this box."""
    runs = [box.order] if len(box.order) <= most else list(_runs(box.order))
    for run in runs:
        inner = path if len(runs) == 1 else (*path, f"{run[0]} … {run[-1]}")
        for key in run:
            if key not in box.boxes:
                yield key, inner
            else:
                alone = len(box.boxes[key].order) == 1
                yield from _around(box.boxes[key], inner if alone else (*inner, key), most)


def _runs(order: Sequence[str]) -> Iterator[list[str]]:
    rest: Iterable[str] = iter(order)
    while run := list(islice(rest, isqrt(len(order)) + 1)):
        yield run
