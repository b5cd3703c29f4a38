"""Whether a model of its own class and a slim graph run the same operators."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import count, zip_longest
from typing import Any, Final

import torch
from torch import fx, nn
from torch.utils._pytree import tree_map

from graphprune.channels.tape import Operation
from graphprune.ir.handed import Keys
from graphprune.ir.program import Inputs, Program, Scope, placeholder_values
from graphprune.ir.twins import named_tensors
from graphprune.tracing.capture import capture
from graphprune.tracing.inputs import ModuleCall
from graphprune.tracing.sizes import plain

_SAME: Final = torch.ops.aten.alias.default  # gives its operand back
_END: Final = object()


def first_difference(model: nn.Module, inputs: Inputs, slim: fx.GraphModule, joint: Inputs, scopes: Sequence[Scope]) -> str:
    """The first operator that a model runs otherwise than a slim graph, in words; empty where there is none.

    Operators are compared with their operands, by name, by data (of constants that the code makes) or by the operator that has made
    them, and with all other arguments.
    inputs: example inputs of the model. joint: those of the graph. scopes: what the graph consists of, if not of the whole. Raises
    CaptureError where one of them does not run.
    """
    calls = [_call(scope, slim.graph, joint) for scope in scopes]
    known = named_tensors(model).keys()
    own, graph = (_operations(program, known) for program in (capture(model, inputs, scopes=calls), capture(slim, joint)))
    for left, right in zip_longest(own, graph, fillvalue=_END):
        if left != right:
            here, there = (_in_words(side) for side in (left, right))
            return f"it runs {here} where the slim graph runs {there}"
    return ""


def _call(scope: Scope, graph: fx.Graph, joint: Inputs) -> ModuleCall:
    """A scope as it is called in the example of the graph."""
    names = [node.target for node in graph.nodes if node.op == "placeholder"]
    values = dict(zip(names, placeholder_values(graph, joint), strict=False))
    arguments = {name: values[given] if given else None for name, given in scope.arguments}
    for argument in {one.argument for one in scope.taken}:
        arguments[argument] = _holder([one.at for one in scope.taken if one.argument == argument])
    return ModuleCall(scope.path, Inputs((), arguments), scope.taken)


def _holder(ways: Sequence[Keys]) -> Any:
    """A structure that holds something at each of these ways."""
    if () in ways:
        return _END
    inner = {key: _holder([way[1:] for way in ways if way[0] == key]) for key in dict.fromkeys(way[0] for way in ways)}
    return inner if isinstance(next(iter(inner)), str) else [*inner.values()]


def _in_words(operation: Any) -> str:
    return "nothing more" if operation is _END else f"{operation[0].__name__} -> {operation[2]}"


def _operations(program: Program, known: Collection[str]) -> Iterator[tuple[Any, Any, Any]]:
    """Operators, their arguments and results; tensors by name if it is known, by data, or by number in the order in which they
    appear."""
    tape = program.tape
    assert tape is not None
    numbers: dict[int, Any] = {
        identity: name if name in known else _data(program.tensors[name]) for identity, name in tape.names.items()
    }
    fresh = count()
    kept = []  # identities are not to be used again

    def told(item: Any) -> Any:
        if not isinstance(item, torch.Tensor):
            return plain(item)
        if id(item) not in numbers:
            kept.append(item)
            numbers[id(item)] = next(fresh)
        return numbers[id(item)], tuple(item.shape), item.dtype

    for step in tape.steps:
        for operation in step.operations:
            if operation.operator is _SAME:
                numbers[id(operation.output)] = told(operation.args[0])[0]
                kept.append(operation.output)
                continue
            yield _told(operation, told)


def _data(tensor: torch.Tensor) -> Any:
    return tensor.dtype, tuple(tensor.shape), None if tensor.is_meta else tensor.detach().cpu().flatten().tolist()


def _told(operation: Operation, told: Any) -> tuple[Any, Any, Any]:
    arguments = tree_map(told, (operation.args, operation.kwargs))
    return operation.operator, arguments, tree_map(told, operation.output)
