"""A module tree as plain data: classes from ``torch.nn`` by name, their attributes, parameters, buffers and children.

Each record is one module: ``path``, ``class``, ``training``, ``attributes``, ``parameters`` (name -> tensor entry or null) and
``buffers`` (name -> tensor entry or null, and whether it is persistent). A module that is registered twice has a second
record with ``path`` and ``same_as``. Children follow their parents.

No constructor runs on the way back: a module is made blank and gets its attributes as they were.
Containers of the user's own classes become plain modules, since the graph never calls them; a module that gives its input back in
eval mode (stochastic depth) becomes ``nn.Identity``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import fx, nn

from graphprune.artifact import targets
from graphprune.artifact.tensors import TensorTable
from graphprune.artifact.values import CONSTANTS, check_name, field, of_type, shorten
from graphprune.errors import ArtifactError
from graphprune.ir.graph_module import GraphModule

_INTERNAL = frozenset(nn.Module().__dict__) | frozenset(fx.GraphModule(nn.Module(), fx.Graph()).__dict__)
_HOOKS = tuple(name for name in nn.Module().__dict__ if name.endswith("_hooks"))
_DERIVED = frozenset({"_flat_weights", "_flat_weight_refs"})
"""What nn.RNNBase derives from its parameters."""

_INDEX = re.compile(r"[0-9]{1,9}|[A-Za-z0-9_]+(?:-[A-Za-z0-9_]+)+", re.ASCII)
"""Names of the children of nn.Sequential, nn.ModuleList and nn.ModuleDict that are no identifiers."""

MAX_PATH = 1_000

_ATTRIBUTES = CONSTANTS.extended({}, {"function": lambda data, _: targets.find_function(data)})
"""Attributes may also be functions of the allow-list, such as the activation of nn.TransformerEncoderLayer."""


def encode_modules(root: fx.GraphModule, table: TensorTable) -> list[dict[str, Any]]:
    """The module tree as records, its tensors in the table. Raises ArtifactError naming a module that has none."""
    called = {node.target for node in root.graph.nodes if node.op == "call_module"}
    first: dict[int, str] = {}
    records = []
    for path, module, runs in _walk(root, called):
        if id(module) in first:
            records.append({"path": path, "same_as": first[id(module)]})
            continue
        first[id(module)] = path
        try:
            records.append(_encode(path, module, runs, table))
        except ArtifactError as error:
            raise ArtifactError(
                f"the module {path or 'at the root'} ({type(module).__name__}) cannot be stored: {error}"
            ) from error
    return records


def _walk(root: nn.Module, called: AbstractSet[Any]) -> Iterator[tuple[str, nn.Module, bool]]:
    """Path, module, whether its own forward runs (a called leaf or inside one); parents first, shared modules each time."""
    seen: set[int] = set()
    stack: list[tuple[str, nn.Module, bool]] = [("", root, False)]
    while stack:
        path, module, runs = stack.pop()
        yield path, module, runs
        if id(module) not in seen:
            seen.add(id(module))
            prefix = f"{path}." if path else ""
            children = [(f"{prefix}{name}", child) for name, child in module._modules.items() if child is not None]
            stack += [(name, child, runs or name in called) for name, child in reversed(children)]


def _encode(path: str, module: nn.Module, runs: bool, table: TensorTable) -> dict[str, Any]:
    if runs and "parametrizations" in module._modules:
        raise ArtifactError("it is parametrised; call torch.nn.utils.parametrize.remove_parametrizations first")
    hooked = [name for name in _HOOKS if module.__dict__[name]]
    if hooked:
        raise ArtifactError(f"it has hooks ({', '.join(hooked)}), which are code; remove them first")
    name = type(module).__name__
    known = targets.modules().get(name) is type(module)
    if runs and not known:
        if not _passes_on(module):
            raise ArtifactError("its class is not one of torch.nn and the graph calls it")
        return {"path": path, "class": "Identity", "training": module.training, "attributes": {}, "parameters": {}, "buffers": {}}
    prefix = f"{path}." if path else ""
    return {
        "path": path,
        "class": name if known or not path else "Module",
        "training": module.training,
        "attributes": _encode_attributes(module) if known else {},
        "parameters": {key: None if item is None else table.add(prefix + key, item) for key, item in module._parameters.items()},
        "buffers": {
            key: [None if item is None else table.add(prefix + key, item), key not in module._non_persistent_buffers_set]
            for key, item in module._buffers.items()
        },
    }


def _passes_on(module: nn.Module) -> bool:
    """Whether a module has no tensors and gives its input back in eval mode: what stochastic depth of any library does.

    Its code is not stored, so that training goes on without it.
    """
    if module._parameters or module._buffers or module._modules:
        return False
    mode, given = module.training, torch.rand(2, 3)
    try:
        return module.eval()(given) is given
    except Exception:  # whatever it needs, it is more than its input
        return False
    finally:
        module.train(mode)


def _encode_attributes(module: nn.Module) -> dict[str, Any]:
    skipped = _INTERNAL | (_DERIVED if isinstance(module, nn.RNNBase) else frozenset())
    # torch.jit leaves "__overloads__" behind.
    settings = {key: value for key, value in module.__dict__.items() if key not in skipped and not key.startswith("__")}
    settings = {key: value for key, value in settings.items() if not _is_label(module, key, value)}
    return {key: _encode_attribute(key, value) for key, value in settings.items()}


def _is_label(module: nn.Module, key: str, value: Any) -> bool:
    """Whether an attribute is data in the place of a method, as a library's own ``type`` is: no code can have called it."""
    return callable(getattr(type(module), key, None)) and not callable(value)


def _encode_attribute(key: str, value: Any) -> Any:
    try:
        return {"function": targets.function_name(value)} if callable(value) else _ATTRIBUTES.write(value)
    except ArtifactError as error:
        raise ArtifactError(f"its attribute {key} is not plain data ({error})") from error


def decode_modules(records: Any, tensors: Mapping[str, torch.Tensor]) -> fx.GraphModule:
    """A graph module with this module tree and an empty graph. Raises ArtifactError for anything that is not allowed.

    tensors: entry name -> tensor, as :func:`graphprune.artifact.tensors.restore` gives them; every one must be used.
    """
    records = of_type(records, list, "the list of modules")
    if not records or type(records[0]) is not dict or records[0].get("path") != "":
        raise ArtifactError("the list of modules does not begin with the root")
    root = GraphModule(nn.Module(), fx.Graph(), check_name(records[0].get("class"), "the class name"))
    made: dict[str, nn.Module] = {}
    shared: set[str] = set()
    used: set[str] = set()
    for record in records:
        path = field(record, "path", str)
        module = _module(root, record, path, made)
        if path in made:
            raise ArtifactError(f"the module {shorten(path)} appears twice")
        if path:
            _attach(made, shared, path, module)
        made[path] = module
        if path and "same_as" in record:
            shared |= {path, record["same_as"]}
        else:
            used |= _fill(module, record, tensors)
    if set(tensors) - used:
        raise ArtifactError(f"the tensor {shorten(min(set(tensors) - used))} belongs to no module")
    return root


def _module(root: fx.GraphModule, record: Any, path: str, made: Mapping[str, nn.Module]) -> nn.Module:
    """The module of a record, blank, or the earlier one that it is the same as."""
    if not path:
        return root
    if "same_as" in record:
        other = field(record, "same_as", str)
        if other not in made or f"{path}.".startswith(f"{other}.") or not other:
            raise ArtifactError(f"the module {shorten(path)} is to be the same as {shorten(other)}, which is not before it")
        return made[other]
    name = field(record, "class", str)
    if name not in targets.modules():
        raise ArtifactError(f"the module class {shorten(name)} is not one of torch.nn that an artifact may hold")
    kind = targets.modules()[name]
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    return module


def _attach(made: Mapping[str, nn.Module], shared: AbstractSet[str], path: str, module: nn.Module) -> None:
    """Put a module into its parent, which must not be shared yet: a tree with no cycle is written parents first."""
    parent, _, name = path.rpartition(".")
    above = [path[:i] for i, letter in enumerate(path[:MAX_PATH]) if letter == "."]
    if len(path) > MAX_PATH or parent not in made or not shared.isdisjoint(above):
        raise ArtifactError(f"the module {shorten(path)} has no parent before it")
    made[parent]._modules[_member(made[parent], name)] = module


def _member(owner: nn.Module, name: Any) -> str:
    """The name, if a module of this class can take it as an attribute without hiding what its class relies on."""
    if type(name) is not str or not _INDEX.fullmatch(name):
        check_name(name, "the attribute name")
    if name.startswith("__") or name in _INTERNAL or hasattr(type(owner), name):
        raise ArtifactError(f"the attribute name {shorten(name)} would hide a part of {type(owner).__name__}")
    taken = (owner._parameters, owner._buffers, owner._modules, owner.__dict__)
    if any(name in each for each in taken):
        raise ArtifactError(f"the attribute name {shorten(name)} appears twice in one module")
    return str(name)


def _fill(module: nn.Module, record: Any, tensors: Mapping[str, torch.Tensor]) -> set[str]:
    """Put attributes, parameters and buffers into a blank module; the tensor entries that it used."""
    module.training = field(record, "training", bool)
    attributes = field(record, "attributes", dict)
    if attributes and isinstance(module, fx.GraphModule):
        raise ArtifactError("the root has attributes of its own")
    for name, value in attributes.items():
        module.__dict__[_member(module, name)] = _ATTRIBUTES.read(value)
    used = set()
    for name, entry in field(record, "parameters", dict).items():
        module._parameters[_member(module, name)] = _tensor(entry, tensors, parameter=True)
        used.add(entry)
    for name, pair in field(record, "buffers", dict).items():
        if type(pair) is not list or len(pair) != 2 or type(pair[1]) is not bool:
            raise ArtifactError(f"the buffer {shorten(name)} has no tensor and persistence")
        module._buffers[_member(module, name)] = _tensor(pair[0], tensors, parameter=False)
        module._non_persistent_buffers_set |= set() if pair[1] else {name}
        used.add(pair[0])
    if isinstance(module, nn.RNNBase):
        _derive_weights(module)
    return used


def _tensor(entry: Any, tensors: Mapping[str, torch.Tensor], *, parameter: bool) -> Any:
    if entry is None:
        return None
    if type(entry) is not str or entry not in tensors:
        raise ArtifactError(f"the tensor {shorten(entry)} is missing")
    if parameter and not isinstance(tensors[entry], nn.Parameter):
        raise ArtifactError(f"the tensor {shorten(entry)} is used as a parameter but is none")
    return tensors[entry]


def _derive_weights(module: nn.RNNBase) -> None:
    """Rebuild the derived lists, once every name in them is known to be a parameter's."""
    groups = [
        module.__dict__.get("_flat_weights_names"),
        *of_type(module.__dict__.get("_all_weights"), list, "the list of weights"),
    ]
    names = [name for group in groups for name in of_type(group, list, "a list of weights")]
    if any(type(name) is not str or name not in module._parameters for name in names):
        raise ArtifactError("the weights of a recurrent module are not among its parameters")
    module._init_flat_weights()
