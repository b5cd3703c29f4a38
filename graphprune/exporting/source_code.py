"""A graph module as Python source that people can read: layers by their constructors, the graph as a forward method.

fx writes correct source and takes no care of its looks. It is parsed here and tidied: a layer of a list is ``self.blocks[0]``,
parameters stand where they are used, and tensors are called x, y, z. A name is used again when its tensor is no longer
needed, which frees the memory as fx's ``x = None`` does.
"""

from __future__ import annotations

import ast
import inspect
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, Final, cast

import torch
from torch import Tensor, fx, nn

from graphprune.artifact.records import Record, is_record, make_record
from graphprune.artifact.targets import function_name
from graphprune.errors import ArtifactError
from graphprune.exporting.constructors import call_of
from graphprune.ir.program import Inputs, placeholder_values
from graphprune.ir.train_mode import add_in_train_mode
from graphprune.ir.twins import modules_by_path, named_tensors, undisturbed

_CONTAINERS: Final = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_FUNCTIONAL: Final = ("torch.nn.functional", "torch._C._nn")
_TAKEN: Final = ("Any", "F", "Path", "Record", "load", "load_file", "make_dataclass", "make_record", "nn", "pytree", "torch")
_LETTERS: Final = "yzuvwpqrst"
_CONSTANTS: Final[Mapping[str, str]] = {
    "inf": "from math import inf",
    "nan": "from math import nan",
    "NoneType": "from types import NoneType",
    "device": "from torch import device",
}
_OWN: Final = {add_in_train_mode: inspect.getsource(add_in_train_mode).replace("@fx.has_side_effect\n", "")}
"""Functions of graphprune that a graph may call: the source holds them."""


_RECORDS: Final = {
    "from dataclasses import make_dataclass",
    "from typing import Any",
    "from torch.utils import _pytree as pytree",
}
"""What the class of records, which the source then holds, needs."""


def source_of(module: fx.GraphModule, inputs: Inputs) -> str:
    """The source of a Python module with a class that computes what this one does, and a function ``load``.

    module: of layers of torch.nn and functions of torch and torchvision alone, as artifacts have. inputs: example inputs.
    Raises ArtifactError for a layer that no call of its class makes.
    """
    name = type(module).__name__
    name = f"{name}Model" if name in _TAKEN else name
    forward = _Forward(module, inputs)
    body = [*_made("self", module), *_tied(module)]
    init = "\n".join(f"        {line}" for line in body)
    method = "\n".join(f"    {line}" for line in forward.lines)
    imports = _IMPORTS | forward.imports | {f"import {home}" for home in ("torchvision.ops",) if home in init + method}
    imports |= {"import torchvision"} if "torch.ops.torchvision." in method else set()
    return _TEMPLATE.format(
        name=name,
        inputs=inputs.describe(),
        imports="\n".join(sorted(imports, key=lambda line: (line.startswith("from"), line))),
        helpers="".join(f"\n\n{text}" for text in forward.helpers),
        init=init,
        forward=method,
    )


_IMPORTS: Final = {
    "import torch",
    "from pathlib import Path",
    "from safetensors.torch import load_file",
    "from torch import nn",
    "from torch.nn import functional as F",
}
_TEMPLATE: Final = '''"""{name}, written by graphprune. It needs torch and safetensors.

    from module import load

    model = load()

Example inputs: {inputs}.
"""

{imports}
{helpers}

class {name}(nn.Module):
    """The layers of the model, and what it computes with them."""

    def __init__(self):
        super().__init__()
{init}

{forward}


def load(folder=Path(__file__).parent):
    """The model with the weights of model.safetensors in the folder, in eval mode."""
    model = {name}()
    weights = load_file(Path(folder) / "model.safetensors")
    places = dict(model.named_parameters()) | dict(model.named_buffers())
    if weights.keys() != places.keys():
        raise ValueError(f"The weights are of another model: {{sorted(weights.keys() ^ places.keys())[:3]}}")
    with torch.no_grad():
        for name, tensor in weights.items():
            places[name].copy_(tensor)
    return model.eval()
'''


# -- layers ----------------------------------------------------------------------------------------------------------------


def _made(owner: str, module: nn.Module) -> Iterator[str]:
    """Statements that give the members of a module to ``owner``, in whose place it is; parents first."""
    for name, parameter in module._parameters.items():
        empty = parameter if parameter is None else f"nn.Parameter(torch.empty({_like(parameter)}))"
        yield f"{owner}.register_parameter({name!r}, {empty})"
    for name, buffer in module._buffers.items():
        empty = buffer if buffer is None else f"torch.empty({_like(buffer)})"
        persistent = ", persistent=False" if name in module._non_persistent_buffers_set else ""
        yield f"{owner}.register_buffer({name!r}, {empty}{persistent})"
    for name, child in module._modules.items():
        if not _is_list(module):
            plain = name.isidentifier()
            yield f"{owner}.{name} = {_call(child)}" if plain else f"{owner}.add_module({name!r}, {_call(child)})"
        if type(child) in _CONTAINERS:
            yield from _made(_member(owner, module, name), cast(nn.Module, child))


def _call(module: nn.Module | None) -> str:
    """What makes a module; of containers those members alone that are a list."""
    if module is None or type(module) not in _CONTAINERS:
        return "None" if module is None else call_of(module)
    if not _is_list(module):
        return "nn.Sequential()" if isinstance(module, nn.Sequential) else "nn.Module()"
    children = ", ".join(map(_call, module._modules.values()))
    return f"nn.Sequential({children})" if isinstance(module, nn.Sequential) else f"nn.ModuleList([{children}])"


def _is_list(module: nn.Module) -> bool:
    """Whether a module stands for its children, numbered from 0."""
    names = list(module._modules)
    bare = type(module) in _CONTAINERS and not module._parameters and not module._buffers
    return bare and bool(names) and names == [str(index) for index in range(len(names))]


def _member(owner: str, module: nn.Module | None, name: str) -> str:
    """A member of a module in Python."""
    if module is not None and _is_list(module):
        return f"{owner}[{name}]"
    return f"{owner}.{name}" if name.isidentifier() else f"getattr({owner}, {name!r})"


def _place(root: nn.Module, path: str) -> str:
    """A module or tensor at a dotted path in Python."""
    text, module = "self", cast("nn.Module | None", root)
    for name in path.split("."):
        text, module = _member(text, module, name), None if module is None else module._modules.get(name)
    return text


def _tied(root: nn.Module) -> Iterator[str]:
    """Statements that make modules and parameters one that have several names."""
    first: dict[int, str] = {}
    for path, module in modules_by_path(root).items():
        if first.setdefault(id(module), path) != path:
            yield _same(root, path, first[id(module)])
    for path, tensor in named_tensors(root).items():
        owner = path.rpartition(".")[0]
        if first[id(root.get_submodule(owner))] == owner and first.setdefault(id(tensor), path) != path:
            yield _same(root, path, first[id(tensor)])


def _same(root: nn.Module, path: str, other: str) -> str:
    place = _place(root, path)
    if place.startswith("getattr("):
        raise ArtifactError(f"{path} and {other} are one, and {path} has a name that cannot be assigned to")
    return f"{place} = {_place(root, other)}"


def _like(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)}" + ("" if tensor.dtype == torch.float32 else f", dtype={tensor.dtype}")


# -- what is computed ------------------------------------------------------------------------------------------------------


class _Forward(ast.NodeTransformer):
    """The forward method. lines: its text. imports, helpers: what it needs."""

    def __init__(self, root: fx.GraphModule, inputs: Inputs) -> None:
        self.imports: set[str] = set()
        self.helpers: list[str] = []
        self._root = root
        self._names: dict[str, str] = {}
        for node in root.graph.nodes:
            node.meta.pop("is_wrapped", None)  # fx would write calls of its own
        code = root.graph.python_code("self")
        tree = ast.parse(code.src.strip())
        used = {name.id for name in ast.walk(tree) if isinstance(name, ast.Name)}
        self._spell({name: value for name, value in code.globals.items() if name in used}, inputs)
        tidy = ast.fix_missing_locations(self.visit(tree))
        self.lines = ast.unparse(tidy).splitlines()

    def _spell(self, known: Mapping[str, Any], inputs: Inputs) -> None:
        for name, value in known.items():
            if name in _CONSTANTS:
                self.imports.add(_CONSTANTS[name])
            elif value in _OWN:
                self.helpers.append(_OWN[value])
                self._names[name] = value.__name__
            elif is_record(value):
                self._spell_record(name, value)
            elif callable(value):
                self._names[name] = full = function_name(value)
                self.imports.add(f"import {full.rpartition('.')[0]}")
        self._names |= _variables(self._root, inputs, set(known))
        for node in self._root.graph.find_nodes(op="get_attr"):
            self._names[node.name] = _place(self._root, node.target)
        self._unused = {node.name for node in self._root.graph.nodes if not node.users}

    def _spell_record(self, name: str, kind: type[Any]) -> None:
        """An output class, made in the source: its own code is not known there."""
        if not self.imports >= _RECORDS:
            self.imports |= _RECORDS
            self.helpers += [inspect.getsource(Record), inspect.getsource(make_record)]
        self._names[name] = kind.__name__
        made = f"{kind.__name__} = make_record({kind.__name__!r}, {[part.name for part in fields(kind)]!r})\n"
        self.helpers += [] if made in self.helpers else [made]

    def visit_Assign(self, statement: ast.Assign) -> Any:
        """Drops what frees memory, what is spelled at its use, and what assigns a name to itself."""
        target = statement.targets[0]
        if isinstance(statement.value, ast.Constant) and statement.value.value is None:
            return None
        name = target.id if isinstance(target, ast.Name) else ""
        if self._names.get(name, "").startswith(("self.", "self[", "getattr(")):
            return None
        if name in self._unused:
            return None if isinstance(statement.value, ast.Name) else ast.Expr(self.visit(statement.value))
        self.generic_visit(statement)
        return None if ast.unparse(statement.targets[0]) == ast.unparse(statement.value) else statement

    def visit_Name(self, name: ast.Name) -> Any:
        """Names by their spelling."""
        spelled = self._names.get(name.id, name.id)
        return ast.Name(spelled, name.ctx) if spelled.isidentifier() else ast.parse(spelled, mode="eval").body

    def visit_Attribute(self, attribute: ast.Attribute) -> Any:
        """Members of the model by their place; those of ``torch.nn.functional`` as F's."""
        path = _path(attribute)
        if path is not None:
            return ast.parse(_place(self._root, path), mode="eval").body
        home = ast.unparse(attribute.value)
        if home in _FUNCTIONAL and hasattr(nn.functional, attribute.attr):
            return ast.Attribute(ast.Name("F", ast.Load()), attribute.attr, ast.Load())
        return self.generic_visit(attribute)

    def visit_Call(self, call: ast.Call) -> Any:
        """Members of the model whose names are no identifiers; calls without what is the default anyway."""
        path = _path(call)
        if path is not None:
            return ast.parse(_place(self._root, path), mode="eval").body
        self.generic_visit(call)
        if isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "F":
            defaults = _defaults(getattr(nn.functional, call.func.attr))
            call.keywords = [each for each in call.keywords if (each.arg, ast.unparse(each.value)) not in defaults]
        return call


def _defaults(function: Any) -> set[tuple[str | None, str]]:
    """Keywords of a function and the Python of their defaults; of none where it says nothing."""
    try:
        return {(name, repr(parameter.default)) for name, parameter in inspect.signature(function).parameters.items()}
    except ValueError:  # a function in C
        return set()


def _path(expression: ast.expr) -> str | None:
    """The dotted path of a member of the model, as fx writes it; None of all else."""
    match expression:
        case ast.Attribute(value, name):
            pass
        case ast.Call(ast.Name("getattr"), [value, ast.Constant(str(name))]):
            pass
        case _:
            return None
    if isinstance(value, ast.Name) and value.id == "self":
        return name
    above = _path(value)
    return None if above is None else f"{above}.{name}"


class _Kinds(fx.Interpreter):
    """Finds the nodes whose results are tensors."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.tensors: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and note it."""
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.tensors.add(n)
        return result


def _variables(root: fx.GraphModule, inputs: Inputs, taken: set[str]) -> dict[str, str]:
    """Names of the variables by node: letters for tensors, each of them again when its tensor is no longer needed."""
    kinds = _Kinds(root)
    with undisturbed(root):
        kinds.run(*placeholder_values(root.graph, inputs))
    nodes = list(root.graph.nodes)
    last = {given: node for node in nodes for given in node.all_input_nodes}
    taken |= {node.name for node in nodes} | {str(node.target) for node in nodes}
    letters = (letter for letter in _letters() if letter not in taken)
    found: dict[str, str] = {}
    free: list[str] = []
    for node in nodes:
        if node.op == "placeholder":
            found[node.name] = node.target
        elif node in kinds.tensors and node.op != "get_attr" and node.users:
            done = [each for each in node.all_input_nodes if last[each] is node and each in kinds.tensors and each.name in found]
            free += [found[each.name] for each in reversed(done)]
            found[node.name] = free.pop() if free else next(letters)
    return found


def _letters() -> Iterator[str]:
    yield from _LETTERS
    for number in itertools.count(1):
        yield from (f"{letter}{number}" for letter in _LETTERS)
