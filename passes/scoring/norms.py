"""Normalisations on a program's tape: which parameters are their scales, and what a batch norm multiplies channels by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from torch import Tensor

from graphprune.channels.tape import Operation, Tape, tape_of
from graphprune.ir.program import Program
from graphprune.passes.analysis.rules.normalisation import BATCH_NORMS
from graphprune.rules import only_moves

_NORMS: Final = frozenset(BATCH_NORMS) | {"native_layer_norm", "native_group_norm", "_fused_rms_norm", "rms_norm"}
_ROOTS: Final = frozenset({"rsqrt", "sqrt"})
_COPIES: Final = frozenset({"_to_copy", "clone", "repeat", "expand"})
_ROOT, _NORMALISED = object(), object()


def scales(program: Program) -> dict[str, None]:
    """Names of the parameters that scale what was normalised, in the order of their use.

    They are the weights of the normalisation operators that ran, and, since root mean square normalisation runs as a few plain
    operators, parameters that multiply a value which was just multiplied by, or divided by, a root.
    """
    tape = tape_of(program)
    kinds: dict[int, object] = dict(tape.names)  # parameters by name, roots, normalised values, and copies and views of these
    found: dict[str, None] = {}
    for operation in _operations(tape):
        name, tensors = _name(operation), [arg for arg in operation.args if isinstance(arg, Tensor)]
        given = [kinds.get(id(tensor)) for tensor in tensors]
        if name in _NORMS:
            found.update(_parameters([kinds.get(id(_argument(operation, "weight")))]))
        elif name == "mul" and _NORMALISED in given:
            found.update(_parameters(given))
        else:
            kinds[id(operation.output)] = _kind(name, given, only_moves(operation.operator))
    return found


def _parameters(kinds: Sequence[object]) -> dict[str, None]:
    return {kind: None for kind in kinds if isinstance(kind, str)}


def _kind(name: str, given: Sequence[object], moves: bool) -> object:
    """What an operator's result is, given what its tensors are."""
    if name in _ROOTS:
        return _ROOT
    if len(given) == 1 and (moves or name in _COPIES):
        return given[0]
    if name in ("mul", "div") and _ROOT in given[name == "div" :] and not _parameters(given):
        return _NORMALISED
    return None


def batch_norm_parameters(program: Program) -> list[tuple[str, ...]]:
    """Names of scale and shift of every batch norm that has them, each pair once."""
    tape = tape_of(program)
    found: dict[tuple[str, ...], None] = {}
    for operation in _operations(tape):
        if _name(operation) in BATCH_NORMS:
            names = (tape.names.get(id(_argument(operation, name))) for name in ("weight", "bias"))
            found[tuple(name for name in names if name is not None)] = None
    return [names for names in found if names]


def batch_norm_factors(program: Program) -> dict[str, Tensor]:
    """``|gamma| / sqrt(var + eps)`` of the batch norms that directly follow a node, in float64, by the node's name."""
    tape = tape_of(program)
    made_by = {id(step.result): step.node for step in tape.steps if isinstance(step.result, Tensor)}
    found: dict[str, Tensor] = {}
    for operation in _operations(tape):
        variance = tape.names.get(id(_argument(operation, "running_var"))) if _name(operation) in BATCH_NORMS else None
        maker = made_by.get(id(operation.args[0])) if operation.args else None
        if variance is None or maker is None:
            continue
        factors = (program.values[variance].detach().double() + float(_argument(operation, "eps", "epsilon"))).rsqrt()
        weight = tape.names.get(id(_argument(operation, "weight")))
        found[maker] = factors if weight is None else factors * program.values[weight].detach().double().abs()
    return found


def _operations(tape: Tape) -> list[Operation]:
    return [operation for step in tape.steps for operation in step.operations]


def _name(operation: Operation) -> str:
    """The operator's name, without its namespace and the mark of an in-place form."""
    name: str = operation.operator._schema.name
    return name.partition("::")[2].removesuffix("_")


def _argument(operation: Operation, *names: str) -> Any:
    """The argument of one of these names in the operator's schema."""
    for argument, given in zip(operation.operator._schema.arguments, operation.args, strict=False):
        if argument.name in names:
            return given
    return next((operation.kwargs[name] for name in names if name in operation.kwargs), None)
