"""``int(n)``, ``len(x)``, ``min(n, m)``, ``math.sqrt(n)`` and their like, of sizes: C code that gives plain numbers.

So are functions of numpy (:mod:`graphprune.tracing.arrays`), ``torch.from_numpy``, whose data are a constant of the graph, and what
draws numbers (:mod:`graphprune.tracing.draws`).

While a model is traced, calls of these names in its own functions, and in what they call by name, are calls of twins that
keep the origin of their result. Only calls: as a class (``isinstance``, a dtype) ``int`` stays what it is.
"""

from __future__ import annotations

import builtins
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dis import get_instructions
from functools import lru_cache, wraps
from opcode import opmap, opname
from operator import is_not
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

import numpy as np
import torch
from torch import fx, nn

from graphprune.tracing import arrays, draws
from graphprune.tracing.hints import python_of
from graphprune.tracing.sizes import derive, extreme, literal, of_list, origin_of, read_whole, settle
from graphprune.tracing.tensor_types import MAKING

_LOAD_GLOBAL: Final = opmap["LOAD_GLOBAL"]
_EXTENDED_ARG: Final = opmap["EXTENDED_ARG"]
_LARGEST_ARGUMENT: Final = 255
_CACHE_CODE: Final = opmap["CACHE"]
_ATTRIBUTES: Final = ("LOAD_ATTR", "LOAD_METHOD")
_PER_NAME: Final = 1 if sys.version_info < (3, 12) else 2  # arguments of these for each name
_MOST_CODES: Final = 10_000  # whose names are remembered
_BUILTINS: Final = vars(builtins)
_CACHE: Final = type(lru_cache(len))
_FOREIGN: Final = sys.stdlib_module_names | {"torch", "numpy", "graphprune"}
_COUNTING: Final = "torch.nn.modules.rnn"  # layers whose own code makes an int of how many sequences there are


def _remembering(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with the origin of its result where it is given sizes."""

    @wraps(function, updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        if kwargs or not any(origin_of(arg) for arg in args):
            return function(*args, **kwargs)
        return derive(function, *args)

    return call


def _int(*args: Any, **kwargs: Any) -> Any:
    args = tuple(map(_number, args))
    origin = origin_of(args[0]) if len(args) == 1 else None
    if origin is None:
        return int(*args, **kwargs)
    return args[0] if isinstance(args[0], int) else derive(int, args[0])


def _float(*args: Any) -> Any:
    return _remembering(float)(*map(_number, args))


def _number(item: Any) -> Any:
    """A number instead of the tensor that holds it."""
    return item.item() if isinstance(item, torch.Tensor) else item


def _len(item: Any) -> Any:
    node = read_whole(item)
    if node is not None:
        return of_list(len, item, node)
    return item.size(0) if isinstance(item, torch.Tensor) and item.dim() else len(item)


def _range(*bounds: Any) -> range:
    return range(*map(settle, bounds))


_MATH: Final = (math.sqrt, math.isqrt, math.log, math.log2, math.log10, math.exp, math.pow, math.gcd, math.hypot, math.fabs)
_MODULES: Final[dict[Any, dict[str, Callable[..., Any]]]] = {
    math: {function.__name__: _remembering(function) for function in _MATH},
    np: arrays.TWINS,
    **draws.TWINS,
    torch: {"from_numpy": torch.as_tensor, **draws.TWINS[torch]},  # no mode hears of the former
}
_TWINS: Final[dict[Any, Callable[..., Any]]] = {
    int: _int, float: _float, len: _len, range: _range, min: extreme(min), max: extreme(max),
    **{vars(module)[name]: twin for module, twins in _MODULES.items() for name, twin in twins.items()},
    **MAKING,
}  # fmt: skip
_BUILT_IN: Final = {function.__name__ for function in _TWINS if getattr(function, "__module__", "") == builtins.__name__}
_TYPES: Final = {kind.__name__: kind for kind in MAKING}
_NAMES: Final = {id(function): f"_{getattr(function, '__name__', '')} {place}" for place, function in enumerate(_TWINS)}
_MAKING: Final = {_NAMES[id(kind)]: twin for kind, twin in MAKING.items()}


class Conversions:
    """The code that runs when a model does, with calls of the twins instead of the functions, and without caches of functions.

    A cache (``functools.lru_cache``) holds the numbers of another run, and would keep the tensors of this one.
    """

    def __init__(self, root: nn.Module) -> None:
        self._codes: dict[FunctionType, tuple[CodeType, CodeType]] = {}
        self._places: list[tuple[Any, str, Any]] = []
        for item, held in _code_of(root):
            if isinstance(item, FunctionType):
                code = item.__code__
                new = _rewritten(code, code.co_filename, frozenset(_twins_in(_names(code), held).items()))
                if new is not code:
                    self._codes[item] = code, new
            self._places += [(item, name, value) for name, value in held.items() if type(value) is _CACHE]

    @contextmanager
    def remembered(self) -> Iterator[None]:
        """Have that code run within."""
        _BUILTINS.update(zip(_NAMES.values(), _TWINS.values(), strict=True))
        before = {module: {name: vars(module)[name] for name in twins} for module, twins in _MODULES.items()}
        try:
            for module, twins in _MODULES.items():
                vars(module).update(twins)
            vars(torch).update(_MAKING)
            for function, (_, new) in self._codes.items():
                function.__code__ = new
            for place, name, value in self._places:
                _put(place, name, value.__wrapped__)
            yield
        finally:
            for place, name, value in self._places:
                _put(place, name, value)
            for function, (code, _) in self._codes.items():
                function.__code__ = code
            for module, functions in before.items():
                vars(module).update(functions)
            for name in _MAKING:
                del vars(torch)[name]
            for name in _NAMES.values():
                del _BUILTINS[name]


def _put(place: Any, name: str, value: Any) -> None:
    if isinstance(place, type):
        setattr(place, name, value)
    else:
        place.__globals__[name] = value


def _twins_in(names: Set[str], held: Mapping[str, Any]) -> dict[str, str]:
    """The names by which code calls functions that have twins, with those of the twins. held: what names mean in its module."""
    meant = {**{name: _BUILTINS[name] for name in names & _BUILT_IN}, **held}
    types = {f"{name}.{kind}": _TYPES[kind] for name in held if held[name] is torch for kind in names & _TYPES.keys()}
    return {name: _NAMES[id(value)] for name, value in (meant | types).items() if id(value) in _NAMES}


@lru_cache(_MOST_CODES)
def _rewritten(code: CodeType, file: str, renamed: frozenset[tuple[str, str]]) -> CodeType:
    """The code with calls of the twins; the same object where there are none. file: of the code; equal code may be of another."""
    constants = tuple([_constant(item, file, renamed) for item in code.co_consts])
    new_names = dict(renamed)
    twins = {at: new_names[name] for at, name in enumerate(code.co_names) if name in new_names}
    types = _types_called(code, new_names)
    names = (*code.co_names, *twins.values(), *types.values())
    if 2 * len(names) > _LARGEST_ARGUMENT or not (twins or types):
        return code.replace(co_consts=constants) if any(map(is_not, constants, code.co_consts)) else code
    # The argument of LOAD_GLOBAL is twice the name's index, and odd where the value is about to be called.
    arguments = {2 * at + 1: 2 * names.index(name) + 1 for at, name in twins.items()}
    text = bytearray(code.co_code)
    for at in range(0, len(text), 2):
        if text[at] == _LOAD_GLOBAL and (at == 0 or text[at - 2] != _EXTENDED_ARG) and not _reads_attribute(text, at + 2):
            text[at + 1] = arguments.get(text[at + 1], text[at + 1])
    for at, name in types.items():
        text[at + 1] = _PER_NAME * names.index(name) + text[at + 1] % _PER_NAME
    return code.replace(co_consts=constants, co_names=names, co_code=bytes(text))


def _reads_attribute(text: Sequence[int], at: int) -> bool:
    """Whether what comes next is an attribute (``Tensor.add(x, y)``) of what was loaded."""
    return opname[next(code for code in text[at::2] if code != _CACHE_CODE)] in _ATTRIBUTES


def _types_called(code: CodeType, new_names: Mapping[str, str]) -> dict[int, str]:
    """Where code calls types of tensors as attributes of torch, with the names of their twins there."""
    if not any("." in name for name in new_names):
        return {}
    found = {}
    steps = list(get_instructions(code))
    for before, step, after in zip(steps, steps[1:], steps[2:], strict=False):
        if before.opname != "LOAD_GLOBAL" or step.opname not in _ATTRIBUTES or after.opname in _ATTRIBUTES:
            continue
        called, place = before.arg or 0, step.arg or 0
        calls = called % 2 or step.opname == "LOAD_METHOD" or after.opname == "PUSH_NULL"
        name = new_names.get(f"{before.argval}.{step.argval}")
        if calls and name is not None and place <= _LARGEST_ARGUMENT:
            found[step.offset] = name
    return found


def _constant(item: Any, file: str, renamed: frozenset[tuple[str, str]]) -> Any:
    """A constant of rewritten code; the same object where it is no number that sizes are multiplied with."""
    if isinstance(item, CodeType):
        return _rewritten(item, file, renamed)
    new = literal(item)
    return item if isinstance(new, tuple) and not any(map(is_not, new, item)) else new


def _code_of(root: nn.Module) -> list[tuple[Any, Mapping[str, Any]]]:
    """The model's classes, functions that its modules hold, and all classes and functions that running them names.

    None of them is of torch or the standard library.

    The code of a graph module is the model's own, though its class is one of torch. Each with what it has (a class) or names of its
    module (a function).
    """
    modules = list(root.modules())
    pending: list[Any] = list({type(module) for module in modules})
    pending += [value for module in modules for value in vars(module).values() if type(value) is FunctionType]
    pending += [getattr(module.forward, "__func__", module.forward) for module in modules if isinstance(module, fx.GraphModule)]
    seen: dict[int, tuple[Any, Mapping[str, Any]]] = {}
    methods: dict[str, list[Any]] = defaultdict(list)  # those that nothing has named so far
    names = {"forward", "__call__", "__getitem__"}
    while pending:
        item = pending.pop()
        module = item.__module__ or ""
        if id(item) in seen or (module.partition(".")[0] in _FOREIGN and module != _COUNTING):
            continue
        if isinstance(item, type):
            seen[id(item)] = item, vars(item)
            pending += item.__bases__
            for name, value in vars(item).items():
                inner = getattr(value, "fget", None) or getattr(value, "__wrapped__", value)
                if isinstance(inner, FunctionType):
                    (pending if name in names else methods[name]).append(inner)
        else:
            named, scope = _names(item.__code__), item.__globals__
            held = {name: scope[name] for name in named & scope.keys()}
            seen[id(item)] = item, held
            pending += _reached([*_closure(item), *held.values(), *_imported(named, scope)], named)
            new = named - names
            pending += [method for name in new & methods.keys() for method in methods.pop(name)]
            names |= new
    return list(seen.values())


def _imported(names: Set[str], scope: Mapping[str, Any]) -> list[Any]:
    """The modules that code may import within a function, by their names or from its own package."""
    package = scope.get("__package__") or ""
    return [sys.modules[name] for name in (*names, *(f"{package}.{name}" for name in names)) if name in sys.modules]


def _reached(held: Sequence[Any], names: frozenset[str]) -> list[Any]:
    """Classes and functions among the values that a function holds, and what it may name of the modules among them."""
    modules = [vars(value) for value in held if isinstance(value, ModuleType)]
    reached = [*held, *(module[name] for module in modules for name in names & module.keys())]
    reached = [value.__wrapped__ if isinstance(value, _CACHE) else python_of(value) for value in reached]
    return [value for value in reached if isinstance(value, (type, FunctionType))]


@lru_cache(_MOST_CODES)
def _names(code: CodeType) -> frozenset[str]:
    return frozenset(code.co_names).union(*[_names(item) for item in code.co_consts if isinstance(item, CodeType)])


def _closure(function: FunctionType) -> Iterator[Any]:
    """What a function encloses: that which a decorator wraps, for one."""
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a cell that is still empty
            yield cell.cell_contents
