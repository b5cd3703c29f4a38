"""A run of a model in which every use of a tensor that a module has returned is noted, with the call that it is made in."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten_with_path

from graphprune.ir.handed import Keys
from graphprune.ir.twins import named_tensors
from graphprune.rules import tensors_in

Token: TypeAlias = int
"""A tensor, as long as it lives: its identity may be that of another one later."""

_SIZES: Final[frozenset[Any]] = frozenset({torch.Tensor.shape.__get__, torch.Tensor.size})  # type: ignore[attr-defined]
_NO_MATTER: Final[frozenset[Any]] = frozenset(
    {
        torch.Tensor.dim,
        torch.Tensor.is_floating_point,
        torch.is_floating_point,
        *(getattr(torch.Tensor, name).__get__ for name in ("device", "dtype", "is_cuda", "is_meta", "ndim", "requires_grad")),
    }
)


@dataclass(eq=False)
class Call:
    """A call of a module. within: the call that it is made in. given: the tensors in each of its arguments, by name or place, with
    the ways to them. returned: those in its result; tensors that are no new ones have no way to them."""

    path: str
    within: Call | None
    given: dict[int | str, list[tuple[Keys | None, Token]]]
    returned: list[tuple[Keys | None, Token]] = field(default_factory=list)

    @property
    def arguments(self) -> set[Token]:
        """All tensors that it is given."""
        return {token for held in self.given.values() for _, token in held}


class Use(NamedTuple):
    """A use of a tensor. within: the innermost call that runs. axis: the only thing that is read is the size of this one."""

    token: Token
    within: Call | None
    axis: int | None


class Watch:
    """Calls of modules, in order, and uses of the tensors that they are given and return. kept: what something still holds at the
    end, such as an attribute of the model, or what it has returned."""

    def __init__(self, root: nn.Module) -> None:
        self.calls: list[Call] = []
        self.uses: list[Use] = []
        self.kept: set[Token] = set()
        self._root = root
        self._own = set(map(id, named_tensors(root).values()))
        self._tokens: dict[int, tuple[weakref.ref[torch.Tensor], Token]] = {}
        self._count = 0
        self._running: Call | None = None

    @contextmanager
    def over(self) -> Iterator[None]:
        """What runs within is watched."""
        with ExitStack() as stack:
            for path, module in self._root.named_modules():
                before = module.register_forward_pre_hook(partial(self._enter, path), with_kwargs=True)
                after = module.register_forward_hook(self._leave, always_call=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
            stack.enter_context(_Operators(self))
            stack.enter_context(_Questions(self))
            yield
            self.kept = {token for reference, token in self._tokens.values() if reference() is not None}

    def use(self, items: Any) -> None:
        """Note that what runs uses these tensors."""
        self.uses += [Use(token, self._running, None) for tensor in tensors_in(items) if (token := self._known(tensor)) is not None]

    def ask(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The answer to a question about tensors, such as for a size, or the result of a call, which runs operators."""
        args, kwargs = _with_sizes(tuple(args)), _with_sizes(kwargs)
        token = self._known(args[0]) if func in _SIZES else None
        if token is None:
            if func not in _NO_MATTER:
                self.use((args, kwargs))
            return func(*args, **kwargs)
        sizes = _Sizes(args[0].shape)
        sizes.note = lambda axis: self.uses.append(Use(token, self._running, axis))
        axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
        return sizes if axis is None else sizes[axis]

    def _enter(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given: dict[int | str, Any] = {place: [*self._held(value)] for place, value in enumerate(args)}
        given |= {name: [*self._held(value)] for name, value in kwargs.items()}
        self._running = Call(path, self._running, given)
        self.calls.append(self._running)

    def _leave(self, module: nn.Module, args: Any, result: Any) -> None:
        call = self._running
        assert call is not None
        call.returned = [(None if token in call.arguments else way, token) for way, token in self._held(result)]
        self._running = call.within

    def _held(self, tree: Any) -> Iterator[tuple[Keys | None, Token]]:
        """The tensors in a structure with the ways to them; of parameters and buffers, without."""
        for way, leaf in tree_flatten_with_path(tree)[0]:
            if isinstance(leaf, torch.Tensor):
                yield None if id(leaf) in self._own else keys_of(way), self._token(leaf)

    def _known(self, tensor: torch.Tensor) -> Token | None:
        reference, token = self._tokens.get(id(tensor), (None, None))
        return token if reference is not None and reference() is tensor else None

    def _token(self, tensor: torch.Tensor) -> Token:
        token = self._known(tensor)
        if token is None:
            self._count += 1
            token = self._count
            self._tokens[id(tensor)] = weakref.ref(tensor), token
        return token


def keys_of(way: Iterable[Any]) -> Keys | None:
    """The way into a structure of dicts, lists and tuples; None for the way into any other."""
    keys: list[Any] = [getattr(key, "idx", getattr(key, "key", None)) for key in way]  # None of an attribute
    return tuple(keys) if all(type(key) in (int, str) for key in keys) else None


class _Operators(TorchDispatchMode):
    """Operators, whatever has called them."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._watch.use((args, kwargs))
        return func(*args, **(kwargs or {}))


class _Questions(TorchFunctionMode):
    """Functions of torch and attributes of tensors."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._watch.ask(func, args, kwargs or {})


class _Sizes(tuple[int, ...]):
    """A ``torch.Size`` (which cannot be derived from) that says which of its axes are read."""

    __class__: Any = torch.Size  # what isinstance sees
    note: Callable[[int], None]

    def whole(self) -> torch.Size:
        """All sizes."""
        return torch.Size(self[:])

    def numel(self) -> int:
        """The product of the sizes."""
        return self.whole().numel()

    def __getitem__(self, index: Any) -> Any:
        axes = range(len(self))[index]
        for axis in axes if isinstance(index, slice) else [axes]:
            self.note(axis)
        return super().__getitem__(index)

    def __radd__(self, other: Any) -> Any:
        return other + self.whole()


def _of_whole(name: str) -> Callable[..., Any]:
    def method(self: _Sizes, *args: Any) -> Any:
        return getattr(self.whole(), name)(*args)

    return method


# Whatever else a tuple does, it reads all that it holds.
for _name in ["iter", "contains", "add", "mul", "rmul", "eq", "ne", "lt", "le", "gt", "ge", "hash", "repr"]:
    setattr(_Sizes, f"__{_name}__", _of_whole(f"__{_name}__"))
for _name in ("index", "count"):
    setattr(_Sizes, _name, _of_whole(_name))


def _with_sizes(items: Any) -> Any:
    """Arguments as a call of torch gets them: it reads all of the sizes in them."""
    if type(items) is _Sizes:
        return items.whole()
    if type(items) in (tuple, list):
        return type(items)([_with_sizes(item) for item in items])
    return {key: _with_sizes(item) for key, item in items.items()} if type(items) is dict else items
