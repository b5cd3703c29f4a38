"""The tracer: runs a model's own Python on meta tensors and writes down the graph and the tape as it goes.

Every call of torch on a tensor becomes a node (``__torch_function__``), every call of a layer one (``call_module``); the ATen
operators that they run go onto the tape. The model sees real tensors and real numbers, so its control flow, ``len``,
iteration and assertions need nothing of us.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from itertools import count
from typing import Any, Final, NamedTuple

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from graphprune.errors import first_line
from graphprune.resizers import module_resizer
from graphprune.rules import tensors_in
from graphprune.tape import Recording, Step, Tape, boundary_of, opaque_refusal, plain_containers, run_opaque, stand_ins
from graphprune.tracing.constants import Constants
from graphprune.tracing.conversions import remembered
from graphprune.tracing.guards import Guards
from graphprune.tracing.inputs import ModuleCall, argument_names
from graphprune.tracing.shadow import Shadow
from graphprune.tracing.sizes import NOTING, Origin, Shape, origin_of, plain, shape_of
from graphprune.tracing.source import source_line
from graphprune.tracing.targets import opened, spell
from graphprune.tracing.training import Mode


class Untraceable(Exception):
    """Something that a graph cannot say."""


class _Place(NamedTuple):
    """Where a tensor comes from: a node, or a part of a node's structured value."""

    tensor: torch.Tensor
    node: fx.Node
    path: tuple[Any, ...]


class Tracer(TorchFunctionMode):
    """Writes the graph and the tape of one run.

    mode: what ``self.training`` is for the model.
    opaque: modules that do not trace, with the reason. constants: tensors that are no parameter or buffer, by the name under
    which the graph reads them. left_out: parts of the model's output that a graph cannot hold. failed: the innermost module
    that a run has failed in.
    """

    def __init__(self, root: nn.Module, mode: Mode) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.tape = Tape()
        self.opaque: dict[str, str] = {}
        self.constants: dict[str, torch.Tensor] = {}
        self.left_out: list[str] = []
        self.failed = ""
        self.mode = mode
        self._root = root
        self._shadow = Shadow(root, self._call_module, mode)
        self._names = {id(tensor): name for name, tensor in reversed(self._shadow.tensors.items())}
        self._device = next((tensor.device for tensor in self._shadow.real.values()), torch.device("cpu"))
        self._recording = Recording()
        self._in_layer = False
        self._autocast = torch._C._is_any_autocast_enabled()
        self._places: dict[int, _Place] = {}
        self._constants = Constants()
        self._held: dict[fx.Node, Any] = {}
        self._devices: dict[int, tuple[torch.device, torch.Tensor]] = {}
        self._made: dict[Any, tuple[fx.Node, Any]] = {}
        self._guards = Guards(self)

    # -- one run ---------------------------------------------------------------------------------------------------------

    def placeholder(self, name: str, value: Any) -> Any:
        """A placeholder for an argument; returns what the model gets for it."""
        return self._write(self.graph.placeholder(name), stand_ins(value))

    def run(self, call: ModuleCall, placeholders: Mapping[str, Any], *, announced: bool) -> Any:
        """Run one module of the model (at an empty path the model itself) and write what it does; returns its result.

        placeholders: what :meth:`placeholder` returned, by argument name; the call's other arguments are passed as they are.
        announced: tell the model that it is traced, as torch.export does: libraries then leave out what looks at data.
        """
        module = self._shadow.root.get_submodule(call.path)
        names = argument_names(module)
        args = tuple(placeholders.get(name, value) for name, value in zip(names, call.inputs.args, strict=False))
        kwargs = {name: placeholders.get(name, value) for name, value in call.inputs.kwargs.items()}
        last = next(iter(reversed(self.graph.nodes)), None)
        with torch.no_grad(), _compiling(announced), remembered(self._root), self._recording, self, _noting(self._guards):
            return self._run(module, last, args, kwargs)

    def finish(self, result: Any) -> None:
        """Write the output node."""
        self._write(self.graph.output(self._output(result, "")), plain_containers(result))

    # -- functions -------------------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        own = _OWN.get(func)
        if own is not None:
            return own(self, *args, **kwargs)
        body = opened(func)
        if body is not None:
            with self:
                return body(*args, **kwargs)
        constant = self._constants.has(func, args, kwargs)
        written = self._constants.written(func, args, kwargs)
        if written and (not constant or any(map(self._shadow.knows, written))):
            self._unfold(written)
        elif constant:
            return self._constants.compute(func, args, kwargs)
        given, named = self._operands(args), self._operands(kwargs)
        result = func(*given, **named)
        if not tensors_in((result,)) and func is not torch.Tensor.__setitem__:
            self._recording.take()
            return result
        target = spell(func, len(args) == 2 and not kwargs)
        node_args = self._argument(args)
        if target.attribute:
            node_args = (node_args[0], target.attribute)
        elif target.swapped:
            node_args = (node_args[1], node_args[0])
        node = self._node(target.op, target.target, node_args, self._argument(kwargs))
        if func in _UNBINDING:
            self._guards.note_places(given[0], (*given[1:], *named.values(), 0)[0] % given[0].dim())
        return self._write(node, self._apart(result, (given, named)))

    def _unfold(self, family: list[torch.Tensor]) -> None:
        """A constant that is written into is made anew in every call, with those that share its memory."""
        first = family[0]
        if any(held.dtype != first.dtype for held in family):
            raise Untraceable("a constant is written into that is also read as another dtype")
        self._constants.drop(family)
        with _disable_current_modes():
            size = first.untyped_storage().nbytes() // first.element_size()
            whole = first if len(family) == 1 else first.as_strided((size,), (1,), 0)
        with self:
            fresh = whole.clone()
            for held in family:
                view = fresh if held is whole else fresh.as_strided(held.shape, held.stride(), held.storage_offset())
                self._shadow.replace(held, view)

    def shape(self, tensor: torch.Tensor) -> Shape:
        """``tensor.shape``, of numbers that remember it."""
        return shape_of(self._operand(tensor))

    def size(self, tensor: torch.Tensor, dim: int | None = None) -> Any:
        """``tensor.size()`` or ``tensor.size(dim)``."""
        sizes = self.shape(tensor)
        return sizes if dim is None else sizes[dim]

    def numel(self, tensor: torch.Tensor) -> Any:
        """``tensor.numel()``."""
        return math.prod(self.shape(tensor))

    def device(self, tensor: torch.Tensor) -> torch.device:
        """The device on which the model is, as an object of its own: where it is passed on, it is that tensor's device."""
        device = torch.device(str(self._device))
        self._devices[id(device)] = (device, self._operand(tensor))
        return device

    def check(self, condition: Any, message: str = "") -> None:
        """``torch._assert``; of a tensor's values nothing is known. A check that its comparison has just become says the same."""
        if isinstance(condition, torch.Tensor):
            return
        assert condition, message
        last = next(iter(reversed(self.graph.nodes)))
        if message and last.target is torch._assert:
            last.args = (last.args[0], message)

    # -- what guards ask -------------------------------------------------------------------------------------------------

    def maker_of(self, tensor: torch.Tensor) -> fx.Node | None:
        """The node of whose value a tensor is, or is a part; None for parameters, constants and what is inside of a call."""
        place = self._places.get(id(tensor))
        return None if place is None else place.node

    def is_constant(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is a parameter, a buffer or a constant."""
        return id(tensor) in self._shadow.real or not tensor.is_meta

    def number_of(self, node: fx.Node) -> Any:
        """The number that a node computes, with its origin; None for nodes that the model's calls have made."""
        return next((value for made, value in self._made.values() if made is node), None)

    def name_of(self, tensor: torch.Tensor) -> str:
        """The name of the node that has made a tensor."""
        return self._node_of(tensor).name

    def write_call(self, function: Any, args: tuple[Any, ...], value: Any) -> fx.Node:
        """A node of a call that no operator runs for, with its value."""
        operations = self._recording.take()
        node = self._node("call_function", function, self._argument(args))
        self._write(node, value, bind=False)
        self._recording.operations = operations
        return node

    # -- modules ---------------------------------------------------------------------------------------------------------

    def _call_module(self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._in_layer:
            return module._call_impl(*args, **kwargs)
        if _is_layer(module):
            return self._call_layer(module, path, args, kwargs)
        if isinstance(module, torch.jit.ScriptModule):
            return self._call_opaque(module, path, args, kwargs, Untraceable("scripted (TorchScript), it has no Python to trace"))
        before = next(iter(reversed(self.graph.nodes)), None)
        consulted = self.mode.consulted
        self.mode.consulted = False
        try:
            result = self._run(module, before, args, kwargs)
            bare = self.mode.consulted and _is_bare(module)
        except Exception as error:
            self.failed = self.failed or path
            self._discard_after(before)
            return self._call_opaque(module, path, args, kwargs, error)
        finally:
            self.mode.consulted |= consulted
        if not bare:
            return result
        # Nothing but a change of behaviour between modes (stochastic depth): it stays a module, which knows both.
        self.mode.consulted = consulted
        self._discard_after(before)
        return self._call_layer(module, path, args, kwargs)

    def _run(self, module: nn.Module, before: fx.Node | None, args: Any, kwargs: Any) -> Any:
        """Run a module's own code."""
        try:
            return module._call_impl(*args, **kwargs)
        except TypeError as error:
            if Mode.__name__ not in str(error):
                raise error from None
        # C functions take nothing but a bool for the mode.
        module.__dict__["training"] = bool(self.mode)
        self._discard_after(before)
        return module._call_impl(*args, **kwargs)

    def _call_layer(self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module.__dict__["training"] = False
        self._in_layer = True
        try:
            with torch._C.DisableTorchFunction():
                given, named = self._operands(args), self._operands(kwargs)
                result = self._apart(module._call_impl(*given, **named), (given, named))
                node = self._node("call_module", path, self._argument(args), self._argument(kwargs))
                return self._write(node, result)
        except Exception:
            self.failed = path
            raise
        finally:
            self._in_layer = False

    def _call_opaque(self, module: nn.Module, path: str, args: Any, kwargs: Any, error: Exception) -> Any:
        with torch._C.DisableTorchFunction():
            given, named = self._operands(args), self._operands(kwargs)
            try:
                result = run_opaque(self._root.get_submodule(path), given, named)
            except Exception:
                raise error from None
            for inner in [name for name in self.opaque if name.startswith(f"{path}.")]:
                del self.opaque[inner]
            self.opaque[path] = f"{type(error).__name__}: {first_line(error)}"
            self.failed = ""
            node = self._node("call_module", path, self._argument(args), self._argument(kwargs))
            self._write(node, result)
            step = self.tape.steps[-1]
            step.refusal, step.boundary = opaque_refusal(path, self.opaque[path]), boundary_of(module, given, named)
            return result

    def _discard_after(self, last: fx.Node | None) -> None:
        self._recording.take()
        for node in reversed(list(self.graph.nodes)):
            if node is last:
                break
            self.graph.erase_node(node)
            self.tape.steps.pop()

    # -- what goes into a call -------------------------------------------------------------------------------------------

    def _operands(self, tree: Any) -> Any:
        """Arguments as the call gets them: stand-ins for real tensors, a plain mode."""
        kind = type(tree)
        if kind is tuple or kind is list:
            return kind([self._operands(item) for item in tree])
        if kind is dict:
            return {key: self._operands(item) for key, item in tree.items()}
        if isinstance(tree, torch.Tensor):
            return self._operand(tree)
        if kind is Mode:
            return int(tree) != 0
        return torch.Size(map(plain, tree)) if kind is Shape else plain(tree)

    def _operand(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_meta or id(tensor) in self._places:
            return tensor
        with _disable_current_modes():
            return self._shadow.of(tensor)

    def _argument(self, tree: Any) -> Any:
        """Arguments as the node gets them."""
        if isinstance(tree, torch.Tensor):
            return self._node_of(tree)
        if isinstance(tree, dict):
            return {key: self._argument(item) for key, item in tree.items()}
        if isinstance(tree, (tuple, list)):
            items = [self._argument(item) for item in tree]
            return type(tree)(*items) if hasattr(tree, "_fields") else items if isinstance(tree, list) else tuple(items)
        if isinstance(tree, slice):
            return slice(self._argument(tree.start), self._argument(tree.stop), self._argument(tree.step))
        if isinstance(tree, Mode):
            return self._once("training", lambda: self.graph.get_attr("training"), False)
        if isinstance(tree, torch.device) and id(tree) in self._devices:
            tensor = self._devices[id(tree)][1]
            key = ("device", id(tensor))
            return self._once(key, lambda: self._node("call_function", getattr, (self._node_of(tensor), "device")), tree)
        origin = origin_of(tree)
        return plain(tree) if origin is None else self._once(_key(tree, origin), lambda: self._expression(origin), tree)

    def _expression(self, origin: Origin) -> fx.Node:
        arguments = self._argument(origin.arguments)
        if origin.function == "size":
            return self._node("call_method", "size", arguments)
        return self._node("call_function", origin.function, arguments)

    def _node_of(self, tensor: torch.Tensor) -> fx.Node:
        """The node whose value is the tensor; parts of a structure and attributes get theirs when they are first used."""
        tensor = self._operand(tensor)
        found = self._places.get(id(tensor))
        if found is not None:
            return self._part(found.node, found.path)
        if id(tensor) not in self._shadow.real:
            raise Untraceable("a tensor appears that no call of torch has made")
        return self._once(id(tensor), lambda: self.graph.get_attr(self._attribute(tensor)), tensor)

    def _part(self, node: fx.Node, path: tuple[Any, ...]) -> fx.Node:
        if not path:
            return node
        parent = self._part(node, path[:-1])
        held = self._held[node]
        for index in path:
            held = held[index]
        return self._once((node, path), lambda: self._node("call_function", operator.getitem, (parent, path[-1])), held)

    def _attribute(self, tensor: torch.Tensor) -> str:
        name = self._names.get(id(tensor))
        if name is None:
            free = (f"_tensor_constant{number}" for number in count())
            name = next(name for name in free if not hasattr(self._root, name) and name not in self.constants)
            self._names[id(tensor)] = name
            real = self._shadow.real[id(tensor)]
            if isinstance(real, nn.Parameter):  # of a module that the model does not register: none of its parameters
                with _disable_current_modes():
                    real = real.detach()
                self._shadow.replace(real, tensor)
            self.constants[name] = real
        return name

    def name_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Tell the tape the names that the captured module has for its tensors."""
        for name, tensor in tensors.items():
            self.tape.add_tensor(name, tensor, self._shadow.of(tensor))

    def _node(self, op: str, target: Any, args: Any = (), kwargs: Any = None) -> fx.Node:
        """A node at the end (given at creation, arguments are searched for symbols of other tracers, which takes longest)."""
        if torch._C._is_any_autocast_enabled() and not self._autocast:
            raise Untraceable("it runs under autocast, which a graph cannot say")
        node = self.graph.create_node(op, target)
        if args:
            node.args = args
        if kwargs:
            node.kwargs = kwargs
        return node

    # -- what comes out of a call ----------------------------------------------------------------------------------------

    def _once(self, key: Any, make: Callable[[], fx.Node], value: Any) -> fx.Node:
        """A node that is made where it is first needed (and again if that was taken back), with its value."""
        known = self._made.get(key)
        if known is not None and not known[0]._erased:
            return known[0]
        operations = self._recording.take()  # of the call whose argument this is
        node = make()
        self._write(node, value, bind=False)
        self._recording.operations = operations
        self._made[key] = (node, value)
        return node

    def _write(self, node: fx.Node, result: Any, *, bind: bool = True) -> Any:
        """Put a node on the tape, with what it ran and made."""
        node.meta["source"] = source_line()
        self.tape.steps.append(Step(node.name, self._recording.take(), result))
        if bind:
            self._held[node] = result
            self._bind(result, node, ())
        return result

    def _bind(self, result: Any, node: fx.Node, path: tuple[Any, ...]) -> None:
        if isinstance(result, torch.Tensor):
            self._places[id(result)] = _Place(result, node, path)
        elif isinstance(result, (tuple, list, Mapping)):
            for key, item in result.items() if isinstance(result, Mapping) else enumerate(result):
                self._bind(item, node, (*path, key))

    def _apart(self, result: Any, operands: Any) -> Any:
        """The results of a call, as objects of their own where an operand comes back unchanged (dropout in eval mode)."""
        if isinstance(result, torch.Tensor):
            if not any(result is operand for operand in tensors_in(operands)) or self._wrote(result):
                return result
            return torch.ops.aten.alias.default(result)
        if type(result) in (tuple, list):
            return type(result)([self._apart(item, operands) for item in result])
        return result

    def _wrote(self, tensor: torch.Tensor) -> bool:
        return any(run.output is tensor and run.operator._schema.is_mutable for run in self._recording.operations)

    def _output(self, tree: Any, where: str) -> Any:
        """The model's result as the output node gets it; what a graph cannot hold is left out, and noted."""
        if tree is None or isinstance(tree, (torch.Tensor, bool, int, float, str, torch.dtype)):
            return self._argument(tree)
        if isinstance(tree, (tuple, list)):
            items = [self._output(item, f"{where}[{index}]") for index, item in enumerate(tree)]
            return self._construct(tree, tuple(items), {}, tree) if hasattr(tree, "_fields") else type(tree)(items)
        if is_dataclass(tree):
            parts = {field.name: getattr(tree, field.name) for field in fields(tree)}
            given = {key: self._output(part, f"{where}.{key}") for key, part in parts.items() if part is not None}
            return self._construct(tree, (), given, parts)
        if isinstance(tree, Mapping):
            return {key: self._output(item, f"{where}[{key!r}]") for key, item in tree.items()}
        self.left_out.append(f"output{where} ({type(tree).__name__})")
        return None

    def _construct(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], parts: Any) -> fx.Node:
        """A call of a result's class, which generated code could not write down as a constant."""
        node = self._node("call_function", type(result), args, kwargs)
        self._write(node, parts)
        return node


@contextmanager
def _noting(guards: Guards) -> Iterator[None]:
    before = NOTING.set(guards.note)
    try:
        yield
    finally:
        NOTING.reset(before)


@contextmanager
def _compiling(announced: bool) -> Iterator[None]:
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = announced
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before


def _key(number: Any, origin: Origin) -> Any:
    return ("size", id(origin.arguments[0]), origin.arguments[1]) if origin.function == "size" else ("number", id(number))


def _is_layer(module: nn.Module) -> bool:
    """Whether calls of the module are one node: it can follow new widths, and nothing is hooked into it."""
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    return module_resizer(module) is not None or (_is_bare(module) and type(module).__module__.startswith("torch.nn."))


def _is_bare(module: nn.Module) -> bool:
    """Whether a module has neither tensors nor modules in it."""
    return not (module._parameters or module._buffers or module._modules)


_UNBINDING: Final = (torch.unbind, torch.Tensor.unbind)
_OWN: Final[Mapping[Any, Callable[..., Any]]] = {
    torch.Tensor.shape.__get__: Tracer.shape,  # type: ignore[attr-defined]
    torch.Tensor.size: Tracer.size,
    torch.Tensor.numel: Tracer.numel,
    torch.Tensor.nelement: Tracer.numel,
    torch.Tensor.device.__get__: Tracer.device,
    torch._assert: Tracer.check,
}
