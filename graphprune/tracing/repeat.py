"""A run in train mode that makes the calls of a finished run in eval mode: no graph is written, what differs is found.

Its nodes are those of the finished run, compared as they come. Only within what became a leaf there, and will here, others are
made: they are taken back.
"""

from __future__ import annotations

import sys
from collections import ChainMap
from typing import Any, Final

import torch
from torch import fx, nn
from torch.utils._python_dispatch import _disable_current_modes

from graphprune.channels.tape import Recording, stand_in
from graphprune.tracing.results import Results
from graphprune.tracing.shadow import Shadow
from graphprune.tracing.sizes import origin_of, plain
from graphprune.tracing.source import in_brackets, source_line
from graphprune.tracing.training import SOURCE, Addition, Differs, Drop, Mode, changes, line_of, other_call, same_call
from graphprune.tracing.writer import Placed, Writer

_NEVER: Final = sys.maxsize


class Repeat(Writer):
    """The writer of a run that repeats another from its beginning: what is more than a change of constants raises Differs.

    earlier: the writer of the finished run. The others as for :class:`Writer`.
    """

    def __init__(self, recording: Recording, results: Results, shadow: Shadow, earlier: Writer) -> None:
        self._earlier = earlier
        self._wanted = list(earlier.graph.nodes)
        self._order = {node: place for place, node in enumerate(self._wanted)}
        self._offset = 0  # of the steps of this run among those of the other
        self._strayed = _NEVER  # the place of the first node that is another, and has to be taken back
        self._difference = ""
        super().__init__(recording, results, shadow)

    def _tensor_names(self) -> dict[int, str]:
        constants = self._earlier.constants
        return {tensor: name for tensor, name in self._earlier._names.items() if name not in constants}

    def _new_constant(self, real: torch.Tensor, tensor: torch.Tensor) -> str:
        """The name that the finished run has here for a constant of the same data."""
        name = str(self._wanted[self._place].target) if self._place < len(self._wanted) else ""
        if self._strayed == _NEVER and name in self._earlier.constants:
            if not _same_data(real, self._earlier.constants[name]):
                raise Differs(f"in train mode it reads other constants{in_brackets(source_line())}")
            return name
        return super()._new_constant(real, tensor)

    @property
    def _place(self) -> int:
        """Number of nodes so far, from the beginning of the finished run."""
        return self._offset + len(self.tape.steps)

    def last_node(self) -> None:
        """None that this run could change."""

    def _keep(self, count: int) -> None:
        super()._keep(max(0, self._offset + count - self._strayed))
        if self._offset + count <= self._strayed:
            self._strayed = _NEVER

    def node(self, op: str, target: Any, args: Any = (), kwargs: Any = None) -> fx.Node:
        """The node of the finished run that makes this call."""
        self._check_autocast()
        place = self._place
        if place < self._strayed:
            wanted: fx.Node | None = self._wanted[place] if place < len(self._wanted) else None
            if wanted is not None and same_call(wanted, op, target):
                self.found += changes(wanted, args, kwargs or {})
                return wanted
            self._difference = other_call(op, target, source_line())
            if wanted is None or wanted.op != "call_module":
                raise Differs(self._difference)
            self._strayed = place
        return self.graph.create_node(op, target)

    def finish(self, result: Any) -> None:
        """Compare the output node."""
        super().finish(result)
        self.check_end(len(self._wanted))

    def check_end(self, place: int) -> None:
        """Raise Differs unless the run has come to just this place of the finished one, and made the same calls."""
        if self._strayed < _NEVER:
            raise Differs(self._difference)
        if self._place != place:
            node = self._wanted[min(self._place, place)]
            raise Differs(other_call(node.op, node.target, line_of(node)))

    def adds(self, tensor: torch.Tensor, amount: Any) -> bool:
        """Note a number that only this run adds to a tensor in place; False where it is no scalar buffer, or no constant."""
        name, real = self._names.get(id(tensor)), self._shadow.real.get(id(tensor))
        if name is None or name in self._earlier.constants or real is None or real.dim() or isinstance(real, nn.Parameter):
            return False
        if not isinstance(amount, (int, float)) or isinstance(amount, (bool, Mode)) or origin_of(amount) is not None:
            return False
        self.found.append(Addition(self._wanted[self._place], name, tensor, plain(amount)))
        return True

    def drops(self, function: Any, tensor: torch.Tensor, rate: float) -> torch.Tensor:
        """Note that only this run drops elements of a tensor here; returns what stands for what is left."""
        operations = self._recording.take()
        source = self._node_of(tensor)
        self._recording.operations = operations
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            dropped = stand_in(tensor)
        made = self.graph.create_node("call_function", function)
        made.meta[SOURCE] = source.meta.get(SOURCE, source)
        self._places[id(dropped)] = Placed(dropped, made, ())
        self.found.append(Drop(self._wanted[self._place], function, source, rate, self.operand(tensor), dropped, made))
        return dropped

    def stands(self, node: fx.Node) -> bool:
        """Whether a node is one that this run has come past, and has not taken back."""
        place = self._order.get(node)
        return super().stands(node) if place is None else place < self._place


class RepeatOfParts(Repeat):
    """The writer of a run that repeats parts of another, and reads what that one had before them."""

    def _tensor_names(self) -> dict[int, str]:
        return dict(self._earlier._names)

    def go_to(self, start: int) -> None:
        """Start a part with the node that has so many before it."""
        self.tape.steps.clear()
        self.found = []
        self._offset = start
        first = self._earlier
        self._places, self._held = ChainMap({}, first._places), ChainMap({}, first._held)
        self._made, self._numbers = ChainMap({}, first._made), ChainMap({}, first._numbers)


def _same_data(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two constants are equal, as far as they have data: those of a model on the meta device have none."""
    if tensor.dtype != other.dtype or tensor.shape != other.shape:
        return False
    with torch._C.DisableTorchFunction(), _disable_current_modes():
        return tensor.is_meta or torch.equal(tensor, other)
