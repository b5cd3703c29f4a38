"""Values that integers of the inputs (masks, lengths) and buffers decide alone: a trace has them at hand.

No parameter has a part in them, so they are the same however the model is pruned. What the tape says of them is run on the data of
the example inputs. Floating-point inputs are what a model is to judge: a choice by them is another in the next call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from graphprune.rules import MASKS, tensors_in

if TYPE_CHECKING:
    from graphprune.channels.tape import Operation

_PACKED: Final = (torch.ops.aten._pack_padded_sequence.default, torch.ops.aten._pad_packed_sequence.default)
"""Operators whose second result says no more than their second operand does."""

_SHAPED: Final[Mapping[Any, Callable[..., list[torch.Tensor]]]] = {
    **dict.fromkeys(
        (
            torch.ops.aten.nonzero.default,
            torch.ops.aten._unique2.default,
            torch.ops.aten.unique_dim.default,
            torch.ops.aten.unique_consecutive.default,
            torch.ops.aten.bincount.default,
            torch.ops.aten.repeat_interleave.Tensor,
        ),
        lambda x, *_, **__: [x],
    ),
    **dict.fromkeys(_PACKED, lambda x, sizes, *_: [sizes]),
    torch.ops.aten.equal.default: lambda x, y: [x, y],
    torch.ops.aten.masked_select.default: lambda x, mask: [mask],
    torch.ops.aten.index.Tensor: lambda x, indices: _masks(indices),
}
"""Operators whose results, or the sizes of these, values decide: those operands."""

_FILLED: Final = frozenset(
    getattr(torch.ops.aten, f"{prefix}{kind}{suffix}").default
    for kind in ("zeros", "ones", "full", "empty")
    for prefix, suffix in (("new_", ""), ("", "_like"))
)
"""Operators that read of a tensor how large it is, and not what it holds."""


class Values:
    """Computes what a trace's stand-ins hold for the example inputs.

    real: parameters, buffers and constants by the identity of their stand-ins. numbers: so those of Python. operations: gives all
    of the trace so far.
    """

    def __init__(
        self,
        real: Mapping[int, torch.Tensor],
        numbers: Mapping[int, torch.Tensor],
        operations: Callable[[], Iterable[Operation]],
    ) -> None:
        self._real = real
        self._numbers = numbers
        self._operations = operations
        self._given: dict[int, torch.Tensor] = {}  # inputs by the identity of their stand-ins
        self._answers: dict[Any, Any] = {}
        self._any_size: dict[int, torch.Tensor] = {}
        self._kept: list[Any] = []  # identities are not to be used again

    def give(self, stand_ins: Any, values: Any) -> None:
        """Know what an input holds."""
        for stand_in, value in zip(tree_leaves(stand_ins), tree_leaves(values), strict=True):
            if isinstance(value, torch.Tensor) and not (value.is_meta or value.is_floating_point() or value.is_complex()):
                self._given[id(stand_in)] = value
                self._kept.append(stand_in)

    def answer(self, question: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What a call says of its operands' values; None where floating-point inputs or parameters have a part in them."""
        operands = tensors_in((args, kwargs))
        key = question, tuple([(id(tensor), tensor._version) for tensor in operands])
        if key not in self._answers:
            with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
                held = self._held(operands)
                self._answers[key] = None if held is None else question(*_with(args, held), **_with(kwargs, held))
            self._kept += operands
        return self._answers[key]

    def sized(self, operator: Any, args: Any, kwargs: Any) -> Any:
        """Real results of an operator whose sizes are decided by values, with zeros for operands that are not known.

        None for other operators, and where the values that decide are not known.
        """
        deciding = _SHAPED[operator](*args, **kwargs) if operator in _SHAPED else []
        if not deciding:
            return None
        with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
            held = self._held(deciding)
            return None if held is None else operator(*_with(args, held), **_with(kwargs, held))

    def note_sizes(self, run: Operation, *, unknown: bool) -> None:
        """Know whether values decide how large the results of an operation are. unknown: whether they do here, or may."""
        if not unknown and (not self._any_size or run.operator._schema.is_mutable):
            return
        if unknown or any(id(tensor) in self._any_size for tensor in tensors_in((run.args, run.kwargs))):
            self._any_size |= {id(tensor): tensor for tensor in tensors_in((run.output,))}

    def is_any_size(self, tensor: torch.Tensor) -> bool:
        """Whether how large a tensor is depends, or may, on values that are not known."""
        return id(tensor) in self._any_size

    def are_of_sizes(self, tensors: list[torch.Tensor]) -> bool:
        """Whether tensors were computed of sizes, numbers, parameters and buffers alone, and not of what inputs hold."""
        runs = _behind(tensors, list(self._operations()))
        made = {id(tensor) for run in runs for tensor in _told(run, run.output)}
        read = [*tensors, *(tensor for run in runs for tensor in _read(run))]
        return all(id(tensor) in made or id(tensor) in self._real or id(tensor) in self._numbers for tensor in read)

    def _held(self, wanted: list[torch.Tensor]) -> dict[int, torch.Tensor] | None:
        """The data of these tensors, by their identity; None where they are not of the inputs alone."""
        held: dict[int, torch.Tensor] = {}
        for run in _behind(wanted, list(self._operations())):
            if torch.Tag.nondeterministic_seeded in run.operator.tags or not self._load(_read(run), held):
                return None
            kwargs = run.kwargs | ({"device": torch.device("cpu")} if "device" in run.kwargs else {})
            result = run.operator(*_with(run.args, held), **_with(kwargs, held))
            made = zip(_told(run, run.output), _told(run, result), strict=True)
            held |= {id(stand_in): value for stand_in, value in made}
        return held if self._load(wanted, held) else None

    def _load(self, tensors: list[torch.Tensor], held: dict[int, torch.Tensor]) -> bool:
        """Add those that nothing has computed: copies of inputs and of buffers. False where one of them is no such thing."""
        for tensor in tensors:
            if id(tensor) not in held:
                known = (self._given, self._numbers, self._real)
                source = next((place[id(tensor)] for place in known if id(tensor) in place), None)
                if source is None or isinstance(source, nn.Parameter) or source.is_meta:
                    return False
                held[id(tensor)] = source.detach().to("cpu", copy=True)
        return True


def selecting_all(operator: Any, args: Any) -> Any:
    """The arguments of an index whose masks select all there is, as places; None where it has none."""
    if operator is not torch.ops.aten.index.Tensor or not _masks(args[1]):
        return None
    places: list[torch.Tensor | None] = []
    for item in args[1]:
        of_mask = item is not None and item.dtype in MASKS
        places += [item.new_empty(item.numel(), dtype=torch.int64)] * item.dim() if of_mask else [item]
    return args[0], places


def _masks(indices: Any) -> list[torch.Tensor]:
    return [item for item in indices if item is not None and item.dtype in MASKS]


def _behind(wanted: list[torch.Tensor], operations: list[Operation]) -> list[Operation]:
    """The operations that tensors come from, in order; among them those that write into memory that these share."""
    memory = set(map(_memory, wanted))
    needed = []
    for run in reversed(operations):
        operands = _read(run)
        results = _told(run, run.output) if not run.operator._schema.is_mutable else [*tensors_in((run.output,)), *operands]
        if not memory.isdisjoint(map(_memory, results)):
            memory.update(map(_memory, operands))
            needed.append(run)
    return needed[::-1]


def _read(run: Operation) -> list[torch.Tensor]:
    """The tensors whose values an operation reads, for what it :func:`tells <_told>`."""
    return [] if run.operator in _FILLED else [run.args[1]] if _packs(run) else tensors_in((run.args, run.kwargs))


def _told(run: Operation, output: Any) -> list[torch.Tensor]:
    """The results that these decide."""
    return [output[1]] if _packs(run) else tensors_in((output,))


def _packs(run: Operation) -> bool:
    """Whether an operation packs or pads what is not known itself; of integers it says more."""
    return run.operator in _PACKED and run.args[0].is_floating_point()


def _memory(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _with(tree: Any, held: Mapping[int, torch.Tensor]) -> Any:
    """Arguments with data; of tensors whose values are not read, zeros."""

    def data(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return held[id(leaf)] if id(leaf) in held else torch.zeros(leaf.shape, dtype=leaf.dtype)

    return tree_map(data, tree)
