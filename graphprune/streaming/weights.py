"""A model without values and the checkpoint that has them: do they belong together, and what does a plan leave of each tensor?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn

from graphprune.errors import UsageError
from graphprune.ir.weights import Weights
from graphprune.plans.plan import Plan
from graphprune.streaming.checkpoint import Checkpoint
from graphprune.streaming.header import Entry

Watch = Callable[[str], None]
_REMEDY: Final = "Give the model that it was saved from."


@dataclass(frozen=True)
class Matched:
    """A checkpoint whose tensors are those of a model. entries: for every name in the model's state, tied ones under each of
    theirs, the tensor of the checkpoint. names: for every tensor of the checkpoint, its names in the model."""

    checkpoint: Checkpoint
    entries: Mapping[str, Entry]
    names: Mapping[str, tuple[str, ...]]

    def kept(self, plan: Plan, entry: str) -> Mapping[int, list[int]]:
        """Kept indices of each axis that a tensor of the checkpoint loses something of."""
        return next((plan.kept[name] for name in self.names[entry] if name in plan.kept), {})

    def slim(self, plan: Plan) -> dict[str, Entry]:
        """What a plan leaves of the checkpoint's tensors, without values."""
        found = {}
        for name, entry in self.checkpoint.entries.items():
            kept = self.kept(plan, name)
            shape = tuple(len(kept[axis]) if axis in kept else size for axis, size in enumerate(entry.shape))
            found[name] = replace(entry, shape=shape)
        return found

    def slice(self, plan: Plan, entry: str) -> Tensor:
        """Load a tensor of the checkpoint, and take what a plan leaves of it."""
        tensor = self.checkpoint.tensor(entry)
        for axis, indices in self.kept(plan, entry).items():
            tensor = tensor.index_select(axis, torch.tensor(indices))
        return tensor


def match(model: nn.Module, checkpoint: Checkpoint) -> Matched:
    """Pair the tensors of a model's state with those of a checkpoint, by name; the checkpoint may leave out names of tied tensors.

    Raises UsageError naming the first tensor that is in one and not in the other, has another shape or dtype, or that the
    checkpoint holds under two names with different values.
    """
    state = {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    place, what = checkpoint.folder, type(model).__name__
    given: dict[int, list[Entry]] = {}
    for name, entry in checkpoint.entries.items():
        if name not in state:
            raise UsageError(f"The checkpoint {place} has {name}, which {what} does not have. {_REMEDY}")
        own = Entry(name, "", state[name].dtype, tuple(state[name].shape))
        if str(own) != str(entry):
            raise UsageError(f"{name} is {entry} in the checkpoint {place}, and {own} in {what}. {_REMEDY}")
        given.setdefault(id(state[name]), []).append(entry)
    missing = next((name for name, tensor in state.items() if id(tensor) not in given), None)
    if missing is not None:
        raise UsageError(f"The checkpoint {place} lacks {missing} of {what}. {_REMEDY}")
    for first, *others in given.values():
        for other in others:
            if not torch.equal(checkpoint.tensor(first.name), checkpoint.tensor(other.name)):
                raise UsageError(
                    f"{first.name} and {other.name} are one tensor of {what}, and differ in the checkpoint {place}. "
                    "Give the model without the tie."
                )
    entries = {name: checkpoint.entries.get(name, given[id(tensor)][0]) for name, tensor in state.items()}
    together: dict[int, list[str]] = {}
    for name, tensor in state.items():
        together.setdefault(id(tensor), []).append(name)
    names = {entry.name: tuple(together[key]) for key, found in given.items() for entry in found}
    return Matched(checkpoint, entries, names)


def weights_of(module: nn.Module, matched: Matched, watch: Watch = lambda name: None) -> Weights:
    """The tensors of a module with the values of a checkpoint. watch: is told the name of each tensor that is loaded."""

    def load(name: str) -> Tensor | None:
        entry = matched.entries.get(name)
        if entry is None:
            return None
        watch(name)
        return matched.checkpoint.tensor(entry.name)

    return Weights(module, load)
