"""Programs whose weights are loaded on demand: what nodes read, for as long as they run, and the parts in which a graph runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from graphprune.channels.tape import tape_of
from graphprune.errors import UsageError
from graphprune.ir.program import Program
from graphprune.ir.twins import modules_by_path


def device_of(program: Program) -> torch.device:
    """Where a program runs: where its weights are, or are loaded to."""
    if program.weights is not None:
        return program.weights.device
    return next((tensor.device for tensor in program.tensors.values()), torch.device("cpu"))


_NOTHING: Final[Mapping[str, int]] = {}


class _Slot(NamedTuple):
    """A tensor's place in a module. name: of the tensor, from the root."""

    name: str
    store: dict[str, Any]
    key: str

    @property
    def tensor(self) -> Tensor | None:
        found: Tensor | None = self.store[self.key]
        return found


@contextmanager
def loaded(
    weights: Mapping[str, Tensor] | None, module: fx.GraphModule, nodes: Iterable[fx.Node]
) -> Iterator[Mapping[int, Tensor]]:
    """Give the tensors that some nodes read their values, within this block, where weights are loaded on demand. Yields these, by
    the identity of what stands for them.

    weights: of a program, or values made of them; None where there is nothing to load. module: the program's, or a twin of it,
    which is changed and put back. A tensor that has values keeps them. Raises UsageError for one that has none and is no part of
    the weights.
    """
    if weights is None:
        yield {}
        return
    before: list[tuple[_Slot, Tensor]] = []
    values: dict[int, Tensor] = {}  # a tied tensor is loaded once
    try:
        for slot in _slots(module, nodes):
            tensor = slot.tensor
            if tensor is not None and tensor.is_meta:
                if id(tensor) not in values:
                    values[id(tensor)] = _value(weights, slot.name)
                before.append((slot, tensor))
                slot.store[slot.key] = values[id(tensor)]
        yield values
    finally:
        values.clear()
        for slot, tensor in before:
            slot.store[slot.key] = tensor


def _value(weights: Mapping[str, Tensor], name: str) -> Tensor:
    value = weights[name]
    if value.is_meta:
        raise UsageError(
            f"The buffer {name} has no values: it is no part of the checkpoint, and the model was built on the meta device. "
            "Build it within accelerate.init_empty_weights(include_buffers=False)."
        )
    return value


def _slots(module: fx.GraphModule, nodes: Iterable[fx.Node]) -> Iterator[_Slot]:
    """Where the tensors are that nodes read."""
    for node in nodes:
        if node.op == "call_module":
            for path, child in modules_by_path(module.get_submodule(str(node.target))).items():
                prefix = ".".join(part for part in (str(node.target), path) if part)
                for store in (child._parameters, child._buffers):
                    yield from (_Slot(f"{prefix}.{key}", store, key) for key in store)
        elif node.op == "get_attr":
            path, _, key = str(node.target).rpartition(".")
            owner = module.get_submodule(path)
            for store in (owner._parameters, owner._buffers):
                if key in store:
                    yield _Slot(str(node.target), store, key)


def readers(module: fx.GraphModule, nodes: Iterable[fx.Node]) -> set[str]:
    """The names of those nodes that read parameters."""
    return {node.name for node in nodes if any(isinstance(slot.tensor, nn.Parameter) for slot in _slots(module, [node]))}


def parts_of(program: Program, module: fx.GraphModule, measured: Mapping[str, int] = _NOTHING) -> list[list[fx.Node]]:
    """The nodes of a graph in consecutive parts, such that the weights of a part are few.

    One part, where the weights are there. Else the weights of a part, and what is measured in it, take at most four times as much
    as the largest tensor, or as much as a node needs; and parts end where little is alive: between blocks, and not within them.
    measured: the bytes that are kept of some nodes, by their names.
    """
    nodes = list(module.graph.nodes)
    if program.weights is None:
        return [nodes]
    sizes = [
        sum(slot.tensor.nbytes for slot in _slots(module, [node]) if slot.tensor is not None) + measured.get(node.name, 0)
        for node in nodes
    ]
    most = max(4 * max((tensor.nbytes for tensor in program.tensors.values()), default=0), *measured.values(), 0)
    before = [0, *accumulate(sizes)]
    alive = _alive(program, nodes)
    parts, start = [], 0
    while start < len(nodes):
        end = start + 1
        while end < len(nodes) and before[end + 1] - before[start] <= most:
            end += 1
        if end < len(nodes):
            end = min(range(end, (start + end) // 2, -1), key=lambda place: alive[place - 1])
        parts.append(nodes[start:end])
        start = end
    return parts


def _alive(program: Program, nodes: Sequence[fx.Node]) -> list[int]:
    """After each node, the bytes of results that are read later, at the example inputs."""
    sizes = {
        step.node: sum(leaf.nbytes for leaf in tree_leaves(step.result) if isinstance(leaf, Tensor))
        for step in tape_of(program).steps
    }
    place = {node: index for index, node in enumerate(nodes)}
    change = [0] * (len(nodes) + 1)
    for index, node in enumerate(nodes):
        last = max((place[user] for user in node.users), default=index)
        change[index] += sizes.get(node.name, 0)
        change[last] -= sizes.get(node.name, 0)
    return list(accumulate(change[:-1]))
