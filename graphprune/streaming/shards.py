"""Safetensors files written one tensor at a time: shapes are known from the plan, so the header comes first.

A file appears under its name when it is whole and on the disk. One that is there already, of the same header and size, was finished
by an earlier run of the same plan, whose digest is in the header.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torch import Tensor, uint8

from graphprune.errors import UsageError
from graphprune.files import atomic_write
from graphprune.streaming.header import DTYPES, Entry

_ALIGNMENT: Final = 8
_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}


def in_order(entries: Sequence[Entry]) -> list[Entry]:
    """The order in a file: larger items first, as the format's own writer has them, so that each tensor is aligned."""
    return sorted(entries, key=lambda entry: -entry.dtype.itemsize)


def header_of(entries: Sequence[Entry], metadata: Mapping[str, str]) -> bytes:
    """The header of a file with these tensors, in this order; its size included."""
    listed: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for entry in entries:
        begin, end = end, end + entry.nbytes
        listed[entry.name] = {"dtype": _NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [begin, end]}
    text = json.dumps(listed, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def is_finished(path: Path, entries: Sequence[Entry], metadata: Mapping[str, str]) -> bool:
    """Whether a file has this header and is as long as it says."""
    header = header_of(entries, metadata)
    try:
        with path.open("rb") as stream:
            return stream.read(len(header)) == header and path.stat().st_size == len(header) + sum(e.nbytes for e in entries)
    except FileNotFoundError:
        return False


def write_shard(path: Path, entries: Sequence[Entry], metadata: Mapping[str, str], load: Callable[[str], Tensor]) -> None:
    """Write a file atomically. load: gives the tensor of a name, which is let go of before the next one is asked for.

    Raises UsageError where the file cannot be written, OSError where the disk is full, and AssertionError for a tensor that is not
    as its entry says.
    """
    size = sum(entry.nbytes for entry in entries)
    with atomic_write(path, size) as temporary, temporary.open("r+b") as stream:
        stream.write(header_of(entries, metadata))
        for entry in entries:
            stream.write(_bytes(load(entry.name), entry))


def _bytes(tensor: Tensor, entry: Entry) -> Any:
    assert (tensor.dtype, tuple(tensor.shape)) == (entry.dtype, entry.shape), f"{entry.name} is not {entry}"
    return tensor.detach().contiguous().reshape(-1).view(uint8).numpy().data  # a view of memory, not a copy


def check_space(folder: Path, wanted: int) -> None:
    """Raise UsageError where the disk of a folder has less room than so many bytes."""
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise UsageError(f"{folder} has {free / 1e9:.1f} GB of free space, and the slim checkpoint takes {wanted / 1e9:.1f} GB.")
