"""The model that is traced: a copy of the module tree with the same code and settings, and meta tensors instead of data."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from types import MethodType
from typing import Any, Final, TypeAlias

import torch
from torch import nn

from graphprune.channels.tape import stand_in
from graphprune.ir.twins import call_copies, named_tensors, of_copy
from graphprune.tracing.draws import GENERATORS, Watched
from graphprune.tracing.sizes import literal, plain

_INTERNAL: Final = frozenset(nn.Module().__dict__) | {"_compiled_call_impl"}
_HOOKS: Final = tuple(key for key in nn.Module().__dict__ if "forward" in key)
_PLAIN: Final = frozenset({bool, int, str, type(None)})
_CONTAINERS: Final = (dict, list, set, OrderedDict, defaultdict)

Left: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Attributes of modules by their paths, as calls of the model have left them."""


class Shadow:
    """A meta copy of a module tree that reports every call of one of its modules.

    call: gets the module, its path, and the arguments of the call, and returns its result. earlier: another copy of the same
    model, whose stand-ins are used. left: attributes that are not as in the model, by the paths of their modules.
    It is made where it is first asked for. Modules that appear twice stay one module, tied tensors one tensor. Lists and dicts that
    modules keep as attributes are copied, and those in them, so that a model that writes caches in its forward leaves nothing of
    the trace behind. Hooks and attributes that are methods of a module are those of its copy.
    """

    def __init__(
        self, root: nn.Module, call: Callable[..., Any], mode: Any, earlier: Shadow | None = None, left: Left | None = None
    ) -> None:
        self.real: dict[int, torch.Tensor] = dict(earlier.real) if earlier else {}  # by identity of the stand-in
        self.left: Left = left or (earlier.left if earlier else {})
        self._source = root
        self._call = call
        self._mode = mode
        self._stand_ins: dict[int, torch.Tensor] = dict(earlier._stand_ins) if earlier else {}  # by identity of the real tensor
        self._modules: dict[int, nn.Module] = {}
        self._methods: list[Any] = []  # what the copies have that may hold methods of modules: dicts and lists
        self._kept: list[Any] = []
        self._containers: dict[int, Any] = {}  # copies by identity of the original

    @cached_property
    def root(self) -> nn.Module:
        """The copy of the whole model."""
        return self.part("")

    def part(self, path: str) -> nn.Module:
        """The copy of a submodule."""
        result = self._copy(self._source.get_submodule(path), path)
        for holder in self._methods:
            for key, value in list(_entries(holder)):
                holder[key] = of_copy(value, self._modules)
        return result

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Stand-ins of parameters and buffers by name, parameters first."""
        return {name: self.of(tensor) for name, tensor in named_tensors(self._source).items()}

    @property
    def stand_ins(self) -> Iterable[torch.Tensor]:
        """The stand-ins that were asked for so far."""
        return self._stand_ins.values()

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The stand-in of a real tensor."""
        found = self._stand_ins.get(id(tensor))
        if found is None:
            found = self._stand_ins[id(tensor)] = as_parameter(stand_in(tensor), tensor)
            self.real[id(found)] = tensor
        return found

    def knows(self, tensor: torch.Tensor) -> bool:
        """Whether a real tensor has a stand-in."""
        return id(tensor) in self._stand_ins

    def replace(self, tensor: torch.Tensor, by: torch.Tensor) -> None:
        """Give a real tensor another stand-in: what a call has made of it."""
        self._kept.append((tensor, self._stand_ins.get(id(tensor))))  # identities are not to be used again
        self._stand_ins[id(tensor)] = by

    def left_behind(self) -> Left:
        """The attributes that calls of this copy have changed, for another copy."""
        found = {}
        for path, module in self._source.named_modules():
            copy = self._modules.get(id(module), module)
            now = {key: value for key, value in copy.__dict__.items() if key not in _INTERNAL and key != "training"}
            found[path] = {key: value for key, value in now.items() if not self._is_copy(value, module.__dict__.get(key, self))}
        return {path: changed for path, changed in found.items() if changed}

    def _is_copy(self, value: Any, original: Any) -> bool:
        """Whether an attribute, with all that is in it, is what the copy has been given."""
        if isinstance(original, torch.Tensor):
            return value is self._stand_ins.get(id(original))
        if type(value) is type(original) and type(value) in (*_CONTAINERS, tuple):
            if len(value) != len(original) or isinstance(value, set):
                return bool(value == original)
            keys = list(original) if isinstance(original, dict) else range(len(original))
            return all(self._is_copy(value.get(key) if isinstance(value, dict) else value[key], original[key]) for key in keys)
        if isinstance(original, MethodType):
            return isinstance(value, MethodType) and value.__func__ is original.__func__
        return value is original or (type(original) in (int, float, str) and bool(plain(value) == original))

    def release(self) -> None:
        """Let go of the modules: they refer to themselves, and would wait for the collector of cycles by the thousand."""
        for module in self._modules.values():
            module.__dict__.clear()

    def _copy(self, source: nn.Module, path: str) -> nn.Module:
        known = self._modules.get(id(source))
        if known is not None:
            return known
        result = self._modules[id(source)] = object.__new__(type(source))  # GraphModule.__new__ would make a new class
        state = result.__dict__
        state.update(source.__dict__)
        for key, value in source.__dict__.items():
            if key not in _INTERNAL and type(value) not in _PLAIN:
                state[key] = self._attribute(value)
        state.update(self.left.get(path, {}))
        self._note_methods(state)
        for key in _HOOKS:
            state[key] = hooks = state[key].copy()
            if hooks:
                self._note_methods(hooks)
        state["training"] = self._mode
        state["_compiled_call_impl"] = lambda *args, **kwargs: self._call(result, path, args, kwargs)
        for store in ("_parameters", "_buffers"):
            state[store] = {key: None if value is None else self.of(value) for key, value in state[store].items()}
        children = state["_modules"] = {}
        for name, child in source._modules.items():
            children[name] = None if child is None else self._copy(child, f"{path}.{name}" if path else name)
        call_copies(state)
        return result

    def _note_methods(self, holder: Any) -> None:
        if any(type(value) is MethodType for _, value in _entries(holder)):
            self._methods.append(holder)

    def _attribute(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self.of(value)
        if isinstance(value, GENERATORS):
            return Watched(value)
        if type(value) not in _CONTAINERS:
            return literal(value)
        known = self._containers.get(id(value))
        if known is None:
            known = self._containers[id(value)] = value.copy()
            for key, item in list(_entries(known)):
                if not isinstance(item, torch.Tensor):
                    known[key] = self._attribute(item)
            self._note_methods(known)
        return known


def as_parameter(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The tensor, which says that it is a parameter if the other one does: modules ask before they take it for one of theirs."""
    if isinstance(like, nn.Parameter):
        tensor._is_param = True
    return tensor


def _entries(holder: Any) -> Iterable[tuple[Any, Any]]:
    """Places and values of a dict or list; none of a set."""
    return holder.items() if isinstance(holder, dict) else () if isinstance(holder, set) else enumerate(holder)
