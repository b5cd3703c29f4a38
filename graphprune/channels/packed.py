"""Packed sequences: calls that read in memory how many sequences go on, which a stand-in does not have."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch

from graphprune.arithmetic import RECURRENT

if TYPE_CHECKING:
    from graphprune.channels.tape import Recording

_PADDING: Final = torch.ops.aten._pad_packed_sequence.default
_PADS: Final = (torch._pad_packed_sequence, _PADDING)


def with_batch_sizes(recording: Recording, function: Any, args: tuple[Any, ...]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The call to record in place of one that reads the sizes of batches; any other as it is.

    A recurrent call is given them, and runs step by step. Padding is written down as one operator instead of one write for each
    step. Raises RuntimeError where more than integers of the inputs decides how long the sequences are.
    """
    pads = function in _PADS
    if not (pads or (function in RECURRENT and len(args) > 3 and isinstance(args[3], (list, tuple)))):  # else weights are the third
        return function, args
    sizes = None if recording.values is None else recording.values.answer(_data, (args[1],), {})
    if sizes is None:  # torch would read memory that is not there
        raise RuntimeError("it runs over packed sequences whose lengths more than integers of the inputs decides")
    return (partial(recording.record, _PADDING), args) if pads else (function, (args[0], sizes, *args[2:]))


def _data(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
