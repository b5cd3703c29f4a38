"""The writer: puts the calls of a run into the graph and onto the tape, and knows which node each tensor and number is of."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from itertools import count
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import fx, nn
from torch.utils._python_dispatch import _disable_current_modes

from graphprune.channels.tape import Recording, Step, Tape, plain_containers
from graphprune.ir.graph_module import add_node
from graphprune.rules import tensors_in
from graphprune.tracing.results import Mark, Results
from graphprune.tracing.shadow import Shadow, as_parameter
from graphprune.tracing.sizes import Origin, Place, Shape, SizeFloat, SizeInt, origin_of, plain, with_origin
from graphprune.tracing.source import source_line
from graphprune.tracing.training import Difference, Mode
from graphprune.tracing.untraced import Untraceable

_MOST_NAMES: Final = 10_000  # of targets that are remembered
_LITERALS: Final = frozenset({int, float, bool, str, type(None), torch.dtype})
_DTYPES: Final = {int: torch.int64, float: torch.float64, bool: torch.bool, complex: torch.complex128}  # as torch reads classes


class Placed(NamedTuple):
    """Where a tensor comes from: a node, or a part of a node's structured value."""

    tensor: torch.Tensor
    node: fx.Node
    path: tuple[Any, ...]


class Writer:
    """Writes the graph and the tape of one run.

    recording: what writes down the operators of the run. results: its calls. shadow: the model that runs.
    constants: tensors that are no parameter or buffer, by the name under which the graph reads them. left_out: parts of the
    model's output that a graph cannot hold. found: what this run does otherwise than an earlier one that it repeats.
    """

    def __init__(self, recording: Recording, results: Results, shadow: Shadow) -> None:
        self.graph = fx.Graph()
        self.tape = Tape(constants=recording.numbers)
        self.constants: dict[str, torch.Tensor] = {}
        self.left_out: list[str] = []
        self.found: list[Difference] = []
        self.module = ""  # the path of the module whose code runs
        self._recording = recording
        self._results = results
        self._shadow = shadow
        self._names = self._tensor_names()
        # Weights without values are loaded to the CPU, where a model may compute otherwise than on other devices.
        devices = (tensor.device for tensor in shadow.real.values() if not tensor.is_meta)
        self.device = next(devices, torch.device("cpu"))
        self._places: MutableMapping[int, Placed] = {}
        self._held: MutableMapping[fx.Node, Any] = {}
        self._arrays: dict[int, tuple[np.ndarray[Any, Any], torch.Tensor]] = {}
        self._devices: dict[int, tuple[torch.device, torch.Tensor]] = {}
        self._made: MutableMapping[Any, tuple[fx.Node, Any]] = {}
        self._numbers: MutableMapping[fx.Node, Any] = {}
        self._checked: list[fx.Node] = []

    def _tensor_names(self) -> dict[int, str]:
        """Names of parameters and buffers by the identity of their stand-ins."""
        return {id(tensor): name for name, tensor in reversed(self._shadow.tensors.items())}

    def last_node(self) -> fx.Node | None:
        """The last node so far."""
        return next(iter(reversed(self.graph.nodes)), None)

    def note_device(self, device: torch.device, tensor: torch.Tensor) -> None:
        """Where this object is passed on, it is the device of that tensor."""
        self._devices[id(device)] = device, self.operand(tensor)

    def mark(self) -> Mark:
        """Where the run is, for :meth:`discard_after`."""
        return Mark(len(self.tape.steps), self._results.count, len(self.found))

    def discard_after(self, mark: Mark) -> None:
        """Take back what was written since."""
        self._results.take_back(mark.calls)
        self._recording.take()
        self._keep(mark.nodes)
        del self.tape.steps[mark.nodes :], self.found[mark.found :]

    def _keep(self, count: int) -> None:
        """Take back all nodes but so many."""
        while len(self.graph.nodes) > count:
            self.graph.erase_node(next(iter(reversed(self.graph.nodes))))

    def note_check(self, operands: Any) -> None:
        """These were read by a check of values, which the graph does not make."""
        self._checked += [node for tensor in tensors_in(operands) if (node := self.maker_of(tensor)) is not None]

    def leave_out_checks(self) -> None:
        """Take back what only checks of values have read."""
        if not self._checked:
            return
        steps = {step.node: step for step in self.tape.steps}
        pending = self._checked
        while pending:
            node = pending.pop()
            if self.stands(node) and not node.users and _only_computes(node, steps[node.name]):
                pending += node.all_input_nodes
                self.graph.erase_node(node)
                del steps[node.name]
        self.tape.steps[:] = steps.values()

    # -- what goes into a call -------------------------------------------------------------------------------------------

    def operands(self, tree: Any) -> Any:
        """Arguments as the call gets them: stand-ins for real tensors, a plain mode."""
        kind = type(tree)
        if kind in _LITERALS:
            return tree
        if kind is tuple or kind is list:
            return kind([self.operands(item) for item in tree])
        if kind is dict:
            return {key: self.operands(item) for key, item in tree.items()}
        if isinstance(tree, torch.Tensor):
            return self.operand(tree)
        if kind is np.ndarray:
            return self.operand(self._of_array(tree))
        if kind is Mode:
            return tree.plain
        return torch.Size(map(plain, tree)) if kind is Shape else plain(tree)

    def _of_array(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        """A constant with the data of an array, which a call reads as an index."""
        if id(array) not in self._arrays:
            with _disable_current_modes(), torch._C.DisableTorchFunction():
                self._arrays[id(array)] = array, torch.tensor(array)
        return self._arrays[id(array)][1]

    def operand(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor as the call gets it."""
        if id(tensor) in self._places or id(tensor) in self._shadow.real:
            return tensor
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            known = self._shadow.knows(tensor) or not tensor.is_meta
            return self._shadow.of(tensor) if known else self._same_memory(tensor)

    def _same_memory(self, tensor: torch.Tensor) -> torch.Tensor:
        """The known tensor that another object is of, such as one of a subclass, which no call of torch announces."""
        known = [*(place.tensor for place in self._places.values()), *self._shadow.stand_ins]
        return next((other for other in reversed(known) if _same_view(tensor, other)), tensor)

    def argument(self, tree: Any) -> Any:
        """Arguments as the node gets them."""
        if type(tree) in _LITERALS:
            return tree
        if isinstance(tree, torch.Tensor):
            return self._node_of(tree)
        if isinstance(tree, dict):
            return {key: self.argument(item) for key, item in tree.items()}
        if isinstance(tree, (tuple, list)):
            items = [self.argument(item) for item in tree]
            return type(tree)(*items) if hasattr(tree, "_fields") else items if isinstance(tree, list) else tuple(items)
        if isinstance(tree, slice):
            return slice(self.argument(tree.start), self.argument(tree.stop), self.argument(tree.step))
        return self._single(tree)

    def _single(self, tree: Any) -> Any:
        if isinstance(tree, np.ndarray):
            return self._node_of(self._of_array(tree))
        if isinstance(tree, type):
            return _DTYPES.get(tree, tree)
        if isinstance(tree, Mode):
            return self._once("training", lambda: self.node("get_attr", "training"), False)
        if isinstance(tree, torch.device) and id(tree) in self._devices:
            tensor = self._devices[id(tree)][1]
            key = ("device", id(tensor))
            return self._once(key, lambda: self.node("call_function", getattr, (self._node_of(tensor), "device")), tree)
        if isinstance(tree, torch.Generator):
            raise Untraceable("it draws from a generator of its own, which a graph does not hold")
        origin = origin_of(tree)
        return plain(tree) if origin is None else self._once(_key(tree, origin), lambda: self._expression(origin), tree)

    def _expression(self, origin: Origin) -> fx.Node:
        if origin.function == "item":
            raise Untraceable("a number appears that was read from a tensor in code that does not trace")
        if isinstance(origin, Place):
            origin.note()
        arguments = self.argument(origin.arguments)
        if isinstance(origin.function, str):
            return self.node("call_method", origin.function, arguments)
        return self.node("call_function", origin.function, arguments)

    def _node_of(self, tensor: torch.Tensor) -> fx.Node:
        """The node whose value is the tensor; parts of a structure and attributes get theirs when they are first used."""
        tensor = self.operand(tensor)
        found = self._places.get(id(tensor))
        if found is not None:
            return self._part(found.node, found.path)
        if id(tensor) not in self._shadow.real:
            raise Untraceable("a tensor appears that no call of torch has made")
        return self._once(id(tensor), lambda: self.node("get_attr", self._attribute(tensor)), tensor)

    def _part(self, node: fx.Node, path: tuple[Any, ...]) -> fx.Node:
        if not path:
            return node
        parent = self._part(node, path[:-1])
        held = self._held[node]
        for index in path:
            held = held[index]
        return self._once((node, path), lambda: self.node("call_function", operator.getitem, (parent, path[-1])), held)

    def _attribute(self, tensor: torch.Tensor) -> str:
        name = self._names.get(id(tensor))
        if name is None:
            name = self._names[id(tensor)] = self._new_constant(self._shadow.real[id(tensor)], tensor)
        return name

    def _new_constant(self, real: torch.Tensor, tensor: torch.Tensor) -> str:
        """The name for a tensor that the model does not register, with its stand-in."""
        free = (f"_tensor_constant{number}" for number in count())
        name = next(name for name in free if not hasattr(self._shadow.root, name) and name not in self.constants)
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

    def node(self, op: str, target: Any, args: Any = (), kwargs: Any = None) -> fx.Node:
        """A node at the end."""
        self._check_autocast()
        node = add_node(self.graph, op, target, args, kwargs, _name(target))
        node.meta["source"], node.meta["module"] = source_line(), self.module
        return node

    def _check_autocast(self) -> None:
        if torch._C._is_any_autocast_enabled():
            raise Untraceable("it runs under autocast, which a graph cannot say")

    def adds(self, tensor: torch.Tensor, amount: Any) -> bool:
        """Note a number that only this run, and no earlier one, adds to a tensor in place; False where a graph cannot do so."""
        return False

    def drops(self, function: Any, tensor: torch.Tensor, rate: float) -> torch.Tensor | None:
        """Note that only this run, and no earlier one, drops elements of a tensor; None where there is no earlier one."""
        return None

    # -- what comes out of a call ----------------------------------------------------------------------------------------

    def _once(self, key: Any, make: Callable[[], fx.Node], value: Any) -> fx.Node:
        """A node that is made where it is first needed (and again if that was taken back), with its value."""
        known = self._made.get(key)
        if known is not None and self.stands(known[0]):
            return known[0]
        operations = self._recording.take()  # of the call whose argument this is
        node = make()
        self.write(node, value, bind=False)
        self._recording.operations = operations
        self._made[key] = node, value
        self._numbers[node] = value
        return node

    def write(self, node: fx.Node, result: Any, *, bind: bool = True) -> Any:
        """Put a node on the tape, with what it ran and made."""
        self.tape.steps.append(Step(node.name, self._recording.take(), result))
        if bind:
            self._held[node] = result
            self._bind(result, node, ())
        return result

    def _bind(self, result: Any, node: fx.Node, path: tuple[Any, ...]) -> None:
        if isinstance(result, torch.Tensor):
            self._places[id(result)] = Placed(result, node, path)
        elif isinstance(result, (tuple, list, Mapping)):
            for key, item in result.items() if isinstance(result, Mapping) else enumerate(result):
                self._bind(item, node, (*path, key))

    def apart(self, result: Any, operands: Any) -> Any:
        """The results of a call, as objects of their own where an operand comes back unchanged (dropout in eval mode)."""
        if isinstance(result, torch.Tensor):
            if not any(result is operand for operand in tensors_in(operands)) or self._wrote(result):
                return result
            return as_parameter(torch.ops.aten.alias.default(result), result)
        if type(result) in (tuple, list):
            return type(result)([self.apart(item, operands) for item in result])
        return result

    def _wrote(self, tensor: torch.Tensor) -> bool:
        return any(run.output is tensor and run.operator._schema.is_mutable for run in self._recording.operations)

    def finish(self, result: Any) -> None:
        """Write the output node."""
        self.write(self.node("output", "output", (self._output(result, ""),)), self.operands(plain_containers(result)))

    def _output(self, tree: Any, where: str) -> Any:
        """The model's result as the output node gets it; what a graph cannot hold is left out, and noted."""
        if tree is None or isinstance(tree, (torch.Tensor, bool, int, float, str, torch.dtype)):
            return self.argument(tree)
        if isinstance(tree, (tuple, list)):
            items = [self._output(item, f"{where}[{index}]") for index, item in enumerate(tree)]
            return self._construct(tree, tuple(items), {}, tuple(tree)) if hasattr(tree, "_fields") else type(tree)(items)
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
        node = self.node("call_function", type(result), args, kwargs)
        self.write(node, self.operands(parts))
        return node

    def write_read(self, node: fx.Node, value: Any) -> fx.Node:
        """Put a node on the tape that reads numbers from a tensor; it goes again unless they are used."""
        self.write(node, value, bind=False)
        self._checked.append(node)
        return node

    def number_read(self, node: fx.Node, value: Any, origin: Origin) -> Any:
        """The number that a node reads, with its origin."""
        number = with_origin(SizeFloat if isinstance(value, float) else SizeInt, value, origin)
        self._made["number", id(number)] = node, number
        self._numbers[node] = number
        return number

    # -- what is known -------------------------------------------------------------------------------------------------

    def maker_of(self, tensor: torch.Tensor) -> fx.Node | None:
        """The node of whose value a tensor is, or is a part; None for parameters, constants and what is inside of a call."""
        place = self._places.get(id(tensor))
        return None if place is None else place.node

    def is_constant(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is a parameter, a buffer or a constant."""
        return id(tensor) in self._shadow.real or not tensor.is_meta

    def number_of(self, node: fx.Node) -> Any:
        """The number that a node computes, with its origin; None for nodes that the model's calls have made."""
        return self._numbers.get(node)

    def stands(self, node: fx.Node) -> bool:
        """Whether a node that was written is in the graph; if not, it was taken back."""
        return not node._erased

    def name_of(self, tensor: torch.Tensor) -> str:
        """The name of the node that has made a tensor."""
        return self._node_of(tensor).name

    def write_call(self, function: Any, args: tuple[Any, ...], value: Any) -> fx.Node:
        """A node of a call that no operator runs for, with its value."""
        operations = self._recording.take()
        node = self.node("call_function", function, self.argument(args))
        self.write(node, value, bind=False)
        self._recording.operations = operations
        return node


def _only_computes(node: fx.Node, step: Step) -> bool:
    """Whether nothing of a call is left but its result."""
    computes = node.op in ("call_function", "call_method", "get_attr") and node.target is not torch._assert
    operators = [run.operator for run in step.operations]
    return computes and not any(one._schema.is_mutable or torch.Tag.nondeterministic_seeded in one.tags for one in operators)


def _same_view(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors look at the same memory in the same way."""
    return (
        tensor.untyped_storage()._cdata == other.untyped_storage()._cdata
        and (tensor.dtype, tensor.storage_offset()) == (other.dtype, other.storage_offset())
        and (tensor.shape, tensor.stride()) == (other.shape, other.stride())
    )


@lru_cache(_MOST_NAMES)
def _name(target: Any) -> str | None:
    """The name that fx gives, which takes it up to four regular expressions; None for what is left to it."""
    name = target.replace(".", "_") if isinstance(target, str) else target.__name__
    return name if name.islower() and not name.startswith("_") else None


def _key(number: Any, origin: Origin) -> Any:
    layout = origin.function in ("size", "stride")
    return (origin.function, id(origin.arguments[0]), origin.arguments[1]) if layout else ("number", id(number))
