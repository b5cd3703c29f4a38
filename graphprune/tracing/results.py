"""What the calls of a run resulted in: a second run of the model gets it again, and need not run them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Results:
    """The calls of a run and their results, in order.

    earlier: those of another run. As long as this one makes the same calls, whatever their arguments, it gets the same results.
    """

    def __init__(self, earlier: Results | None = None) -> None:
        self._made: list[tuple[Any, Any]] = []
        self._earlier = earlier._made if earlier is not None else []
        self._together = len(self._earlier)  # the runs make the same calls up to there, as far as is known

    def of(self, call: Any, run: Callable[[], Any]) -> Any:
        """The result of a call of a function, or of the layer at a path: from the earlier run, or by running it."""
        place = len(self._made)
        if place < self._together and self._earlier[place][0] == call:
            self._made.append(self._earlier[place])
        else:
            self._together = min(self._together, place)
            self._made.append((None, None))  # what fails is no call that a second run knows
            self._made[place] = call, run()
        return self._made[place][1]

    @property
    def count(self) -> int:
        """Number of calls so far."""
        return len(self._made)

    def take_back(self, count: int) -> None:
        """Forget all calls but the first ``count``: the run tries something else."""
        del self._made[count:]
        if self._together >= count:
            self._together = len(self._earlier)
