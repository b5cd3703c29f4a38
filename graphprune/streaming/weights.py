"""A model without values and the checkpoint that has them: do they belong together, and what does a plan leave of each tensor?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn

from graphprune.errors import UsageError
from graphprune.ir.weights import Weights
from graphprune.plans.plan import Plan
from graphprune.streaming.checkpoint import Checkpoint
from graphprune.streaming.header import Entry
from graphprune.streaming.layout import Block, Part, layout

Watch = Callable[[str], None]
_REMEDY: Final = "Give the model that it was saved from."


@dataclass(frozen=True)
class Matched:
    """A checkpoint whose tensors are those of a model.

    blocks: what each tensor of the model's state is made of, tied ones under each of their names. names: for every tensor of
    the checkpoint, the names of the model's tensor that it is a part of.
    """

    checkpoint: Checkpoint
    blocks: Mapping[str, Block]
    names: Mapping[str, tuple[str, ...]]
    parts: Mapping[str, Part]

    def load(self, name: str) -> Tensor:
        """The values of a tensor of the model."""
        return self.blocks[name].load(self.checkpoint.tensor)

    def slim_state(self, plan: Plan) -> dict[str, Entry]:
        """What a plan leaves of the model's tensors, without values."""
        return {name: _cut(block.entry(name), _kept(plan, self._names(name))) for name, block in self.blocks.items()}

    def slim(self, plan: Plan) -> dict[str, Entry]:
        """What a plan leaves of the checkpoint's tensors, without values."""
        return {name: _cut(entry, self._kept(plan, name)) for name, entry in self.checkpoint.entries.items()}

    def slice(self, plan: Plan, entry: str) -> Tensor:
        """Load a tensor of the checkpoint, and take what a plan leaves of it."""
        tensor = self.checkpoint.tensor(entry)
        for axis, indices in self._kept(plan, entry).items():
            tensor = tensor.index_select(axis, torch.tensor(indices))
        return tensor

    def part_of(self, plan: Plan, entry: str, slim: Tensor) -> Tensor:
        """A tensor of the checkpoint, out of the one of the slim model that it is a part of."""
        return self.parts[entry].within(slim, _kept(plan, self.names[entry]))

    def _kept(self, plan: Plan, entry: str) -> Mapping[int, list[int]]:
        """Kept indices of each axis that a tensor of the checkpoint loses something of."""
        return self.parts[entry].kept(_kept(plan, self.names[entry]))

    def _names(self, name: str) -> tuple[str, ...]:
        """All names of a tensor of the model."""
        return self.names[self.blocks[name].parts[0].entry.name]


def _kept(plan: Plan, names: Iterable[str]) -> Mapping[int, list[int]]:
    """Kept indices of each axis of a tensor of the model, which has these names."""
    return next((plan.kept[name] for name in names if name in plan.kept), {})


def _cut(entry: Entry, kept: Mapping[int, list[int]]) -> Entry:
    return replace(entry, shape=tuple(len(kept[axis]) if axis in kept else size for axis, size in enumerate(entry.shape)))


def match(model: nn.Module, checkpoint: Checkpoint) -> Matched:
    """Pair the tensors of a model's state with those of a checkpoint; the checkpoint may leave out names of tied tensors.

    Raises UsageError naming the first tensor that is in one and not in the other, has another shape or dtype, or that the
    checkpoint holds under two names with different values.
    """
    state = {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    place, what = checkpoint.folder, type(model).__name__
    given: dict[int, list[str]] = {}
    blocks = layout(model, checkpoint.entries)
    for name, block in blocks.items():
        if name not in state:
            raise UsageError(f"The checkpoint {place} has {block.parts[0].entry.name}, which {what} does not have. {_REMEDY}")
        own = Entry(name, "", state[name].dtype, tuple(state[name].shape))
        for part in block.parts:
            if part.entry.dtype != own.dtype or block.shape != own.shape:
                raise UsageError(f"{name} is {block.entry(name)} in the checkpoint {place}, and {own} in {what}. {_REMEDY}")
        given.setdefault(id(state[name]), []).append(name)
    missing = next((name for name, tensor in state.items() if id(tensor) not in given), None)
    if missing is not None:
        raise UsageError(f"The checkpoint {place} lacks {missing} of {what}. {_REMEDY}")
    for first, *others in given.values():
        for other in others:
            if not torch.equal(blocks[first].load(checkpoint.tensor), blocks[other].load(checkpoint.tensor)):
                raise UsageError(
                    f"{first} and {other} are one tensor of {what}, and differ in the checkpoint {place}. "
                    "Give the model without the tie."
                )
    together: dict[int, list[str]] = {}
    for name, tensor in state.items():
        together.setdefault(id(tensor), []).append(name)
    parts = {part.entry.name: part for block in blocks.values() for part in block.parts}
    names = {part.entry.name: tuple(together[id(state[name])]) for name, block in blocks.items() for part in block.parts}
    every = {name: blocks.get(name, blocks[given[id(tensor)][0]]) for name, tensor in state.items()}
    return Matched(checkpoint, every, names, parts)


def weights_of(module: nn.Module, matched: Matched, watch: Watch = lambda name: None) -> Weights:
    """The tensors of a module with the values of a checkpoint. watch: is told the name of each tensor that is loaded."""

    def load(name: str) -> Tensor | None:
        if name not in matched.blocks:
            return None
        watch(name)
        return matched.load(name)

    return Weights(module, load)
