"""Tensors that scopes hand to each other: what nothing else uses may shrink, though it leaves one scope and enters another."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from itertools import groupby, permutations
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import nn
from torch.utils._pytree import tree_map_with_path

from graphprune.ir.handed import Keys, Taken, part_of
from graphprune.tracing.inputs import ModuleCall, with_names
from graphprune.tracing.watching import Call, Token, Watch, keys_of

Held: TypeAlias = Sequence[tuple[Keys | None, Token]]
"""The tensors in an argument, with the ways to them."""
Given: TypeAlias = Mapping[tuple[str, str], Held]
"""What scopes are called with, by their paths and the names of the arguments."""


class _Made(NamedTuple):
    """Where a tensor is made. part: where it is in the result of that call."""

    call: Call
    part: Keys


def linked(root: nn.Module, watch: Watch, calls: Sequence[ModuleCall]) -> list[ModuleCall]:
    """The calls of scopes in the order in which the model makes them, each with what it takes of earlier ones.

    A tensor is taken where scopes alone use it, each of them called once, and in an argument with nothing but such tensors.
    """
    paths = [call.path for call in calls]
    if any(inner.startswith(f"{outer}.") for inner, outer in permutations(paths, 2)):
        return list(calls)
    runs = [run for run in watch.calls if run.path in paths]
    made = {token: _Made(run, way) for run in reversed(runs) for way, token in run.returned if way is not None}
    used, read = _used_around(watch, paths, made)
    times = Counter(run.path for run in runs)
    free = {token for token, maker in made.items() if times[maker.call.path] == 1} - used
    free -= {token for run in runs if times[run.path] > 1 for token in run.arguments}
    given = {place: held for run in runs for place, held in _given(root, run)}
    taken: dict[str, list[Taken]] = defaultdict(list)
    for (path, argument), held in _passed_on(given, free).items():
        for at, token in held:
            maker = made[token]
            taken[path].append(Taken(argument, cast(Keys, at), maker.call.path, maker.part, tuple(sorted(read[token]))))
    order = [run.path for run in runs]
    return sorted((replace(call, taken=tuple(taken[call.path])) for call in calls), key=lambda call: order.index(call.path))


def _used_around(watch: Watch, paths: Sequence[str], made: Mapping[Token, _Made]) -> tuple[set[Token], dict[Token, set[int]]]:
    """What is used where no scope runs that has made it or has been given it, and the axes whose sizes alone are read there."""
    used, read = watch.kept & made.keys(), defaultdict[Token, set[int]](set)
    for token, within, axis in watch.uses:
        if token not in made:
            continue
        scope = within
        while scope is not None and scope.path not in paths:
            scope = scope.within
        if scope is None and axis is not None:
            read[token].add(axis)
        elif scope is None or (scope is not made[token].call and token not in scope.arguments):
            used.add(token)
    return used, read


def _given(root: nn.Module, run: Call) -> Iterator[tuple[tuple[str, str], Held]]:
    """The arguments of a call, by the path of its module and their names."""
    places = [key for key in run.given if isinstance(key, int)]
    names = {place: name for name, place in with_names(root.get_submodule(run.path), places)}
    for key, held in run.given.items():
        yield (run.path, names.get(key, str(key))), held


def _passed_on(given: Given, free: Set[Token]) -> Given:
    """The arguments that hold nothing but tensors that are free; those beside others are not."""
    left = dict(given)
    while out := [place for place, held in left.items() if not all(way is not None and token in free for way, token in held)]:
        free = free - {token for place in out for _, token in left.pop(place)}
    return left


def taken_arguments(
    hand_over: Callable[[torch.Tensor, str, Taken], torch.Tensor],
    call: ModuleCall,
    arguments: Mapping[str, Any],
    results: Mapping[str, Any],
) -> dict[str, Any]:
    """The arguments of a call that other scopes make.

    hand_over: what the call gets for a tensor. arguments: what it gets in the model. results: of the others, by path.
    """
    found: dict[str, Any] = {}
    for name, group in groupby(call.taken, key=attrgetter("argument")):
        given = {one.at: hand_over(part_of(results[one.source], one.part), call.path, one) for one in group}
        found[name] = tree_map_with_path(lambda way, leaf, given=given: given.get(keys_of(way), leaf), arguments[name])
    return found
