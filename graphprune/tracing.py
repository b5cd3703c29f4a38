"""Capture: a model and example inputs become a :class:`Program`, an fx graph with the model's own hierarchy and names."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from graphprune.errors import CaptureError
from graphprune.graph_module import GraphModule
from graphprune.program import Inputs, Program
from graphprune.twins import restore_modes, set_mode

_TORCH = f"{Path(torch.__file__).parent}{os.sep}"


def capture(model: nn.Module, example_inputs: Any, *, source: str = "") -> Program:
    """Capture a model as a program.

    model: any ``nn.Module``; never modified. It is traced in eval mode, and the graph follows ``train()`` and
        ``eval()`` as the original does where its layers and functional dropout say so.
    example_inputs: a tensor, a tuple or list of positional arguments, or a dict of keyword arguments.

    Modules that do not trace become leaves: they run as they are, and everything that touches them is frozen with
    the reason. Raises CaptureError when the model is no module, is scripted, or its own forward does not trace.

    >>> import torch
    >>> program = capture(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU()), torch.zeros(1, 4))
    >>> [node.op for node in program.module.graph.nodes]
    ['placeholder', 'call_module', 'call_module', 'output']
    """
    root = _unwrap(model)
    inputs = normalise_inputs(example_inputs)
    _check_arguments(root, inputs)
    with _mode(root, training=False), _without_constants(root):
        tracer = _Tracer(inputs)
        graph = _trace(tracer, root, inputs)
        _follow_training_mode(graph, root, inputs)
        module = GraphModule(tracer.root, graph, type(root).__name__)
    restore_modes(module, root)  # fx makes new containers
    # What was no tensor is part of the graph now.
    left = Inputs(tuple(tracer.given.values())) if inputs.args else Inputs((), dict(tracer.given))
    return Program(module, left, dict(tracer.opaque), source)


def normalise_inputs(example_inputs: Any) -> Inputs:
    """Example inputs as positional and keyword arguments."""
    if isinstance(example_inputs, Inputs):
        return example_inputs
    if isinstance(example_inputs, Mapping):
        return Inputs((), dict(example_inputs))
    if isinstance(example_inputs, (tuple, list)):
        return Inputs(tuple(example_inputs))
    return Inputs((example_inputs,))


def _unwrap(model: Any) -> nn.Module:
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(
            f"{type(model).__name__} is a scripted (TorchScript) model, which has no Python to trace. "
            "Capture the model before torch.jit.script or torch.jit.trace."
        )
    if not isinstance(model, nn.Module):
        raise CaptureError(f"Expected a torch.nn.Module, got {type(model).__name__}.")
    inner = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    if isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner = inner.module
    assert isinstance(inner, nn.Module)
    return inner


def _check_arguments(root: nn.Module, inputs: Inputs) -> None:
    if not any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves((inputs.args, dict(inputs.kwargs)))):
        raise CaptureError(
            "The example inputs hold no tensor. Pass a tensor, a tuple of arguments, or a dict of keyword arguments."
        )
    try:
        inspect.signature(root.forward).bind(*inputs.args, **inputs.kwargs)
    except TypeError as error:
        raise CaptureError(f"The example inputs do not fit {type(root).__name__}.forward: {error}.") from error


@contextmanager
def _mode(root: nn.Module, *, training: bool) -> Iterator[None]:
    """The whole model in train or eval mode, every module's own mode restored afterwards."""
    before = [(module, module.training) for module in root.modules()]
    try:
        for module, _ in before:
            set_mode(module, training)
        yield
    finally:
        for module, mode in before:
            set_mode(module, mode)


@contextmanager
def _without_constants(root: nn.Module) -> Iterator[None]:
    """Take back the ``_tensor_constant`` attributes that tracing puts on a model which makes tensors in its forward."""
    before = set(root.__dict__)
    try:
        yield
    finally:
        for name in set(root.__dict__) - before:
            delattr(root, name)


def _trace(tracer: _Tracer, root: nn.Module, inputs: Inputs) -> fx.Graph:
    try:
        return tracer.trace(root)
    except CaptureError:
        raise
    except Exception as error:
        frame = _user_frame(error)
        raise CaptureError(
            f"{type(root).__name__}.forward does not trace{f' at {frame}' if frame else ''}: {str(error).strip().splitlines()[0]}. "
            "Its control flow depends on tensor values or shapes; capture the part that does not, or pass a torch.export program."
        ) from error


def _user_frame(error: BaseException) -> str:
    place = ""
    trace = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if not name.startswith((_TORCH, __file__, "<")):
            place = f"{name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


class _Tracer(fx.Tracer):
    """Symbolic tracing with leaves where it fails, absent optional arguments left out, and source lines on nodes."""

    # Buffers stay buffers: arithmetic on them is part of the graph, not folded into constants.
    proxy_buffer_attributes = True

    def __init__(self, inputs: Inputs) -> None:
        super().__init__(autowrap_functions=())
        self.inputs = inputs
        self.opaque: dict[str, str] = {}
        self.given: dict[str, Any] = {}

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Placeholders for the arguments given as tensors; everything else keeps its given or default value."""
        signature = inspect.signature(root_fn)
        parameters = list(signature.parameters.values())[1:]
        bound = inspect.signature(self.root.forward).bind(*self.inputs.args, **self.inputs.kwargs)
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for parameter in parameters:
            if parameter.kind is parameter.VAR_POSITIONAL:
                given = bound.arguments.get(parameter.name, ())
                args += [self._placeholder(f"{parameter.name}_{i}", value) for i, value in enumerate(given)]
            elif parameter.kind is parameter.VAR_KEYWORD:
                given = bound.arguments.get(parameter.name, {})
                kwargs.update({key: self._placeholder(key, value) for key, value in given.items()})
            elif parameter.name in bound.arguments:
                kwargs[parameter.name] = self._placeholder(parameter.name, bound.arguments[parameter.name])
        positional = parameters and parameters[0].kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)
        if positional or args:
            args = [kwargs.pop(p.name) for p in parameters if p.kind is not p.KEYWORD_ONLY and p.name in kwargs] + args
        root = self.root
        return (lambda *_: root_fn(root, *args, **kwargs)), []

    def _placeholder(self, name: str, value: Any) -> Any:
        if not any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(value)):
            return value
        self.given[name] = value
        return self.create_proxy("placeholder", name, (), {})

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Trace into a module; one that does not trace becomes a leaf, with the reason on record."""
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return self.create_proxy("call_module", path, args, kwargs)
        before = next(iter(reversed(self.graph.nodes)), None)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:
            self._discard_after(before)
            first = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
            self.opaque[path] = f"{type(error).__name__}: {first}"
            for inner in [name for name in self.opaque if name.startswith(f"{path}.")]:
                del self.opaque[inner]
            return self.create_proxy("call_module", path, args, kwargs)

    def _discard_after(self, last: fx.Node | None) -> None:
        for node in reversed(list(self.graph.nodes)):
            if node is last:
                break
            self.graph.erase_node(node)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Nodes know the line of the model's source that made them."""
        node = super().create_node(*args, **kwargs)
        node.meta["source"] = _source_line()
        return node


def _source_line() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith((_TORCH, __file__, "<")):
            return f"{name}:{frame.f_lineno}"
        if name == __file__ and frame.f_code.co_name in ("capture", "create_args_for_root"):
            return ""  # beyond is whoever called us, not the model
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def _follow_training_mode(graph: fx.Graph, root: nn.Module, inputs: Inputs) -> None:
    """Make functional calls that were given ``training=self.training`` follow the graph module's own mode.

    The mode is a Python bool when the model is traced. Where a second trace in train mode gives the same graph with
    True instead of False, the constant was the mode. A model whose two graphs differ otherwise keeps that of eval mode.
    """
    if not any(_false_constants(node) for node in graph.nodes):
        return
    with _mode(root, training=True):
        try:
            other = _Tracer(inputs).trace(root)
        except Exception:  # train mode need not trace; eval mode did
            return
    if [(n.op, str(n.target)) for n in graph.nodes] != [(n.op, str(n.target)) for n in other.nodes]:
        return
    for node, twin in zip(list(graph.nodes), other.nodes, strict=True):
        follows = [i for i, (a, b) in enumerate(zip(node.args, twin.args, strict=False)) if a is False and b is True]
        named = [key for key, value in node.kwargs.items() if value is False and twin.kwargs.get(key) is True]
        if follows or named:
            with graph.inserting_before(node):
                mode = graph.get_attr("training")
            for index in follows:
                node.update_arg(index, mode)
            for key in named:
                node.update_kwarg(key, mode)


def _false_constants(node: fx.Node) -> bool:
    return node.op == "call_function" and (False in node.args or False in node.kwargs.values())
