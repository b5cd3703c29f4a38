"""Shallow copies of module trees with other tensors in them: the copy costs no memory and the original is not touched."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from operator import is_
from pathlib import Path
from types import MethodType
from typing import Any, Final

import torch
from torch import nn

from graphprune.errors import CaptureError

_OF_EVERY_MODULE: Final = frozenset(nn.Module().__dict__)

#: What is often given for a module, and how to come to one.
_WAYS: Final[tuple[tuple[Callable[[Any], bool], str], ...]] = (
    (lambda given: isinstance(getattr(given, "model", None), nn.Module), " Give its model: result.model."),
    (lambda given: isinstance(given, type), " Make one of it."),
    (lambda given: isinstance(given, torch.export.ExportedProgram), " Give its module: program.module()."),
    (
        lambda given: isinstance(given, str | Path),
        " Load it: graphprune.load(path) reads slim models, graphprune.sources.load_source(path).model all that commands take.",
    ),
    (lambda given: isinstance(given, Mapping), " Load these weights into a model: model.load_state_dict(weights)."),
)


def copies_of_computed(module: nn.Module) -> dict[int, Any]:
    """A memo for ``copy.deepcopy``, which refuses tensors with a history: those that hooks (of weight norm) keep as attributes."""
    kept = [value for part in module.modules() for value in vars(part).values() if isinstance(value, torch.Tensor)]
    return {id(tensor): tensor.detach().clone() for tensor in kept if not tensor.is_leaf}


def twin(module: nn.Module, replace: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """A copy of a module tree that shares everything but its tensors; each becomes ``replace(tensor)``, tied ones once.

    Plain tensor attributes are replaced like parameters and buffers. Modules that appear twice stay one module. Methods that
    modules keep as attributes are those of the copies.
    """
    tensors: dict[int, torch.Tensor] = {}

    def new(tensor: torch.Tensor) -> torch.Tensor:
        known = tensors.get(id(tensor))
        if known is None:
            known = tensors[id(tensor)] = replace(tensor)
        return known

    # GraphModule.__new__ would make a class without forward.
    copies: dict[nn.Module, nn.Module] = {source: object.__new__(type(source)) for source in modules_by_path(module).values()}
    by_identity = {id(source): copy for source, copy in copies.items()}
    for source, copy in copies.items():
        state = copy.__dict__
        state.update(source.__dict__)
        for key, value in source.__dict__.items():
            if key not in _OF_EVERY_MODULE:
                state[key] = new(value) if isinstance(value, torch.Tensor) else of_copy(value, by_identity)
        for store in ("_parameters", "_buffers"):
            state[store] = {key: None if tensor is None else new(tensor) for key, tensor in state[store].items()}
        state["_non_persistent_buffers_set"] = set(state["_non_persistent_buffers_set"])
        state["_modules"] = {key: None if child is None else copies[child] for key, child in state["_modules"].items()}
        call_copies(state)
    return copies[module]


def of_copy(value: Any, copies: Mapping[int, nn.Module]) -> Any:
    """A method of a module as that of its copy; anything else as it is. copies: by identity of the original."""
    owner = copies.get(id(value.__self__)) if isinstance(value, MethodType) else None
    return value if owner is None else MethodType(value.__func__, owner)


def call_copies(state: dict[str, Any]) -> None:
    """Have the copy of a compiled module (``torch.compile(module)``) run the copy of what is in it. state: its attributes.

    As it is made, it holds a call of the original, compiled.
    """
    inner = state["_modules"].get("_orig_mod")
    if inner is not None and "forward" in state:
        state["forward"] = lambda *args, **kwargs: inner(*args, **kwargs)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, without what ``torch.compile`` and data-parallel training put around it, however often.

    >>> model = nn.Linear(2, 2)
    >>> unwrapped(nn.DataParallel(torch.compile(model))) is model
    True
    """
    while True:
        inner = getattr(model, "_orig_mod", model)
        inner = inner.module if isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel)) else inner
        if inner is model:
            return model
        model = inner


def checked_module(given: Any) -> nn.Module:
    """A module, as it was given. Raises CaptureError for anything else, with the way from it to a module where one is known."""
    if isinstance(given, nn.Module):
        return given
    kind = type(given).__name__
    way = next((way for fits, way in _WAYS if fits(given)), "")
    raise CaptureError(f"Expected a torch.nn.Module, got {'the class ' + given.__name__ if kind == 'type' else kind}.{way}")


def modules_by_path(module: nn.Module) -> dict[str, nn.Module]:
    """All modules of a tree in pre-order, shared ones at each of their paths (``named_modules`` is quadratic in the depth)."""
    found: dict[str, nn.Module] = {}
    _add(module, "", found)
    return found


def _add(module: nn.Module, path: str, found: dict[str, nn.Module]) -> None:
    found[path] = module
    for name, child in module._modules.items():
        if child is not None:
            _add(child, f"{path}.{name}" if path else name, found)


def named_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, then buffers, by name, tied ones under each of their names."""
    parameters: dict[str, torch.Tensor] = {}
    buffers: dict[str, torch.Tensor] = {}
    for path, child in modules_by_path(module).items():
        for store, found in ((child._parameters, parameters), (child._buffers, buffers)):
            for name, tensor in store.items():
                if tensor is not None:
                    found[f"{path}.{name}" if path else name] = tensor
    return parameters | buffers


def digest(module: nn.Module) -> str:
    """A short text that is another one for other values of the state."""
    found = hashlib.sha256()
    for name, value in module.state_dict().items():
        found.update(name.encode())
        if isinstance(value, torch.Tensor):
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def set_mode(module: nn.Module, training: bool) -> None:
    """Put one module in train or eval mode; nothing is written where it is in it (attribute writes of modules are slow)."""
    if module.training != training:
        module.training = training


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """All of a model in train or eval mode, and afterwards each module in the one that it was in."""
    before = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in before:
            set_mode(module, training)
        yield
    finally:
        for module, mode in before:
            set_mode(module, mode)


@contextmanager
def undisturbed(*modules: nn.Module) -> Iterator[None]:
    """Eval mode, and after it the modes, the attributes and the buffers that the modules had: models keep things of a call, and
    some put other modules in the place of theirs."""
    buffers = {id(buffer): (buffer, buffer.clone()) for module in modules for buffer in module.buffers()}
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(in_mode(module, False))
        owners = {id(child): child for module in modules for child in module.modules()}
        kept = [(child, _attributes(child)) for child in owners.values() if not isinstance(child, torch.jit.ScriptModule)]
        try:
            yield
        finally:
            for child, attributes in kept:
                _put_back(child, attributes)
            for buffer, value in buffers.values():
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def _attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Its attributes, and of lists, dicts and sets among them copies."""
    return {key: (value, value.copy() if isinstance(value, list | dict | set) else None) for key, value in module.__dict__.items()}


def _put_back(module: nn.Module, attributes: Mapping[str, tuple[Any, Any]]) -> None:
    for key in module.__dict__.keys() - attributes.keys():
        del module.__dict__[key]
    for key, (value, held) in attributes.items():
        module.__dict__[key] = value
        if held is None or (len(value) == len(held) and all(map(is_, _items(value), _items(held)))):
            continue
        value.clear()
        value.extend(held) if isinstance(value, list) else value.update(held)


def _items(held: Any) -> list[Any]:
    return [item for pair in held.items() for item in pair] if isinstance(held, dict) else list(held)


def restore_modes(module: nn.Module, like: nn.Module) -> None:
    """Give every module the train or eval mode, and every buffer the persistence, of its namesake in ``like``."""
    others = modules_by_path(like)
    for name, child in module.named_modules():
        other = others.get(name, like)
        set_mode(child, other.training)
        if isinstance(child, torch.jit.ScriptModule):  # it keeps its own state
            continue
        # What the namesake does not have as a buffer, tracing made: it is no part of the state.
        made = child._buffers.keys() - other._buffers.keys()
        child._non_persistent_buffers_set |= made | (other._non_persistent_buffers_set & child._buffers.keys())
