"""Loops over rows take as many rows as the example had: fewer or more are refused with the line, before something else fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_sequence, unpack_sequence, unpad_sequence

import graphprune
from graphprune.tracing.early_checks import bring_checks_forward
from tests.checking import analyse, check_plan, max_error, run
from tests.graphprune.tracing.forwards import double
from tests.zoo.case import net

LENGTHS = torch.tensor([5, 7, 3, 6, 2])
SPANS = torch.tensor([[0, 3], [1, 5], [2, 7], [1, 6], [3, 5]])


def unpacked(self: Any, h: Tensor, n: Tensor) -> Any:
    packed = self.r(pack_padded_sequence(h, n, batch_first=True, enforce_sorted=False))[0]
    return self.b(torch.stack([part.mean(0) for part in unpack_sequence(packed)]))


def packed(self: Any, h: Tensor, n: Tensor) -> Any:
    parts = [h[row, :length] for row, length in enumerate(n.tolist())]
    return self.b(self.r(pack_sequence(parts, enforce_sorted=False))[1][0])


def unpadded(self: Any, h: Tensor, n: Tensor) -> Any:
    return self.b(self.r(pad_sequence(unpad_sequence(h, n, batch_first=True), batch_first=True))[0])


def split(self: Any, h: Tensor, n: Tensor) -> Any:
    return self.b(
        torch.stack([self.r(part[None])[0].mean(1) for part in h.flatten(0, 1).split([*n.tolist(), int(h.shape[0] * 7 - n.sum())])])
    )


def zipped(self: Any, h: Tensor, n: Tensor) -> Any:
    return self.b(torch.stack([self.r(row[None, :length])[0].mean(1) for row, length in zip(h, n.tolist(), strict=True)]))


def zipped_tensors(self: Any, h: Tensor, n: Tensor) -> Any:
    return self.b(torch.stack([self.r(row[None, :length])[0].mean(1) for row, length in zip(h, n, strict=True)]))


def spans(self: Any, h: Tensor, n: Tensor) -> Any:
    return self.b(torch.cat([self.r(h[row : row + 1, first:end])[0].mean(1) for row, (first, end) in enumerate(n.tolist())]))


def given(rows: int, of: Tensor) -> Any:
    return double(rows, 7, 4), of[:rows]


@pytest.mark.parametrize(
    ("forward", "of"),
    [(unpacked, LENGTHS), (packed, LENGTHS), (unpadded, LENGTHS), (split, LENGTHS), (zipped, LENGTHS), (zipped_tensors, LENGTHS),
     (spans, SPANS)],
)  # fmt: skip
def test_other_numbers_of_rows_are_refused_with_the_line(forward: Callable[..., Any], of: Tensor) -> None:
    parts = {"a": nn.Linear(4, 6), "r": nn.GRU(6, 8, batch_first=True), "b": nn.Linear(8, 2)}
    model = net(lambda self, x, n: forward(self, self.a(x), n), **parts)
    found = analyse(model, given(3, of))
    assert not found.program.opaque and not found.program.scopes
    slim = check_plan(found, found.random_plan(0), zeros=False, macs=False, again=False)
    for rows in (1, 2, 4):
        run(model, given(rows, of))
        for graph in (found.program.module, slim):
            with pytest.raises(AssertionError, match=r"another branch .*shape\[0\] == 3 .*test_early_checks.py:\d+\)"):
                graph(*given(rows, of))


def test_rows_that_are_not_used_may_be_more_or_fewer() -> None:
    def forward(self: Any, x: Tensor, n: Tensor) -> Any:
        (first, end), *_ = n.tolist()
        return self.b(self.a(x)[:, first:end])

    model = net(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    program = graphprune.capture(model, given(3, SPANS))
    for other in (given(rows, SPANS) for rows in (1, 2, 4)):
        assert max_error(run(program.module, other), run(model, other)) == 0


def test_a_check_comes_right_after_the_tensor_whose_size_it_reads() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x).relu()
        assert x.shape[0] % 2 == 0
        return self.b(y)

    program = graphprune.capture(net(forward, a=nn.Conv1d(4, 6, 1), b=nn.Conv1d(6, 2, 1)), double(2, 4, 3))
    nodes = list(program.module.graph.nodes)
    assert [node.op for node in nodes] == [
        "placeholder",
        "call_method",
        *3 * ["call_function"],
        "call_module",
        "call_method",
        "call_module",
        "output",
    ]
    assert program.tape is not None and [step.node for step in program.tape.steps] == [node.name for node in nodes]
    bring_checks_forward(program.module.graph, program.tape)
    assert list(program.module.graph.nodes) == nodes
