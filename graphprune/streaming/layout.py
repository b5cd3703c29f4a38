"""Where the tensors of a checkpoint stand in those of its model.

Mostly each is one of the model's, under its name. transformers also reads files with other names, as older versions wrote them,
and tensors that the model holds as one: the experts of a mixture, stacked. The slim checkpoint has the tensors of the original.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn

from graphprune.errors import UsageError
from graphprune.streaming.header import Entry

Kept: TypeAlias = Mapping[int, Sequence[int]]


@dataclass(frozen=True)
class Part:
    """A tensor of a checkpoint as a part of one of the model's.

    axes: for each axis of the model's tensor, the one of this that lies along it; None where this is one slice of it.
    starts: where this begins on each axis of the model's tensor.
    """

    entry: Entry
    axes: tuple[int | None, ...]
    starts: tuple[int, ...]

    def kept(self, kept: Kept) -> dict[int, list[int]]:
        """Kept indices of the model's tensor, by axis, as those of this one. Raises UsageError where nothing of this is kept."""
        found = {}
        for along, indices in kept.items():
            axis, first, end = self.axes[along], self.starts[along], self._end(along)
            own = [index - first for index in indices if first <= index < end]
            if not own:
                raise UsageError(f"The plan leaves nothing of {self.entry.name}, and a checkpoint is to keep all of its tensors.")
            if axis is not None and len(own) < self.entry.shape[axis]:
                found[axis] = own
        return found

    def within(self, whole: Tensor, kept: Kept) -> Tensor:
        """This part of the model's tensor, a view. kept: indices that the tensor has kept of each axis, where it is a slim one."""
        for along, size in enumerate(whole.shape):
            indices = kept.get(along, range(size))
            first, end = (bisect_left(indices, index) for index in (self.starts[along], self._end(along)))
            whole = whole.narrow(along, first, end - first)
        single = [along for along, axis in enumerate(self.axes) if axis is None]
        own = [axis for axis in self.axes if axis is not None]
        return whole.squeeze(single).permute([own.index(axis) for axis in range(len(own))])

    def _end(self, along: int) -> int:
        axis = self.axes[along]
        return self.starts[along] + (1 if axis is None else self.entry.shape[axis])


@dataclass(frozen=True)
class Block:
    """A tensor of a model, as the parts that it is made of."""

    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    @property
    def dtype(self) -> torch.dtype:
        """That of its parts."""
        return self.parts[0].entry.dtype

    def entry(self, name: str) -> Entry:
        """What it is, without its values."""
        return Entry(name, "", self.dtype, self.shape)

    def load(self, read: Callable[[str], Tensor]) -> Tensor:
        """Its values. read: gives those of a tensor of the checkpoint, by name."""
        first, *others = self.parts
        if not others and first.axes == tuple(range(len(self.shape))):
            return read(first.entry.name)
        whole = torch.empty(self.shape, dtype=self.dtype)
        for part in self.parts:
            part.within(whole, {}).copy_(read(part.entry.name))
        return whole


def block_of(entry: Entry) -> Block:
    """A tensor that the model has as it is."""
    axes = range(len(entry.shape))
    return Block(entry.shape, (Part(entry, tuple(axes), tuple(0 for _ in axes)),))


def stacked(blocks: Sequence[Block], axis: int) -> Block:
    """Blocks of one shape along a new axis."""
    parts = [
        Part(part.entry, _with(part.axes, axis, None), _with(part.starts, axis, index))
        for index, block in enumerate(blocks)
        for part in block.parts
    ]
    return Block(_with(blocks[0].shape, axis, len(blocks)), tuple(parts))


def concatenated(blocks: Sequence[Block], axis: int) -> Block:
    """Blocks one after another along an axis."""
    parts, length = [], 0
    for block in blocks:
        for part in block.parts:
            starts = (*part.starts[:axis], part.starts[axis] + length, *part.starts[axis + 1 :])
            parts.append(replace(part, starts=starts))
        length += block.shape[axis]
    shape = blocks[0].shape
    return Block((*shape[:axis], length, *shape[axis + 1 :]), tuple(parts))


def transposed(block: Block, first: int, second: int) -> Block:
    """A block with two axes exchanged."""
    order = list(range(len(block.shape)))
    order[first], order[second] = order[second], order[first]

    def exchanged(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(values[axis] for axis in order)

    parts = tuple(Part(part.entry, exchanged(part.axes), exchanged(part.starts)) for part in block.parts)
    return Block(exchanged(block.shape), parts)


def _with(values: tuple[Any, ...], place: int, value: Any) -> tuple[Any, ...]:
    return (*values[:place], value, *values[place:])


def layout(model: nn.Module, entries: Mapping[str, Entry]) -> dict[str, Block]:
    """The tensors of a checkpoint as parts of those of a model, by their names there; what nothing is known of keeps its name.

    Raises UsageError where transformers makes a tensor of the model in a way that cannot be followed part by part.
    """
    state = dict(model.state_dict())
    if entries.keys() <= state.keys() or not _is_of_transformers(model):
        return {name: block_of(entry) for name, entry in entries.items()}
    return _converted(model, entries, state)


def _is_of_transformers(model: nn.Module) -> bool:
    """Whether transformers builds the model, in a version that says how it reads files."""
    library = sys.modules.get("transformers")
    if library is None or not isinstance(model, library.PreTrainedModel):
        return False
    try:
        import transformers.conversion_mapping  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def _converted(model: Any, entries: Mapping[str, Entry], state: dict[str, Tensor]) -> dict[str, Block]:
    """The tensors of a model as transformers makes them."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    rules = get_model_conversion_mapping(model)
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    found: dict[str, Block] = {}
    together: dict[str, dict[str, list[Block]]] = defaultdict(lambda: defaultdict(list))
    for name in sorted(entries, key=dot_natural_key):
        new, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if new not in state and name in state:
            new, pattern = rename_source_key(name, [], [], model.base_model_prefix, state)
        if pattern is None or new not in state:
            found[new if new in state else name] = block_of(entries[name])
        else:
            together[new][pattern].append(block_of(entries[name]))
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    for name, blocks in together.items():
        found[name] = _made(name, by_pattern[next(iter(blocks))], blocks)
    return found


def _made(name: str, rule: Any, blocks: Mapping[str, list[Block]]) -> Block:
    """The tensor that a rule of transformers makes of others. blocks: these, by the pattern of the rule that they match."""
    groups = [blocks[pattern] for pattern in rule.source_patterns if pattern in blocks]
    for step in rule.operations:
        make = _STEPS.get(type(step).__name__)
        if make is None or len(rule.target_patterns) > 1 or getattr(step, "check_dims", False):
            raise UsageError(
                f"transformers makes {name} of {groups[0][0].parts[0].entry.name} by {step!r}, which cannot be read part by part. "
                "Load the model with from_pretrained, and use graphprune.prune."
            )
        groups = make(step, groups)
    return groups[0][0]


_STEPS: Final[Mapping[str, Callable[[Any, list[list[Block]]], list[list[Block]]]]] = {
    "MergeModulelist": lambda step, groups: [[stacked(blocks, step.dim)] for blocks in groups],
    "Concatenate": lambda step, groups: [[concatenated([block for blocks in groups for block in blocks], step.dim)]],
    "Transpose": lambda step, groups: [[transposed(block, step.dim0, step.dim1) for block in blocks] for blocks in groups],
}
