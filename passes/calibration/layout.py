"""Where samples lie in activations, whatever the layout: channels last, tokens first, windows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from graphprune.calibration import Batch
from graphprune.channels.tape import run_graph, tape_of
from graphprune.errors import CaptureError
from graphprune.ir.program import Inputs, Program
from graphprune.statistic import Tap

Run: TypeAlias = Callable[[Batch, Collection[str]], Mapping[str, Tensor]]


class Layout:
    """Where samples lie in the results of a program's nodes.

    Where an axis has several entries for each sample (windows, tokens flattened), those of one sample lie together, or those of
    one window do: what the labels of a program do not tell is seen on the first data.
    """

    def __init__(self, program: Program) -> None:
        shapes = {step.node: step.result.shape for step in tape_of(program).steps if isinstance(step.result, Tensor)}
        self._axes = sample_axes(program)
        self._size = _first_length(program.inputs)
        self._crowded = [name for name, axis in self._axes.items() if axis is not None and shapes[name][axis] != self._size]
        self._interleaved: frozenset[str] | None = None

    def see(self, batch: Batch, nodes: Collection[str], run: Run) -> None:
        """Find out how several entries of a sample lie at these nodes. run: gives the results of some nodes for a batch."""
        crowded = self.crowded(nodes)
        if self._interleaved is not None or batch.size < 2 or not crowded:
            return
        one, other = (run(batch.pick(torch.tensor(samples)), crowded) for samples in ([0, 1], [1, 1]))
        found = []
        for name in crowded:
            change = (one[name] - other[name]).abs().movedim(self._axes[name] or 0, 0).flatten(1).sum(1)
            if bool((change[len(change) // 2 :] > 1e-3 * change.max()).any()):
                found.append(name)
        self._interleaved = frozenset(found)

    def crowded(self, nodes: Collection[str]) -> list[str]:
        """Those of some nodes that have several entries for each sample along its axis."""
        return [name for name in self._crowded if name in nodes]

    def view(self, tensor: Tensor, tap: Tap, size: int) -> Tensor:
        """An activation as a view with its samples along axis 0, channels along axis 1, and places after them.

        size: the number of samples. Several entries of a sample become the first axis of places. What has no axis of samples is
        one sample.
        """
        axis = self._axes.get(tap.node)
        if axis is None or axis == tap.axis:
            return tensor.movedim(tap.axis, 0).unsqueeze(0)
        found = tensor.movedim((axis, tap.axis), (0, 1))
        if len(found) == size or len(found) % size:
            return found
        if tap.node in (self._interleaved or ()):
            return torch.unflatten(found, 0, (-1, size)).movedim(0, 2)
        return torch.unflatten(found, 0, (size, -1)).movedim(1, 2)


def sample_axes(program: Program) -> dict[str, int | None]:
    """For every node with a tensor as its result, the axis that has one entry, or as many for each, for every sample.

    Found by running the graph on the meta device with twice the samples: the axis that grows. None where no axis does, and for a
    graph that takes no other number of samples, axis 0.
    """
    once = {step.node: step.result for step in tape_of(program).steps if isinstance(step.result, Tensor)}
    try:
        twice = run_graph(program.with_(inputs=_doubled(program.inputs, apart=bool(program.scopes)), tape=None))
    except CaptureError:
        return {name: 0 if result.dim() else None for name, result in once.items()}
    found: dict[str, int | None] = {}
    for step in twice.steps:
        if step.node in once and isinstance(step.result, Tensor):
            shapes = enumerate(zip(once[step.node].shape, step.result.shape, strict=True))
            found[step.node] = next((axis for axis, (before, after) in shapes if before != after), None)
    return found


def _doubled(inputs: Inputs, apart: bool) -> Inputs:
    """Inputs of twice as many samples, along axis 0 of every tensor that has as many entries as the first.

    apart: scopes have numbers of samples of their own (images, regions): along axis 0 of every tensor.
    """
    size = _first_length(inputs)

    def double(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.dim() or not (apart or len(leaf) == size):
            return leaf
        return leaf.new_empty((2 * len(leaf), *leaf.shape[1:]), device="meta")

    return inputs.map(double)


def _first_length(inputs: Inputs) -> int:
    tensors = [leaf for leaf in tree_leaves((inputs.args, dict(inputs.kwargs))) if isinstance(leaf, Tensor)]
    return len(tensors[0]) if tensors and tensors[0].dim() else 0
