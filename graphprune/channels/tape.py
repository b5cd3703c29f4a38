"""The tape: every ATen operator that a program runs, node by node, written down on the meta device.

No data and no memory: parameters and inputs are stand-ins that have a shape, strides and a dtype. Capture writes the tape
while it traces; for a graph that was not captured just now (a rewritten one), :func:`run_graph` does. Analyses read it as
often as they like: it holds all that they need to know of torch.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.fx.node import map_arg
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map

from graphprune.channels.packed import with_batch_sizes
from graphprune.channels.shape_cache import SHAPES
from graphprune.channels.values import Values, selecting_all
from graphprune.errors import CaptureError, typed_line
from graphprune.extensions import load_extensions
from graphprune.ir.program import Inputs, Program, placeholder_values
from graphprune.ir.reads import question, reads_numbers
from graphprune.ir.twins import modules_by_path, named_tensors, set_mode, twin
from graphprune.resizers import can_resize
from graphprune.rules import keeps_sizes, tensors_in


class Operation(NamedTuple):
    """One call of an ATen operator on meta tensors."""

    operator: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


@dataclass(slots=True)
class Step:
    """What one node ran. result: meta tensors and numbers, in the structure of the node's value.

    refusal: why labels stop at the node's boundary, or empty; its operands are in ``boundary`` and nothing is known of
    its result.
    """

    node: str
    operations: list[Operation] = field(default_factory=list)
    result: Any = None
    refusal: str = ""
    boundary: tuple[Any, ...] = ()


@dataclass
class Tape:
    """The steps in the order of the graph's nodes.

    names: parameters and buffers by the identity of their stand-ins, under their first name. aliases: other names of the
    same tensors. constants: data of 1-D integer buffers, and what torch makes of numbers and lists of Python, by the identity of
    their stand-ins.
    """

    steps: list[Step] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    constants: dict[int, torch.Tensor] = field(default_factory=dict)
    held: list[torch.Tensor] = field(default_factory=list)

    def add_tensor(self, name: str, tensor: torch.Tensor, stand_in: torch.Tensor) -> None:
        """Tell the tape of a parameter or buffer."""
        first = self.names.setdefault(id(stand_in), name)
        if first != name:
            self.aliases[name] = first
            return
        self.held.append(stand_in)
        if tensor.dim() == 1 and not tensor.is_floating_point() and not tensor.is_meta:
            self.constants[id(stand_in)] = tensor

    def operations(self) -> Iterator[Operation]:
        """What all steps ran."""
        return (run for step in self.steps for run in step.operations)


def stand_in(tensor: torch.Tensor) -> torch.Tensor:
    """A meta tensor of the same shape, strides and dtype."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def stand_ins(tree: Any) -> Any:
    """A structure with every tensor on the meta device."""
    return tree_map(lambda leaf: leaf if not isinstance(leaf, torch.Tensor) or leaf.is_meta else stand_in(leaf), tree)


def plain_containers(tree: Any) -> Any:
    """A model's result with plain containers in place of its own classes, in which tensors would not be found."""
    if is_dataclass(tree):
        return {part.name: plain_containers(getattr(tree, part.name)) for part in fields(tree)}
    if isinstance(tree, Mapping):
        return {key: plain_containers(item) for key, item in tree.items()}
    return [plain_containers(item) for item in tree] if isinstance(tree, (tuple, list)) else tree


class Recording(TorchDispatchMode):
    """Runs ATen operators on the meta device and writes them into :attr:`operations`.

    numbers: stand-ins, by their identity, of what torch makes of numbers and lists of Python, with that. values: tells how
    large the results are whose sizes values decide. announces: the function mode that calls of torch announce themselves to, if
    any; what did not (``torch.FloatTensor([1.0])``, which is a type) is announced to it as the operator that it runs, after
    ``check`` has had a look.
    """

    def __init__(self, check: Callable[[Any, Any], None] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._check = check
        self.operations: list[Operation] = []
        self.numbers: dict[int, torch.Tensor] = {}
        self.values: Values | None = None
        self.announces: TorchFunctionMode | None = None
        self._kept: list[torch.Tensor] = []  # identities are not to be used again
        self._any_size: dict[Any, bool] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Dynamo has no part in this; guarding against it would take as long as the bookkeeping itself."""
        return False

    def take(self) -> list[Operation]:
        """What was written since the last call."""
        taken, self.operations = self.operations, []
        return taken

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs) if kwargs else {}
        if self.announces is not None and _hears(self.announces):
            if self._check is not None:
                self._check(func, args)
            with self:
                return func(*args, **kwargs)
        if "device" in kwargs:
            kwargs["device"] = torch.device("meta")
        any_size = self._any_size.get(func)
        if any_size is None:
            any_size = self._any_size[func] = keeps_sizes(func)
        operands = tensors_in((*args, *kwargs.values()))
        if not all([tensor.is_meta for tensor in operands]):
            args, kwargs = tree_map(self._stand_in, (args, kwargs))  # a constant that the model makes in its forward
        return self._run(func, args, kwargs, any_size and all([tensor.is_contiguous() for tensor in operands]))

    def record(self, operator: Any, *args: Any) -> Any:
        """Write an operator down that torch would take apart."""
        with _disable_current_modes():
            return self._run(operator, args, {}, False)

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any], any_size: bool) -> Any:
        sized = None if self.values is None else self.values.sized(func, args, kwargs)
        selected = None if sized is not None else selecting_all(func, args)
        output = SHAPES.run(func, selected or args, kwargs, any_size) if sized is None else stand_ins(sized)
        self.operations.append(Operation(func, args, kwargs, output))
        if self.values is not None:
            self.values.note_sizes(self.operations[-1], unknown=selected is not None)
        return output

    def _stand_in(self, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or leaf.is_meta:
            return leaf
        result = stand_in(leaf)
        self.numbers[id(result)] = leaf
        self._kept.append(result)
        return result


def _hears(mode: TorchFunctionMode) -> bool:
    """Whether a call of torch would announce itself to a function mode, as none does within a call that has."""
    if not torch._C._is_torch_function_mode_enabled():
        return False
    return torch._C._get_function_stack_at(torch._C._len_torch_function_stack() - 1) is mode


def tape_of(program: Program) -> Tape:
    """The program's tape: that of its capture, or a new one."""
    return program.tape if program.tape is not None else run_graph(program)


def run_graph(program: Program) -> Tape:
    """Run a program's graph on the meta device. Raises CaptureError when it cannot run on its example inputs."""
    load_extensions("graphprune.rules")
    recording = Recording()
    tape = Tape(constants=recording.numbers)
    twins: dict[int, torch.Tensor] = {}

    def to_meta(tensor: torch.Tensor) -> torch.Tensor:
        return twins.setdefault(id(tensor), stand_in(tensor))

    meta = twin(program.module, to_meta)
    for module in meta.modules():
        set_mode(module, False)
    real: dict[int, torch.Tensor] = {}
    for name, tensor in named_tensors(program.module).items():
        tape.add_tensor(name, tensor, twins[id(tensor)])
        real[id(twins[id(tensor)])] = tensor
    given = placeholder_values(program.module.graph, program.inputs)
    arguments = [stand_ins(value) for value in given]
    recording.values = Values(real, recording.numbers, lambda: chain(tape.operations(), recording.operations))
    recording.values.give(arguments, given)
    with torch.no_grad(), recording:
        _Runner(meta, recording, program).run(tape, arguments)
    return tape


class _Runner:
    """Runs a graph node by node (``fx.Interpreter`` adds traces and context to each that cost as much as the node)."""

    def __init__(self, module: nn.Module, recording: Recording, program: Program) -> None:
        self.module = module
        self.modules = modules_by_path(module)
        self.recording = recording
        self.program = program
        self.results: dict[fx.Node, Any] = {}

    def run(self, tape: Tape, args: list[Any]) -> None:
        given = iter(args)
        for node in self.program.module.graph.nodes:
            tape.steps.append(self._step(node, given))

    def _step(self, node: fx.Node, given: Iterator[Any]) -> Step:
        try:
            refusal = self._refusal(node)
            if refusal:
                args, kwargs = self._arguments(node)
                module = self.program.module.get_submodule(str(node.target))
                result = run_opaque(module, args, kwargs)
                self.recording.take()
                step = Step(node.name, [], result, refusal, boundary_of(self.modules[str(node.target)], args, kwargs))
            else:
                result = self._execute(node, given)
                step = Step(node.name, self.recording.take(), plain_containers(result) if node.op == "output" else result)
        except Exception as error:
            raise run_error(self.program.inputs, error, describe(node), node.meta.get("source", "")) from error
        self.results[node] = step.result
        return step

    def _refusal(self, node: fx.Node) -> str:
        if node.op != "call_module":
            return ""
        path = str(node.target)
        if path in self.program.opaque:
            return opaque_refusal(path, self.program.opaque[path])
        module = self.modules[path]
        return "" if can_resize(module) else f"no rule resizes modules of class {type(module).__name__}"

    def _arguments(self, node: fx.Node) -> tuple[Any, Any]:
        return map_arg(node.args, self.results.__getitem__), map_arg(node.kwargs, self.results.__getitem__)

    def _execute(self, node: fx.Node, given: Iterator[Any]) -> Any:
        if node.op == "placeholder":
            return next(given, *node.args)
        if node.op == "get_attr":
            return attrgetter(str(node.target))(self.module)
        args, kwargs = self._arguments(node)
        if node.op == "output":
            return args[0]
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.target is torch._assert_async:
            return None  # a check of data
        if reads_numbers(node):
            return self._number(question(node), args, kwargs)
        target: Any = self.modules[str(node.target)] if node.op == "call_module" else node.target
        target, args = with_batch_sizes(self.recording, target, args)
        return target(*with_index_tensors(target, node.args, args), **kwargs)

    def _number(self, read: Any, args: Any, kwargs: Any) -> Any:
        """What a node reads from tensors that the inputs decide."""
        assert self.recording.values is not None
        number = self.recording.values.answer(read, args, kwargs)
        if number is None:
            raise RuntimeError("it reads values that more than integers of the inputs and buffers decides")
        return number


def opaque_refusal(path: str, reason: str) -> str:
    """Why labels stop at a module that does not trace."""
    return f"module {path} does not trace: {reason}"


def boundary_of(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Everything that a module which is not analysed touches."""
    return (args, kwargs, list(module.parameters()))


def run_opaque(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Results of a module that is not analysed, as stand-ins: it runs as it is, for it may look at data.

    The data are zeros, or ones where these will not do (as lengths).
    """

    with torch._C.DisableTorchFunction(), _disable_current_modes(), torch.no_grad():
        copy = twin(module, lambda tensor: tensor.detach().cpu())
        for child in copy.modules():
            set_mode(child, False)
        try:
            return stand_ins(_run_filled(copy, args, kwargs, 0))
        except Exception as error:
            try:
                return stand_ins(_run_filled(copy, args, kwargs, 1))
            except Exception:
                raise error from None


def _run_filled(module: nn.Module, args: Any, kwargs: Mapping[str, Any], value: int) -> Any:
    def fill(item: Any) -> Any:
        return torch.full(item.shape, value, dtype=item.dtype) if isinstance(item, torch.Tensor) else item

    args, kwargs = tree_map(fill, (args, dict(kwargs)))
    return module(*args, **kwargs)


def with_index_tensors(function: Any, written: Any, args: Any) -> Any:
    """The arguments of a call, with tensors in place of lists that index a tensor: of these torch makes stand-ins without data.

    written: the arguments in which numbers that may be others in another call are none.
    """
    if function not in (operator.getitem, torch.Tensor.__getitem__) or not isinstance(args[0], torch.Tensor):
        return args
    indices, whole = written[1], isinstance(written[1], tuple)
    items = zip(indices, args[1], strict=True) if whole else [(indices, args[1])]
    with _disable_current_modes():
        found = tuple([torch.tensor(item) if _lists_places(index) else item for index, item in items])
    return args[0], found if whole else found[0]


def _lists_places(index: Any) -> bool:
    return isinstance(index, (list, tuple)) and {type(place) for place in index} in ({int}, {bool})


def describe(node: fx.Node) -> str:
    """A node in words, for messages."""
    target = getattr(node.target, "__name__", node.target)
    return f"{node.op.removeprefix('call_')} {target}" if node.op != "output" else "the output"


def run_error(inputs: Inputs, error: Exception, where: str, place: str) -> CaptureError:
    """The message for a model that does not run on its example inputs."""
    return CaptureError(
        f"The model does not run on inputs {inputs.describe()}: {where}{f' at {place}' if place else ''} fails with "
        f"{typed_line(error)}. "
        "Give example inputs of the shape and dtype that the model takes, or mend its forward."
    )
