"""Runs one operator under the analysis, on parameters as labelled operands, and reads what its rule wrote down."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from graphprune.channels.labels import Field, Value, axes_of
from graphprune.channels.propagate import Trace, propagate
from graphprune.passes.analysis.channels import make_policy
from graphprune.tracing import capture

Atoms = set[int]


class Seen:
    """What the rules wrote down about ``function(**tensors)``; results are those of the last node before the output."""

    def __init__(self, trace: Trace, results: list[Value], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.trace = trace
        self.results = results
        self.shapes = shapes

    def atoms(self, name: str, axis: int) -> list[int]:
        """Atoms along an axis of an operand."""
        field = self.trace.parameters[name].on(axis)
        assert field is not None
        return [int(atom) for atom in field.ravel()]

    def result_atoms(self, axis: int, index: int = 0) -> list[int] | None:
        """Atoms along an axis of a result, None where it cannot shrink."""
        field = self.results[index].on(axis)
        return None if field is None else [int(atom) for atom in field.ravel()]

    @property
    def classes(self) -> set[frozenset[int]]:
        """Sets of two or more atoms that are tied together, transitively."""
        groups: dict[int, set[int]] = {}
        for left, right in self.trace.space.ties:
            for one, other in zip(left.tolist(), right.tolist(), strict=True):
                merged = groups.get(one, {one}) | groups.get(other, {other})
                for atom in merged:
                    groups[atom] = merged
        return {frozenset(group) for group in groups.values() if len(group) > 1}

    def tied(self, *atoms: int) -> bool:
        """Whether atoms are one, or tied together."""
        return len(set(atoms)) == 1 or any(set(atoms) <= group for group in self.classes)

    @property
    def frozen(self) -> Atoms:
        """Atoms frozen by an operator (not by the output), and all that are tied to them."""
        direct = {int(a) for atoms, why in self.trace.space.freezes if why.operator != "output" for a in atoms}
        return direct.union(*[group for group in self.classes if group & direct])

    def reasons(self, atoms: Iterable[int]) -> set[str]:
        """Texts of the reasons that freeze some of these atoms."""
        wanted = set(atoms)
        return {why.text for found, why in self.trace.space.freezes if wanted & set(found.tolist()) and why.operator != "output"}

    def canonical(self, atoms: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Each atom replaced by the least of those that it is tied to."""
        least = {atom: min(group) for group in self.classes for atom in group}
        return np.array([least.get(atom, atom) for atom in atoms.ravel().tolist()], dtype=np.int64).reshape(atoms.shape)

    @property
    def statistics(self) -> Atoms:
        """Atoms over which a statistic is taken."""
        return {int(atom) for atoms, _ in self.trace.space.statistics for atom in atoms}

    def macs(self) -> int:
        """Recorded multiply-accumulates at full width."""
        total = 0
        for term in self.trace.macs:
            product = 1
            for factor in term.factors:
                product *= factor if isinstance(factor, int) else factor.size
            total += product
        return total


def observe(function: Callable[..., Any], *, policy: Any = None, x: Any = None, **tensors: Tensor) -> Seen:
    """Run ``function(**tensors)`` (and ``x=...``, an operand without labels, if given) under the analysis."""

    def forward(self: Any, unlabelled: Tensor) -> Any:
        given = {} if x is None else {"x": unlabelled}
        return function(**given, **{name: getattr(self, name) for name in tensors})

    module = type("Operator", (nn.Module,), {"forward": forward})()
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            setattr(module, name, nn.Parameter(tensor))
        else:
            module.register_buffer(name, tensor)
    program = capture(module, torch.zeros(1) if x is None else x)
    trace = propagate(program, make_policy(dict(policy or {}), {}))
    assert all(field.ndim == len(value.shape) for _, value in trace.operands for field in value.fields), (
        "a field has its tensor's rank"
    )
    output = next(node for node in program.module.graph.nodes if node.op == "output")
    results = [leaf for leaf in _leaves(trace.values[output.name]) if isinstance(leaf, Value)]
    return Seen(trace, results, {name: tuple(t.shape) for name, t in tensors.items()})


def _leaves(tree: Any) -> list[Any]:
    return [leaf for item in tree for leaf in _leaves(item)] if isinstance(tree, (tuple, list)) else [tree]


def spread(field: Field, shape: tuple[int, ...]) -> Tensor:
    """Labels as the data of a tensor of this shape."""
    return torch.from_numpy(np.broadcast_to(field, shape).copy())


def check_labels_move_like_data(function: Callable[..., Any], **tensors: Tensor) -> Seen:
    """The operator itself, run on labels as data, is the oracle of what its rule does to them.

    Each field of each operand is carried by a run of its own, with all other operands at -1. Where a result varies with
    it, one field of that result must be those labels exactly.
    """
    seen = observe(function, **tensors)
    for name in tensors:
        for field in seen.trace.parameters[name].fields:
            data = {other: torch.full(shape, -1) for other, shape in seen.shapes.items()}
            data[name] = spread(field, seen.shapes[name])
            made = [leaf for leaf in tree_leaves(function(**data)) if isinstance(leaf, Tensor)]
            assert len(made) == len(seen.results)
            for tensor, value in zip(made, seen.results, strict=True):
                _check_one(seen, tensor, value, f"{name} along {axes_of(field)}")
    return seen


def _check_one(seen: Seen, labels: Tensor, value: Value, what: str) -> None:
    wanted = seen.canonical(labels.numpy())
    assert value.shape == wanted.shape, what
    known = wanted >= 0
    if not known.any() or (wanted == wanted.flat[0]).all():
        return
    fields = [seen.canonical(np.broadcast_to(field, value.shape)) for field in value.fields]
    assert any((field[known] == wanted[known]).all() for field in fields), f"no field of the result has the labels of {what}"
