"""What the calls of a run resulted in: a second run of the model gets it again, and need not run them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from graphprune.channels.tape import Operation, Recording
from graphprune.rules import tensors_in


class Mark(NamedTuple):
    """A place in a run: the numbers of nodes, of calls and of found differences so far."""

    nodes: int
    calls: int
    found: int


class _Call(NamedTuple):
    """A call of a function, or of the layer at a path: its result, and the operators that it ran."""

    what: Any
    result: Any
    operations: list[Operation]


_FAILED = _Call(None, None, [])


class Results:
    """The calls of a run, in order.

    recording: what writes down the operators that this run runs. earlier: the calls of another run; as long as this one makes
    the same calls, whatever their arguments, it gets the same results.
    """

    def __init__(self, recording: Recording, earlier: Results | None = None) -> None:
        self._recording = recording
        self._calls: list[_Call] = []
        self._earlier = earlier._calls if earlier is not None else []
        self._together = len(self._earlier)  # the runs make the same calls up to there, as far as is known

    def of(self, what: Any, run: Callable[[], Any]) -> Any:
        """The result of a call: from the earlier run, or by running it."""
        place = len(self._calls)
        if self.expects(what):
            call = self._earlier[place]
            self._calls.append(call)
            self._recording.operations += call.operations
            return call.result
        together, self._together = self._together, min(self._together, place)
        self._calls.append(_FAILED)  # unless it succeeds
        before = len(self._recording.operations)
        result = run()
        operations = self._recording.operations[before:]
        if operations or tensors_in((result,)):
            self._calls[place] = _Call(what, result, operations)
        else:  # a question (how many axes?), which runs may ask or not
            del self._calls[place]
            self._together = together
        return result

    def expects(self, what: Any) -> bool:
        """Whether the earlier run makes this call next."""
        place = len(self._calls)
        return place < self._together and bool(self._earlier[place].what == what)

    @property
    def count(self) -> int:
        """Number of calls so far."""
        return len(self._calls)

    def go_to(self, count: int) -> None:
        """Make the next call the one after the first ``count`` calls of the earlier run."""
        self._calls = self._earlier[:count]
        self._together = len(self._earlier)

    def take_back(self, count: int) -> None:
        """Forget all calls but the first ``count``: the run tries something else."""
        del self._calls[count:]
        if self._together >= count:
            self._together = len(self._earlier)
