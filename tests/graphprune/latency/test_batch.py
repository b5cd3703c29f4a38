"""The batch: found where doubling stops to pay, and put on inputs that share a leading size."""

from __future__ import annotations

import pytest
import torch

from graphprune.errors import UsageError
from graphprune.ir.program import Inputs
from graphprune.latency.batch import batch_of, best, saturating, with_batch


@pytest.mark.parametrize(("busy_from", "expected"), [(1, 1), (8, 8), (64, 64)])
def test_the_smallest_batch_that_keeps_the_device_busy_is_found(busy_from: int, expected: int) -> None:
    """A call takes as long as one at ``busy_from`` until the device is full, and then in proportion."""
    loads = saturating(lambda batch: max(1.0, batch / busy_from))
    assert best(loads) == expected
    assert [load.batch for load in loads] == [2**power for power in range(len(loads))]


def test_doubling_ends_where_memory_does() -> None:
    def measure(batch: int) -> float:
        if batch > 4:
            raise torch.OutOfMemoryError("no memory")
        return 1.0

    assert best(saturating(measure)) == 4


def test_doubling_ends_where_a_call_takes_too_long() -> None:
    loads = saturating(lambda batch: 20_000.0)
    assert best(loads) == 1 and len(loads) == 1


def test_all_inputs_get_the_batch_and_keep_their_values() -> None:
    inputs = Inputs((torch.arange(6).reshape(2, 3),), {"mask": torch.ones(2, 5, dtype=torch.bool), "flag": True})
    found = with_batch(inputs, 5)
    assert batch_of(inputs) == 2 and batch_of(found) == 5
    assert found.args[0].tolist() == [[0, 1, 2], [3, 4, 5], [0, 1, 2], [3, 4, 5], [0, 1, 2]]
    assert found.kwargs["mask"].shape == (5, 5) and found.kwargs["flag"] is True


@pytest.mark.parametrize(
    "inputs",
    [
        Inputs((torch.zeros(2, 3), torch.zeros(4, 3))),
        Inputs(([torch.zeros(3, 8, 8)],)),
        Inputs((torch.tensor(1.0),)),
        Inputs(),
    ],
)
def test_inputs_without_a_common_batch_are_refused(inputs: Inputs) -> None:
    with pytest.raises(UsageError, match="leading size"):
        with_batch(inputs, 2)
