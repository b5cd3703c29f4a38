"""Headers of safetensors files: what is in a file, and where, without its values.

The library's own reader maps whole files into memory, which limits on a process (``ulimit``) count in full. So files are read here:
first the header, and then the bytes of one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from os import stat_result
from pathlib import Path
from typing import BinaryIO, Final

import torch
from pydantic import BaseModel, NonNegativeInt, TypeAdapter, ValidationError

from graphprune.errors import UsageError, first_line

#: The format's names of dtypes.
DTYPES: Final[Mapping[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_METADATA: Final = "__metadata__"
_LENGTH: Final = 8  # bytes of the number, at the start of a file, that says how long the header is
_MOST: Final = 100_000_000  # bytes of a header, by the format


@dataclass(frozen=True)
class Entry:
    """A tensor of a checkpoint, without its values. shard: the name of the file that holds it."""

    name: str
    shard: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the values."""
        return prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}"


@dataclass(frozen=True)
class Header:
    """What a file says of itself. entries: its tensors in the order of their values. begins: where the values of each one begin,
    in bytes from the start of the file. metadata: texts. size, modified: of the file when it was read."""

    entries: tuple[Entry, ...]
    begins: Mapping[str, int]
    metadata: Mapping[str, str]
    size: int
    modified: int

    def belongs_to(self, status: stat_result) -> bool:
        """Whether a file is as it was when the header was read."""
        return (status.st_size, status.st_mtime_ns) == (self.size, self.modified)


class _Stored(BaseModel):
    dtype: str
    shape: list[NonNegativeInt]
    data_offsets: tuple[NonNegativeInt, NonNegativeInt]


_TENSORS: Final = TypeAdapter(dict[str, _Stored])
_TEXTS: Final = TypeAdapter(dict[str, str])
_ANY: Final = TypeAdapter(dict[str, object])


def read_header(path: Path) -> Header:
    """Read what is in a file. Raises UsageError naming it where it is damaged or truncated, or holds a dtype that is not known."""
    try:
        with path.open("rb") as stream:
            return _read(stream, path)
    except ValidationError as error:
        raise damaged(path, _DamagedError("its header does not list tensors")) from error
    except (OSError, _DamagedError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> UsageError:
    """The error of a file that cannot be read."""
    return UsageError(f"{path} is not a whole safetensors file ({first_line(error)}). Get it again.")


class _DamagedError(Exception):
    """What is wrong with a file, in a few words."""


def _read(stream: BinaryIO, path: Path) -> Header:
    status = path.stat()
    length = int.from_bytes(stream.read(_LENGTH), "little")
    if length > min(status.st_size - _LENGTH, _MOST):
        raise _DamagedError("its header does not end")
    listed = _ANY.validate_json(stream.read(length))
    metadata = _TEXTS.validate_python(listed.pop(_METADATA, None) or {})
    stored = sorted(_TENSORS.validate_python(listed).items(), key=lambda item: item[1].data_offsets)
    entries, begins, end = [], {}, 0
    for name, one in stored:
        if one.dtype not in DTYPES:
            raise UsageError(f"{name} of {path} has the dtype {one.dtype}, which cannot be pruned. Use unpacked weights.")
        entry = Entry(name, path.name, DTYPES[one.dtype], tuple(one.shape))
        if one.data_offsets != (end, end + entry.nbytes):
            raise _DamagedError(f"the values of {name} are not where they should be")
        begins[name] = _LENGTH + length + end
        end += entry.nbytes
        entries.append(entry)
    if _LENGTH + length + end != status.st_size:
        raise _DamagedError(f"it has {status.st_size} bytes, and its header says {_LENGTH + length + end}")
    return Header(tuple(entries), begins, metadata, status.st_size, status.st_mtime_ns)
