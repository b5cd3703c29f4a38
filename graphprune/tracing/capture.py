"""Capture: a model and example inputs become a :class:`Program`, an fx graph with the model's own hierarchy and names."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from torch import fx, nn

from graphprune.errors import CaptureError
from graphprune.extensions import load_extensions
from graphprune.graph_module import adopt
from graphprune.program import Inputs, Program
from graphprune.tape import Step, run_error, run_opaque
from graphprune.tracing.inputs import bind, holds_tensor, normalise_inputs
from graphprune.tracing.source import error_line
from graphprune.tracing.tracer import Tracer
from graphprune.tracing.training import Mode, follow_mode
from graphprune.twins import named_tensors


def capture(model: nn.Module, example_inputs: Any, *, source: str = "") -> Program:
    """Capture a model as a program.

    model: any ``nn.Module``; never modified. It is traced in eval mode, and the graph follows ``train()`` and
        ``eval()`` as the original does where its layers and functional calls say so.
    example_inputs: a tensor, a tuple or list of positional arguments, or a dict of keyword arguments. They decide control
        flow that depends on shapes; sizes that are only data stay variable.

    Modules that do not trace become leaves: they run as they are, and everything that touches them is frozen with
    the reason. Raises CaptureError when the model is no module, is scripted, or its own forward does not trace.

    >>> import torch
    >>> program = capture(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU()), torch.zeros(1, 4))
    >>> [node.op for node in program.module.graph.nodes]
    ['placeholder', 'call_module', 'call_module', 'output']
    """
    load_extensions("graphprune.rules")
    root = _unwrap(model)
    inputs = normalise_inputs(example_inputs)
    bound = bind(root, inputs)
    tracer, given = _trace(root, bound, inputs, Mode(False))
    if tracer.mode.consulted:
        _follow_training_mode(tracer, root, bound, inputs)
    module = _graph_module(root, tracer)
    # What was no tensor is part of the graph now.
    left = Inputs(tuple(given.values())) if inputs.args else Inputs((), given)
    return Program(module, left, dict(tracer.opaque), source, tracer.tape)


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


def _trace(root: nn.Module, bound: inspect.BoundArguments, inputs: Inputs, mode: Mode) -> tuple[Tracer, dict[str, Any]]:
    """The tracer after its run, and the arguments that became placeholders."""
    tracer = Tracer(root, mode)
    given: dict[str, Any] = {}

    def placeholder(name: str, value: Any) -> Any:
        if not holds_tensor(value):
            return value
        given[name] = value
        return tracer.placeholder(name, value)

    args = tuple(placeholder(name, value) for name, value in zip(_positions(bound), inputs.args, strict=False))
    kwargs = {name: placeholder(name, value) for name, value in inputs.kwargs.items()}
    try:
        tracer.run(args, kwargs)
    except CaptureError:
        raise
    except Exception as error:
        raise _capture_error(root, tracer, inputs, error) from error
    return tracer, given


def _positions(bound: inspect.BoundArguments) -> Iterator[str]:
    """Names for positional arguments, without end where the forward takes any number of them."""
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            yield from (f"{name}_{index}" for index in count())
        yield name


def _capture_error(root: nn.Module, tracer: Tracer, inputs: Inputs, error: Exception) -> CaptureError:
    """Whether the model does not run at all, or runs and does not trace."""
    where = f"module {tracer.failed}" if tracer.failed else f"{type(root).__name__}.forward"
    try:
        run_opaque(root, inputs.args, inputs.kwargs)
    except Exception as real:
        return run_error(inputs, real, where, error_line(real))
    place = error_line(error)
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return CaptureError(
        f"{where} does not trace{f' at {place}' if place else ''}: {text}. "
        "Its control flow depends on tensor values; capture the part that does not, or pass a torch.export program."
    )


def _follow_training_mode(tracer: Tracer, root: nn.Module, bound: inspect.BoundArguments, inputs: Inputs) -> None:
    """A model whose Python asks for its mode is traced in train mode too; train mode need not trace."""
    try:
        other, _ = _trace(root, bound, inputs, Mode(True))
    except CaptureError:
        return
    tracer.tape.steps[:0] = [Step(node.name, result=value) for node, value in follow_mode(tracer.graph, other.graph)]


def _graph_module(root: nn.Module, tracer: Tracer) -> fx.GraphModule:
    """The graph over a tree of what it uses: the model's own layers and tensors, in plain modules of the same names."""
    layers = {str(node.target) for node in tracer.graph.nodes if node.op == "call_module"}
    tensors = {str(node.target) for node in tracer.graph.nodes if node.op == "get_attr"}
    needed = {path[:end] for path in layers | tensors for end, letter in enumerate(path) if letter == "."}
    tree = _part(root, "", layers, tensors, needed | layers)
    for name, tensor in tracer.constants.items():
        tree.register_buffer(name, tensor, persistent=False)
    tracer.name_tensors(named_tensors(tree))
    return adopt(tree, tracer.graph, type(root).__name__)


def _part(source: nn.Module, path: str, layers: set[str], tensors: set[str], needed: set[str]) -> nn.Module:
    """A layer as it is; of a container what the graph needs of it."""
    if path in layers:
        return source
    prefix = f"{path}." if path else ""
    result = nn.Module()
    result.training = source.training
    result._parameters |= {name: value for name, value in source._parameters.items() if prefix + name in tensors}
    result._buffers |= {name: value for name, value in source._buffers.items() if prefix + name in tensors}
    result._non_persistent_buffers_set |= source._non_persistent_buffers_set & result._buffers.keys()
    for name, child in source._modules.items():
        if child is not None and prefix + name in needed:
            result._modules[name] = _part(child, prefix + name, layers, tensors, needed)
    return result
