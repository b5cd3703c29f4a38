"""Tensors of a checkpoint as parts of those of a model: the algebra of blocks is that of torch's operators."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from graphprune.errors import UsageError
from graphprune.streaming.header import Entry
from graphprune.streaming.layout import Block, block_of, concatenated, layout, stacked, transposed

_KEPT = {0: [0, 2, 3], 1: [1, 4, 5, 9], 2: [0, 3]}


def _experts() -> tuple[dict[str, Tensor], Block, Tensor]:
    """The tensors of a checkpoint, the block that they make, and what torch makes of them."""
    values = {f"{part}.{index}": torch.randn(5, 4, dtype=torch.float64) for part in ("gate", "up") for index in range(4)}
    block = concatenated([stacked([_block(values, f"{part}.{index}") for index in range(4)], 0) for part in ("gate", "up")], 1)
    whole = torch.cat([torch.stack([values[f"{part}.{index}"] for index in range(4)]) for part in ("gate", "up")], 1)
    return values, block, whole


def _transposed_experts() -> tuple[dict[str, Tensor], Block, Tensor]:
    """Experts that are stored with inputs first, as the model does not hold them."""
    values, _, _ = _experts()
    values = {name: value.T.contiguous() for name, value in values.items()}
    halves = [stacked([transposed(_block(values, f"{part}.{i}"), 0, 1) for i in range(4)], 0) for part in ("gate", "up")]
    whole = torch.cat([torch.stack([values[f"{part}.{index}"].T for index in range(4)]) for part in ("gate", "up")], 1)
    return values, concatenated(halves, 1), whole


def _alone() -> tuple[dict[str, Tensor], Block, Tensor]:
    """One tensor that is the model's as it is."""
    values = {"weight": torch.randn(4, 10, 4, dtype=torch.float64)}
    return values, _block(values, "weight"), values["weight"]


def _block(values: dict[str, Tensor], name: str) -> Block:
    return block_of(Entry(name, "file", values[name].dtype, tuple(values[name].shape)))


CASES = pytest.mark.parametrize("case", [_experts, _transposed_experts, _alone])


@CASES
def test_a_block_is_what_torch_makes_of_its_parts(case: Callable[[], tuple[dict[str, Tensor], Block, Tensor]]) -> None:
    values, block, whole = case()
    assert block.shape == tuple(whole.shape)
    assert torch.equal(block.load(values.__getitem__), whole)


@CASES
def test_slices_of_the_parts_make_the_slice_of_the_whole(case: Callable[[], tuple[dict[str, Tensor], Block, Tensor]]) -> None:
    """What is written of each part, cut by itself, is the part of the slim tensor; both ways of getting it agree."""
    values, block, whole = case()
    kept = {axis: indices for axis, indices in _KEPT.items() if axis or len(block.parts) == 1}  # all experts stay
    slim = whole
    for axis, indices in kept.items():
        slim = slim.index_select(axis, torch.tensor(indices))
    for part in block.parts:
        cut = values[part.entry.name]
        for axis, indices in part.kept(kept).items():
            cut = cut.index_select(axis, torch.tensor(indices))
        assert torch.equal(part.within(slim, kept), cut)
    assert sum(part.within(slim, kept).numel() for part in block.parts) == slim.numel()


def test_a_plan_that_takes_a_whole_tensor_of_the_checkpoint_is_refused() -> None:
    """Names of experts are numbers without gaps."""
    _, block, _ = _experts()
    with pytest.raises(UsageError, match=r"leaves nothing of gate\.1"):
        [part.kept(_KEPT) for part in block.parts]


def test_names_that_a_model_has_are_looked_up_nowhere_else() -> None:
    model = torch.nn.Linear(3, 2)
    entries = {name: Entry(name, "file", value.dtype, tuple(value.shape)) for name, value in model.state_dict().items()}
    assert layout(model, entries) == {name: block_of(entry) for name, entry in entries.items()}
