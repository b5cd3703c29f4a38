"""Tensors that scopes hand to each other: what nothing else uses may shrink, though it leaves one scope and enters another."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, permutations
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn
from torch.utils._pytree import tree_map_with_path

from graphprune.ir.handed import Keys, Taken, part_of
from graphprune.tracing.inputs import ModuleCall, with_names
from graphprune.tracing.watching import Call, Token, Watch, keys_of

Given: TypeAlias = Mapping[tuple[str, str], Sequence[tuple[Keys, Token]]]
"""What scopes are called with, by their paths and the names of the arguments, of those that hold nothing but results of scopes."""


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
    given = {place: held for run in runs for place, held in _given(root, run, made, used)}
    times = Counter(run.path for run in runs)
    used |= {token for token, maker in made.items() if times[maker.call.path] > 1}
    used |= {token for (path, _), held in given.items() for _, token in held if times[path] > 1}
    taken: dict[str, list[Taken]] = defaultdict(list)
    for (path, argument), held in _passed_on(given, used).items():
        for at, token in held:
            maker = made[token]
            taken[path].append(Taken(argument, at, maker.call.path, maker.part, tuple(sorted(read[token]))))
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


def _given(root: nn.Module, run: Call, made: Mapping[Token, _Made], used: set[Token]) -> list[tuple[tuple[str, str], Any]]:
    """The arguments of a call that hold nothing but results of scopes; what is in others is added to ``used``."""
    places = [key for key in run.given if isinstance(key, int)]
    names = {place: name for name, place in with_names(root.get_submodule(run.path), places)}
    found = []
    for key, held in run.given.items():
        if all(way is not None and token in made for way, token in held):
            found.append(((run.path, names.get(key, str(key))), held))
        else:
            used |= {token for _, token in held}
    return found


def _passed_on(given: Given, used: set[Token]) -> Given:
    """The arguments of which nothing is used elsewhere, nor goes along with what is."""
    left = dict(given)
    while True:
        out = [place for place, held in left.items() if any(token in used for _, token in held)]
        if not out:
            return left
        used |= {token for place in out for _, token in left.pop(place)}


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
