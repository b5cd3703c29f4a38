"""Scopes that hand tensors to each other: what nothing else looks at may shrink, though it leaves one scope and enters another.

The model runs once as it is. Each operator that runs outside of the scopes, and each question about a tensor that is asked there,
says which tensors the code around the scopes uses; the others it only passes on.
"""

from __future__ import annotations

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import groupby, permutations
from operator import attrgetter
from typing import Any, Final, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten_with_path, tree_map_with_path

from graphprune.ir.handed import Keys, Taken, part_of
from graphprune.ir.program import Inputs
from graphprune.ir.twins import named_tensors, undisturbed
from graphprune.randomness import own_randomness
from graphprune.rules import tensors_in
from graphprune.tracing.inputs import ModuleCall, with_names

_SIZES: Final[frozenset[Any]] = frozenset({torch.Tensor.shape.__get__, torch.Tensor.size})  # type: ignore[attr-defined]
_NO_MATTER: Final[frozenset[Any]] = frozenset(
    {
        torch.Tensor.dim,
        torch.Tensor.is_floating_point,
        torch.is_floating_point,
        *(getattr(torch.Tensor, name).__get__ for name in ("device", "dtype", "is_cuda", "is_meta", "ndim", "requires_grad")),
    }
)
_OWN_REFERENCES: Final = 2  # to a tensor of a record, when they are counted: the record's, and that of the count


class _Made(NamedTuple):
    """A tensor that a scope has returned, and where in its result."""

    tensor: torch.Tensor
    source: str
    part: Keys


def linked(root: nn.Module, inputs: Inputs, calls: Sequence[ModuleCall]) -> list[ModuleCall]:
    """The calls of scopes in the order in which the model makes them, each with what it takes of earlier ones.

    A tensor is taken where scopes alone use it, each of them called once, and in an argument with nothing but such tensors.
    """
    paths = [call.path for call in calls]
    if len(paths) < 2 or any(inner.startswith(f"{outer}.") for inner, outer in permutations(paths, 2)):
        return list(calls)
    watch = _Watch(root)
    try:
        with undisturbed(root), torch.no_grad(), own_randomness(), watch.over(paths):
            result = root(*inputs.args, **inputs.kwargs)
            watch.use(result)
            watch.use_what_is_kept()
    except Exception:  # it ran without being watched; its scopes keep their boundaries
        return list(calls)
    taken = watch.taken()
    calls = [replace(call, taken=tuple(taken[call.path])) for call in calls]
    return sorted(calls, key=lambda call: watch.order.index(call.path))


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
        found[name] = tree_map_with_path(lambda way, leaf, given=given: given.get(_keys(way), leaf), arguments[name])
    return found


class _Watch:
    """Notes what a model does with the results of its scopes."""

    def __init__(self, root: nn.Module) -> None:
        self.order: list[str] = []  # the scopes as they are called
        self._root = root
        self._own = set(map(id, named_tensors(root).values()))
        self._made: dict[int, _Made] = {}
        self._used: set[int] = set()
        self._read: dict[int, set[int]] = defaultdict(set)
        self._given: dict[tuple[str, str], list[tuple[Keys, int]]] = {}  # what arguments hold, of those that hold nothing else
        self._inside: list[frozenset[int]] = []  # the arguments of the scope that runs

    @contextmanager
    def over(self, paths: Sequence[str]) -> Iterator[None]:
        """What runs within is watched."""
        with ExitStack() as stack:
            for path in paths:
                module = self._root.get_submodule(path)
                before = module.register_forward_pre_hook(partial(self._enter, path), with_kwargs=True)
                after = module.register_forward_hook(partial(self._leave, path), always_call=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
            stack.enter_context(_Operators(self))
            stack.enter_context(_Questions(self))
            yield

    def use(self, tree: Any) -> None:
        """Note that these are used: by the code around the scopes, or by a scope that has not got them as arguments."""
        given = self._inside[-1] if self._inside else frozenset()
        self._used |= {id(tensor) for tensor in tensors_in((tree,))} & (self._made.keys() - given)

    def ask(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The answer to a question about tensors, such as for a size, or the result of a call, which runs operators."""
        for sizes in _sizes_in((args, kwargs)):
            sizes.read_all()
        if func not in _SIZES or self._inside or id(args[0]) not in self._made:
            if func not in _NO_MATTER:
                self.use((args, kwargs))
            return func(*args, **kwargs)
        sizes = _Sizes(args[0].shape)
        sizes.read = self._read[id(args[0])]
        axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
        return sizes if axis is None else sizes[axis]

    def use_what_is_kept(self) -> None:
        """Note that what something still holds is used: an attribute, which a later call may read, or what the model returns."""
        self._used |= {key for key, made in self._made.items() if sys.getrefcount(made.tensor) > _OWN_REFERENCES}

    def taken(self) -> dict[str, list[Taken]]:
        """What scopes take from others that may shrink, by their paths."""
        times = Counter(self.order)
        free = {key for key, made in self._made.items() if key not in self._used and times[made.source] == 1}
        found = {place: held for place, held in self._given.items() if times[place[0]] == 1}
        free -= {key for place, held in self._given.items() if place not in found for _, key in held}
        while not all(key in free for held in found.values() for _, key in held):
            for place, held in [*found.items()]:
                if not free.issuperset(key for _, key in held):
                    free -= {key for _, key in held}
                    del found[place]
        result: dict[str, list[Taken]] = defaultdict(list)
        for (path, argument), held in found.items():
            for at, key in held:
                made = self._made[key]
                result[path].append(Taken(argument, at, made.source, made.part, tuple(sorted(self._read[key]))))
        return result

    def _enter(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.order.append(path)
        for name, value in [*with_names(module, args), *kwargs.items()]:
            held = [(at, leaf) for at, leaf in _leaves(value) if isinstance(leaf, torch.Tensor)]
            if any(at is None or id(leaf) not in self._made for at, leaf in held):
                self.use([leaf for _, leaf in held])
            elif held:
                self._given[path, name] = [(at, id(leaf)) for at, leaf in held if at is not None]
        self._inside.append(frozenset(id(tensor) for tensor in tensors_in((args, kwargs))))

    def _leave(self, path: str, module: nn.Module, args: Any, result: Any) -> None:
        given = self._inside.pop()
        for part, leaf in _leaves(result):
            if isinstance(leaf, torch.Tensor) and part is not None and id(leaf) not in given | self._own | self._made.keys():
                self._made[id(leaf)] = _Made(leaf, path, part)
            else:
                self.use(leaf)


class _Operators(TorchDispatchMode):
    """Operators, whatever has called them."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._watch.use((args, kwargs))
        return func(*args, **(kwargs or {}))


class _Questions(TorchFunctionMode):
    """Functions of torch and attributes of tensors."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._watch.ask(func, args, kwargs or {})


class _Sizes(tuple[int, ...]):
    """A ``torch.Size`` (which cannot be derived from) that notes which of its axes are read."""

    __class__: Any = torch.Size  # what isinstance sees
    read: set[int]

    def read_all(self) -> None:
        """Note that all are read."""
        self.read.update(range(len(self)))

    def numel(self) -> int:
        """The product of the sizes."""
        return math.prod(self)

    def __getitem__(self, index: Any) -> Any:
        axes = range(len(self))[index]
        self.read.update(axes if isinstance(index, slice) else [axes])
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[int]:
        self.read_all()
        return super().__iter__()

    def __contains__(self, size: object) -> bool:
        return size in tuple(self)

    def __add__(self, other: Any) -> Any:
        return tuple(self) + other

    def __radd__(self, other: Any) -> Any:
        return other + tuple(self)

    def __eq__(self, other: object) -> bool:
        return tuple(self) == other

    __hash__ = tuple.__hash__


def _sizes_in(items: Any) -> Iterator[_Sizes]:
    for item in items:
        if type(item) is _Sizes:
            yield item
        elif type(item) in (tuple, list):
            yield from _sizes_in(item)
        elif type(item) is dict:
            yield from _sizes_in(item.values())


def _leaves(tree: Any) -> list[tuple[Keys | None, Any]]:
    """The leaves of a structure with the ways to them; None for the way into anything but dicts, lists and tuples."""
    return [(_keys(way), leaf) for way, leaf in tree_flatten_with_path(tree)[0]]


def _keys(way: Iterable[Any]) -> Keys | None:
    keys: list[Any] = [getattr(key, "idx", getattr(key, "key", None)) for key in way]  # None of an attribute
    return tuple(keys) if all(type(key) in (int, str) for key in keys) else None
