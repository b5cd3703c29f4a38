"""Guards: where the model's Python decided by a size, the graph checks that it would decide so again.

A branch on a shape, a loop over one, is decided once, by the example inputs. Each comparison becomes a check in the graph, at
the place where the model made it: at sizes that would have gone the other way the graph raises an error, instead of following
the example. What cannot come out differently needs none: comparisons of a size with itself, of widths of parameters, and
those that were checked before.

As in torch.export, a size of two or more stands for any size: comparisons that tell one from many (``n > 1``, ``n != 1``) are
not checked for it. They select shortcuts and broadcasts, where the general code does the same. Nor are comparisons with sizes of
an earlier call: they tell whether what the model has kept of it will do.
"""

from __future__ import annotations

import operator
from collections import ChainMap
from collections.abc import Callable, MutableMapping
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import fx

from graphprune.channels.tape import Operation, Step
from graphprune.rules import MASKS, keeps_sizes, tensors_in
from graphprune.tracing.sizes import Origin, origin_of, plain, size_of, with_origin
from graphprune.tracing.source import in_brackets, source_line, writes_attributes
from graphprune.tracing.untraced import Untraceable

if TYPE_CHECKING:
    from graphprune.tracing.writer import Writer

_NOT: Final[dict[Any, Any]] = {
    operator.eq: operator.ne, operator.ne: operator.eq, operator.lt: operator.ge, operator.ge: operator.lt,
    operator.gt: operator.le, operator.le: operator.gt,
}  # fmt: skip
_SWAPPED: Final[dict[Any, Any]] = {
    operator.eq: operator.eq, operator.ne: operator.ne, operator.lt: operator.gt, operator.ge: operator.le,
    operator.gt: operator.lt, operator.le: operator.ge,
}  # fmt: skip
_SIGNS: Final[dict[Any, str]] = {
    operator.eq: "==", operator.ne: "!=", operator.lt: "<", operator.ge: ">=", operator.gt: ">", operator.le: "<=",
    operator.add: "+", operator.sub: "-", operator.mul: "*", operator.floordiv: "//", operator.truediv: "/", operator.mod: "%",
    operator.pow: "**",
}  # fmt: skip
_SAME_SHAPE: Final = frozenset(
    {"aten::alias", "aten::clone", "aten::detach", "aten::contiguous", "aten::native_layer_norm", "aten::_softmax"}
)
_PRODUCTS: Final = frozenset({"aten::mm", "aten::addmm", "aten::bmm"})
_RESHAPES: Final = frozenset({"aten::view", "aten::_unsafe_view", "aten::expand"})

# Calls whose arguments from here on are the sizes of their result.
_SIZED: Final[dict[Any, int]] = {torch.zeros: 0, torch.ones: 0, torch.reshape: 1, "view": 1, "reshape": 1}


class Guards:
    """Writes the checks of one trace.

    any_size: whether how large a tensor is depends on values that are not known.
    after: the writer of a call that came before, whose sizes are not checked. of_writers: whether code that writes attributes has
    compared a size with a number.
    """

    def __init__(self, writer: Writer, any_size: Callable[[torch.Tensor], bool], after: Writer | None = None) -> None:
        self.of_writers = False
        self._writer = writer
        self._any_size = any_size
        self._after = after
        self._checks: MutableMapping[Any, fx.Node] = {}
        self._makers: dict[int, Operation] = {}  # the operation behind a tensor, by identity
        self._known: dict[tuple[int, int], tuple[torch.Tensor, Any]] = {}  # the sizes of tensors, resolved; they stay alive
        self._last: Step | None = None

    def go_on_from(self, earlier: Guards) -> None:
        """Know what those of a finished run know, whose tensors are the same."""
        earlier._read_tape()
        self._makers, self._known = earlier._makers, earlier._known
        self._after = earlier._after
        self._checks = ChainMap({}, earlier._checks)

    def note(self, function: Callable[..., Any], numbers: tuple[Any, ...], outcome: bool) -> None:
        """A comparison that the model's Python made, and what came out."""
        with torch._C.DisableTorchFunction():
            if self._after is not None and any(map(self._is_of_another_call, numbers)):
                return
            found = [self._resolved(number) for number in numbers]
            holds = function if outcome else _NOT[function]
            keys = [_key(number) for number in found]
            if not any(map(origin_of, found)) or any(map(_is_of_strides, found)) or keys[0] == keys[1]:
                return
            if any(map(self._is_any_size, found)):
                raise Untraceable("how many elements a mask selects depends on values that the model computes or is to judge")
            if _tells_one_from_many(holds, *found):
                return
            known = self._checks.get((holds, *keys))
            if known is None or not self._writer.stands(known):
                self._checks[(holds, *keys)] = self._check(holds, found)
                self.of_writers |= not all(map(origin_of, found)) and writes_attributes()

    @property
    def count(self) -> int:
        """How many checks there are."""
        return len(self._checks)

    def _is_of_another_call(self, number: Any) -> bool:
        origin = origin_of(number)
        if origin is None:
            return False
        if origin.function == "size":
            return self._after is not None and self._after.maker_of(origin.arguments[0]) is not None
        return any(map(self._is_of_another_call, origin.arguments))

    def _is_any_size(self, number: Any) -> bool:
        """Whether a number says how many elements unknown values select."""
        origin = origin_of(number)
        if origin is None:
            return False
        if origin.function == "size":
            return self._any_size(origin.arguments[0])
        return any(map(self._is_any_size, origin.arguments))

    def note_truth(self, condition: Any, question: str, answer: bool) -> None:
        """What values have said. condition: a truth, or a tensor that holds one, where they say so again."""
        check = torch._assert_async if isinstance(condition, torch.Tensor) else torch._assert  # the former does not break a graph
        self._writer.write_call(check, (condition, _refusal(f"{question} is {answer}")), None)

    def note_places(self, tensor: torch.Tensor, axis: int) -> None:
        """An axis that was taken apart, index by index."""
        number = size_of(tensor, axis)
        self.note(operator.eq, (number, plain(number)), True)

    def _check(self, holds: Callable[..., Any], numbers: list[Any]) -> fx.Node:
        call = self._writer.write_call
        sides = [self._text(number) for number in numbers]
        message = _refusal(f"{sides[0]} {_SIGNS[holds]} {sides[1]}")
        return call(torch._assert, (call(holds, tuple(numbers), True), message), None)

    def _text(self, number: Any) -> str:
        origin = origin_of(number)
        if origin is None:
            return number.name if isinstance(number, fx.Node) else repr(number)
        if origin.function == "size":
            tensor, axis = origin.arguments
            return f"{self._writer.name_of(tensor)}.shape[{axis}]"
        parts = [self._text(part) for part in origin.arguments]
        sign = _SIGNS.get(origin.function)
        if sign and len(parts) == 2:
            return f"({parts[0]} {sign} {parts[1]})"
        if origin.function is operator.getitem:
            return f"{parts[0]}[{parts[1]}]"
        if origin.function == "item":
            return f"{parts[0]}.item()"
        return f"{getattr(origin.function, '__name__', origin.function)}({', '.join(parts)})"

    def varies(self, number: Any) -> bool:
        """Whether a number may be another one in another call: one of widths alone may not."""
        with torch._C.DisableTorchFunction():
            return origin_of(self._resolved(number)) is not None

    # -- where a size comes from -----------------------------------------------------------------------------------------

    def _resolved(self, number: Any) -> Any:
        """The number with each size taken from the first tensor that has it; a size of a parameter is a constant."""
        origin = origin_of(number)
        if origin is None:
            return plain(number)
        if origin.function == "size":
            return self._first(*origin.arguments)
        arguments = tuple(map(self._resolved, origin.arguments))
        if (simple := _simplified(origin.function, *arguments)) is not None:
            return simple
        if all(new is old for new, old in zip(arguments, origin.arguments, strict=True)):
            return number
        varies = any(map(origin_of, arguments))
        return with_origin(type(number), plain(number), Origin(origin.function, arguments)) if varies else plain(number)

    def _first(self, tensor: torch.Tensor, axis: int) -> Any:
        """The size of the first tensor that has it, or the number that it always is."""
        self._read_tape()
        passed: list[tuple[torch.Tensor, int]] = []
        made: tuple[torch.Tensor, int] | None = None
        while True:
            known = self._known.get((id(tensor), axis))
            if known is not None:
                result = known[1]
                break
            passed.append((tensor, axis))
            node = self._writer.maker_of(tensor)
            if node is not None:
                made = tensor, axis
                size = _restated(node, axis)
                size = self._writer.number_of(size) if isinstance(size, fx.Node) else size
                if size is not None:
                    result = self._resolved(size)
                    break
            run = self._makers.get(id(tensor))
            if run is not None and run.operator._schema.name == "aten::unsqueeze" and run.args[1] % tensor.dim() == axis:
                result = 1
                break
            source = None if run is None else _source(run, tensor, axis)
            if source is None:
                result = plain(tensor.shape[axis]) if made is None or self._writer.is_constant(tensor) else size_of(*made)
                break
            tensor, axis = source
        self._known |= {(id(held), at): (held, result) for held, at in passed}
        return result

    def _read_tape(self) -> None:
        """Take in what the tape has got since the last time."""
        new = takewhile(lambda step: step is not self._last, reversed(self._writer.tape.steps))
        for run in [run for step in new for run in step.operations]:
            for output in tensors_in((run.output,)):
                self._makers.setdefault(id(output), run)
        self._last = next(iter(reversed(self._writer.tape.steps)), None)


def _refusal(case: str) -> str:
    """The message for inputs that are not the case that the example inputs were."""
    return (
        f"These inputs take another branch than the example inputs of the capture, where {case}{in_brackets(source_line())}. "
        "Capture the model with example inputs of this kind for them."
    )


def _tells_one_from_many(holds: Any, left: Any, right: Any) -> bool:
    """Whether a comparison that holds does so for every size from two on."""
    if origin_of(left) is None:
        holds, left, right = _SWAPPED[holds], right, left
    if not _is_size(left) or plain(left) < 2 or origin_of(right) is not None:
        return False
    return (holds in (operator.ne, operator.gt, operator.ge) and bool(right <= 1)) or (holds is operator.ge and right == 2)


def _is_of_strides(number: Any) -> bool:
    """Whether strides have a part in a number: they follow the widths, and choose between two ways to one result."""
    origin = origin_of(number)
    return origin is not None and (origin.function == "stride" or any(map(_is_of_strides, origin.arguments)))


def _simplified(function: Any, left: Any = None, right: Any = None, *_: Any) -> Any:
    """The number that ``n + 0``, ``n - 0``, ``n * 1`` and ``n - n`` are; None for all else."""
    if function is operator.add and origin_of(left) is None and left == 0:
        return right
    if function in (operator.add, operator.sub) and origin_of(right) is None and right == 0:
        return left
    if function is operator.mul and origin_of(left) is None and left == 1:
        return right
    return 0 if function is operator.sub and _key(left) == _key(right) else None


def _is_size(number: Any) -> bool:
    """Whether a number is a size, or a product of sizes."""
    origin = origin_of(number)
    if origin is None:
        return isinstance(number, int) and number > 0
    return origin.function == "size" or (origin.function is operator.mul and all(map(_is_size, origin.arguments)))


def _restated(node: fx.Node, axis: int) -> Any:
    """The argument of a call that says how long an axis of its result is; None where there is none."""
    if node.target not in _SIZED:
        return None
    given = node.args[_SIZED[node.target] :]
    sizes = given[0] if given and isinstance(given[0], (tuple, list)) else given
    size = sizes[axis] if axis < len(sizes) else None
    return size if isinstance(size, fx.Node) or (isinstance(size, int) and size >= 0) else None


def _source(run: Operation, tensor: torch.Tensor, axis: int) -> tuple[torch.Tensor, int] | None:
    """The operand, and its axis, whose size an operator's result has for certain."""
    name = run.operator._schema.name
    size = tensor.shape[axis]
    operands = tensors_in((*run.args, *run.kwargs.values()))
    if name in _SAME_SHAPE or keeps_sizes(run.operator):
        fitting = [(t, axis - tensor.dim() + t.dim()) for t in operands if t.dim() + axis >= tensor.dim()]
        found = [(t, at) for t, at in fitting if t.shape[at] == size and t is not tensor]
        return found[0] if found and (size != 1 or len(operands) == 1) else None
    if name == "aten::index" and len(operands) == 2 and run.args[1][0] is not None:
        indexed, width = (operands[1].dim(), 1) if operands[1].dtype in MASKS else (1, operands[1].dim())
        return (operands[0], axis - width + indexed) if axis >= width else None
    if name == "aten::unsqueeze":
        return operands[0], axis - (run.args[1] % tensor.dim() < axis)
    last = axis == tensor.dim() - 1
    if name in _PRODUCTS and last:
        return operands[-1], operands[-1].dim() - 1
    if name in _RESHAPES and last and operands[0].dim() and operands[0].shape[-1] == size:
        return operands[0], operands[0].dim() - 1
    if name == "aten::t":
        return operands[0], 1 - axis
    if name == "aten::permute":
        return operands[0], run.args[1][axis] % tensor.dim()
    if name == "aten::transpose":
        first, second = (at % tensor.dim() for at in run.args[1:3])
        return operands[0], {first: second, second: first}.get(axis, axis)
    if name == "aten::embedding" and axis < tensor.dim() - 1:
        return operands[1], axis
    return None


def _key(number: Any) -> Any:
    origin = origin_of(number)
    if origin is None:
        return number
    if origin.function in ("size", "stride"):
        return origin.function, id(origin.arguments[0]), origin.arguments[1]
    return origin.function, *map(_key, origin.arguments)
