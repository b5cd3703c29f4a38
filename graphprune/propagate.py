"""Abstract execution: runs a captured graph on the meta device and carries labels through every ATen operator.

No operator is named here; :mod:`graphprune.rules` says what each one does to labels. No data and no memory: a model's
parameters are replaced by meta twins in a shallow copy of its module tree, so the model itself is not touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from types import FunctionType
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from graphprune.errors import CaptureError
from graphprune.labels import Field, LabelSpace, Reason, Value, along
from graphprune.policy import Policy
from graphprune.program import Program, placeholder_values
from graphprune.resizers import call_resizer, can_resize
from graphprune.rules import Call, keeps_sizes, only_moves, rule_for, tensors_in
from graphprune.shape_cache import ShapeCache
from graphprune.shuffles import Shuffle, find_shuffles
from graphprune.twins import named_tensors, set_mode, twin


@dataclass(frozen=True)
class MacsTerm:
    """Multiply-accumulates of one operator call: a product of constants and of kept counts of label vectors."""

    node: str
    factors: tuple[Field | int, ...]


@dataclass
class Trace:
    """Everything that one abstract execution wrote down.

    parameters: abstract value of every parameter and buffer that was used, by its first name.
    aliases: other names of the same tensors.
    values: abstract value of every graph node's result (same nesting), by node name.
    operands: every labelled tensor value that an operator saw or made, with the node that ran.
    shuffles: runs of views that permute one axis.
    scalars: constants whose new value is a kept count, by (node name, constant name).
    missing: operators without a rule, with the nodes that call them.
    """

    space: LabelSpace
    parameters: dict[str, Value] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    operands: list[tuple[str, Value]] = field(default_factory=list)
    shuffles: list[Shuffle] = field(default_factory=list)
    scalars: dict[tuple[str, str], Field] = field(default_factory=dict)
    macs: list[MacsTerm] = field(default_factory=list)
    missing: dict[str, list[str]] = field(default_factory=dict)
    operators: int = 0


def propagate(program: Program, policy: Policy | None = None) -> Trace:
    """Run the program abstractly. Raises CaptureError when the model cannot run on its example inputs."""
    twins: dict[int, torch.Tensor] = {}

    def to_meta(tensor: torch.Tensor) -> torch.Tensor:
        result = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        twins[id(tensor)] = result
        return result

    meta: Any = twin(program.module, to_meta)
    for module in meta.modules():
        set_mode(module, False)
    with torch.no_grad(), _Propagation(program, policy or Policy(), twins) as mode:
        interpreter = _Interpreter(meta, mode, program)
        with mode.paused():
            args = [tree_map(_to_meta, value) for value in placeholder_values(program.module.graph, program.inputs)]
        interpreter.run(*args)
    moving = frozenset(mode.movers - mode.workers)
    trace: Trace = mode.trace
    trace.shuffles = find_shuffles(program.module.graph, trace.values, moving)
    return trace


def _zeros_like(item: Any) -> Any:
    return torch.zeros(item.shape, dtype=item.dtype, device="cpu") if isinstance(item, torch.Tensor) else item


def _to_meta(item: Any) -> Any:
    return item.to("meta") if isinstance(item, torch.Tensor) else item


class _Interpreter:
    """Runs a graph node by node; tells the mode which node runs, and freezes the boundary of what it cannot rewrite.

    (``fx.Interpreter`` does the running as well, with traces and context for each node that cost as much as the node.)
    """

    def __init__(self, module: fx.GraphModule, mode: _Propagation, program: Program) -> None:
        self.module = module
        self.modules = dict(module.named_modules(remove_duplicate=False))
        self.mode = mode
        self.program = program
        self.results: dict[fx.Node, Any] = {}

    def run(self, *args: Any) -> None:
        """Run all nodes. args: a value for each placeholder; those left out at the end take their defaults."""
        given = iter(args)
        for node in self.program.module.graph.nodes:
            self.results[node] = self._run_node(node, given)

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
        target: Any = self.modules[str(node.target)] if node.op == "call_module" else node.target
        return target(*args, **kwargs)

    def _run_node(self, n: fx.Node, given: Iterator[Any]) -> Any:
        self.mode.node = n
        self.mode.open_bounds = None
        try:
            refusal = self._refusal(n)
            if refusal is None:
                result = self._execute(n, given)
            else:
                self._freeze_boundary(n, refusal)
                with self.mode.paused():
                    result = self._run_opaque(n)
                self.mode.freeze_results(result, refusal)
        except Exception as error:
            raise _run_error(n, error, self.program) from error
        if n.op == "output":
            self.mode.freeze_tensors(result, "it reaches the model's output", "output")
        single = isinstance(result, torch.Tensor)
        self.mode.trace.values[n.name] = self.mode.value_of(result) if single else tree_map(self.mode.value_or_item, result)
        return result

    def _refusal(self, node: fx.Node) -> str | None:
        """Why labels stop at this node's boundary, or None."""
        if node.op == "call_function" and _is_opaque_call(node):
            name = getattr(node.target, "__name__", node.target)
            return f"{name} is a Python function with sizes of its own, which no rule resizes"
        if node.op != "call_module":
            return None
        path = str(node.target)
        if path in self.program.opaque:
            return f"module {path} does not trace: {self.program.opaque[path]}"
        module = self.modules[path]
        return None if can_resize(module) else f"no rule resizes modules of class {type(module).__name__}"

    def _run_opaque(self, node: fx.Node) -> Any:
        """Run without labels: on the meta device, or on zeros where the code looks at data."""
        try:
            with torch.device("meta"):
                return self._execute(node, iter(()))
        except (RuntimeError, NotImplementedError, TypeError):
            if node.op != "call_module":
                raise
            args, kwargs = tree_map(_zeros_like, self._arguments(node))
            module = twin(self.program.module.get_submodule(str(node.target)), lambda tensor: tensor.detach().cpu())
            return tree_map(_to_meta, module.eval()(*args, **kwargs))

    def _freeze_boundary(self, node: fx.Node, refusal: str) -> None:
        self.mode.freeze_tensors(self._arguments(node), refusal, node.op.removeprefix("call_"))
        if node.op == "call_module":
            self.mode.freeze_tensors(list(self.modules[str(node.target)].parameters()), refusal, "module")


def _is_opaque_call(node: fx.Node) -> bool:
    """A call of a Python function outside torch that is given integers, which may restate widths inside it."""
    function = node.target
    if not isinstance(function, FunctionType) or function.__module__.startswith("torch.") or call_resizer(function) is not None:
        return False
    return any(isinstance(item, int) and not isinstance(item, bool) for item in tree_leaves((node.args, dict(node.kwargs))))


def _run_error(node: fx.Node, error: Exception, program: Program) -> CaptureError:
    where = f"{node.op.removeprefix('call_')} {node.target}" if node.op != "output" else "the output"
    place = node.meta.get("source", "")
    return CaptureError(
        f"The model does not run on inputs {program.inputs.describe()}: {where}{f' at {place}' if place else ''} fails with "
        f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}. "
        "Give example inputs of the shape and dtype that the model takes."
    )


class _Propagation(TorchDispatchMode):
    """Sees every ATen operator, runs it on the meta device and applies its rule."""

    def __init__(self, program: Program, policy: Policy, twins: Mapping[int, torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.space = LabelSpace()
        self.policy = policy
        self.trace = Trace(self.space)
        self.node: fx.Node | None = None
        self._values: dict[int, tuple[torch.Tensor, Value]] = {}
        self._names: dict[int, str] = {}
        self._rules: dict[Any, Any] = {}
        self._shapes = ShapeCache()
        self._paused = False
        self.open_bounds: bool | None = None
        self.movers: set[str] = set()  # nodes that ran operators which only move elements ...
        self.workers: set[str] = set()  # ... and nodes that ran others
        self._constants: dict[int, torch.Tensor] = {}
        for name, tensor in named_tensors(program.module).items():
            meta = twins[id(tensor)]
            first = self._names.setdefault(id(meta), name)
            if first != name:
                self.trace.aliases[name] = first
            if not tensor.is_floating_point() and tensor.dim() == 1:
                self._constants[id(meta)] = tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs) if kwargs else {}
        if self._paused:
            return func(*args, **kwargs)
        if func not in self._rules:
            self._rules[func] = rule_for(func), keeps_sizes(func)
        rule, any_size = self._rules[func]
        if "device" in kwargs:
            kwargs["device"] = torch.device("meta")
        operands = tensors_in((*args, *kwargs.values()))
        if not all(tensor.is_meta for tensor in operands):
            args, kwargs = tree_map(_to_meta, (args, kwargs))  # a constant that the model makes in its forward
        output = self._shapes.run(func, args, kwargs, any_size and all(tensor.is_contiguous() for tensor in operands))
        self.trace.operators += 1
        assert self.node is not None
        (self.movers if only_moves(func) else self.workers).add(self.node.name)
        call = Call(self, func, args, kwargs, output)
        if rule is not None:
            rule(call)
        else:
            self.trace.missing.setdefault(call.name, []).append(self.node.name)
            call.freeze_inputs(f"operator {call.name} has no rule")
            for index in range(len(call.outputs)):
                call.set((), index)
        return output

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let operators run without labels."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    # -- what a rule's call asks for (graphprune.rules.Recorder) ---------------------------------------------------

    def value_of(self, tensor: torch.Tensor) -> Value:
        """The tensor's value; a parameter or buffer gets its labels at its first use."""
        known = self._values.get(id(tensor))
        if known is not None:
            return known[1]
        name = self._names.get(id(tensor))
        if name is None:
            return self.set_value(tensor, ())
        rank = tensor.dim()
        fields = [along(self.space.fresh(size), axis, rank) for axis, size in enumerate(tensor.shape) if size > 1]
        value = self.trace.parameters[name] = self.set_value(tensor, fields)
        return value

    def set_value(self, tensor: torch.Tensor, fields: Sequence[Field]) -> Value:
        """Remember a tensor's value (and the tensor, so that its identity is not reused)."""
        storage = tensor.untyped_storage()._cdata
        value = Value(tuple(tensor.shape), tuple(fields), tensor.element_size(), storage, tensor.stride())
        self._values[id(tensor)] = (tensor, value)
        if fields:
            self.trace.operands.append((self.node.name if self.node else "", value))
        return value

    def value_or_item(self, item: Any) -> Any:
        """The value of a tensor; anything else as it is."""
        return self.value_of(item) if isinstance(item, torch.Tensor) else item

    def reason(self, text: str, operator: str) -> Reason:
        """A reason at the node that runs."""
        node = self.node
        return Reason(text, operator, node.name if node else "", node.meta.get("source", "") if node else "")

    def record_macs(self, factors: Sequence[Field | int]) -> None:
        """Multiply-accumulates of the running node."""
        assert self.node is not None
        self.trace.macs.append(MacsTerm(self.node.name, tuple(factors)))

    def record_scalar(self, name: str, labels: Field) -> None:
        """A constant of the running node that is a kept count."""
        assert self.node is not None
        self.trace.scalars[self.node.name, name] = labels

    def choose(self, policy: str) -> str:
        """The policy's choice at the running node."""
        assert self.node is not None
        return self.policy.choose(policy, self.node.name, str(self.node.target))

    def constant(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The data of a 1-D integer buffer; None for any other tensor."""
        return self._constants.get(id(tensor))

    def has_open_bounds(self) -> bool:
        """Whether the running node computes its numbers from sizes that vary between calls."""
        if self.open_bounds is None:
            assert self.node is not None
            numbers = [arg for arg in self.node.all_input_nodes if not _holds_value(self.trace.values[arg.name])]
            self.open_bounds = any(_varies(arg, self.trace.values) for arg in numbers)
        return self.open_bounds

    def freeze_results(self, tree: Any, text: str) -> None:
        """Give results that nothing is known of labels that are frozen, so that what meets them knows why."""
        for tensor in tensors_in((tree,)):
            rank = tensor.dim()
            atoms = [along(self.space.fresh(n, soft=True), axis, rank) for axis, n in enumerate(tensor.shape) if n > 1]
            self.set_value(tensor, atoms)
        self.freeze_tensors(tree, text, "opaque")

    def freeze_tensors(self, tree: Any, text: str, operator: str) -> None:
        """Freeze every label of every tensor in a structure."""
        why = self.reason(text, operator)
        for tensor in tensors_in((tree,)):
            for item in self.value_of(tensor).fields:
                self.space.freeze(item, why)


def _holds_value(item: Any) -> bool:
    return any(isinstance(leaf, Value) for leaf in tree_leaves(item, is_leaf=lambda leaf: isinstance(leaf, Value)))


def _varies(number: fx.Node, values: Mapping[str, Any]) -> bool:
    """Whether a number that the graph computes depends on a tensor size that is no channel count.

    A channel count is an axis with labels; the axes of a shape are told apart where the shape is indexed.
    """
    sources = number.all_input_nodes
    index = number.args[1] if len(number.args) > 1 and isinstance(number.args[1], int) else None
    for source in sources:
        value = values[source.name]
        if isinstance(value, Value):
            axes = range(len(value.shape)) if index is None else [index % max(1, len(value.shape))]
            if any(axis not in value.labelled for axis in axes):
                return True
        elif index is not None and isinstance(value, (tuple, list)) and source.all_input_nodes:
            tensor = values[source.all_input_nodes[0].name]
            if isinstance(tensor, Value) and index % len(value) not in tensor.labelled:
                return True
        elif _varies(source, values):
            return True
    return False
