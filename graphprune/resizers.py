"""The registry of resizers: how the constants of a module or a call follow the widths of their tensors.

The rewriter slices tensors by their labels; what remains are numbers that restate a size: a module's ``in_channels``,
a ``view``'s target shape, the bounds of a slice. A resizer recomputes them for one kind of module or call from the new
shapes. A module that holds tensors and has no resizer is not rewritten: its boundary is frozen in the analysis.
A call without a resizer is taken to restate no size, and verification proves it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import fx, nn

from graphprune.channels.labels import Shape


class Site(Protocol):
    """What a resizer may ask about the node it resizes."""

    node: fx.Node

    def is_tensor(self, arg: fx.Node) -> bool:
        """Whether the node's result is one tensor."""

    def old_shape(self, arg: fx.Node) -> Shape:
        """Shape of a tensor node at the example inputs, at full width."""

    def new_shape(self, arg: fx.Node) -> Shape:
        """Shape of a tensor node at the example inputs, after pruning."""

    def new_shapes(self, arg: fx.Node) -> list[Shape]:
        """Shapes of a node that returns several tensors, after pruning."""

    def kept(self, arg: fx.Node, axis: int) -> npt.NDArray[np.bool_] | None:
        """Which indices of an axis stay; None where nothing on it can shrink."""

    def scalar(self, name: str, default: int) -> int:
        """New value of a constant that a rule recorded as a kept count; ``default`` where none did."""

    def places(self, index: Any, source: fx.Node, axis: int) -> Any:
        """An index that a rule found constant, along an axis of its source: the kept places that it names, as they count now."""

    def evaluate(self, arg: Any) -> Any:
        """What a size argument evaluates to in the pruned graph, at the example inputs."""

    def evaluate_old(self, arg: Any) -> Any:
        """What a size argument evaluates to in the original graph, at the example inputs."""

    def takes_apart(self) -> bool:
        """Whether the node, as it is, splits its pruned input into the parts that are expected."""

    def size(self, arg: Any, expected: int) -> Any:
        """The argument, corrected to evaluate to ``expected``: a literal is replaced, a computed size scaled."""

    def replace(self, node: fx.Node, by: fx.Node) -> None:
        """Put another node in a node's place."""


ModuleResizer: TypeAlias = Callable[[Any, Site], None]
CallResizer: TypeAlias = Callable[[Site], None]

_MODULES: dict[type[nn.Module], ModuleResizer] = {}
_CALLS: dict[Any, CallResizer] = {}


def resize_module(*classes: type[nn.Module]) -> Callable[[ModuleResizer], ModuleResizer]:
    """Register a resizer for leaf modules of exactly these classes; it sets attributes of the (already sliced) copy."""

    def register(function: ModuleResizer) -> ModuleResizer:
        _MODULES.update(dict.fromkeys(classes, function))
        return function

    return register


def resize_call(*targets: Any) -> Callable[[CallResizer], CallResizer]:
    """Register a resizer for calls: functions by identity, tensor methods by name; it edits ``site.node`` in place."""

    def register(function: CallResizer) -> CallResizer:
        _CALLS.update(dict.fromkeys(targets, function))
        return function

    return register


def module_resizer(module: nn.Module) -> ModuleResizer | None:
    """The resizer of a leaf module's class, or None."""
    return _MODULES.get(type(module))


def call_resizer(target: Any) -> CallResizer | None:
    """The resizer of a call's target, or None."""
    return _CALLS.get(target)


def can_resize(module: nn.Module) -> bool:
    """Whether a leaf module can follow new widths: it has a resizer, or holds no tensors at all."""
    if type(module) in _MODULES:
        return True
    holds_tensors = any(tensor is not None for tensor in (*module._parameters.values(), *module._buffers.values()))
    return not holds_tensors and all(can_resize(child) for child in module.children())
