"""Safetensors checkpoints, one file or sharded, read one tensor at a time.

A file is opened for each tensor and closed again: what is mapped into memory is never more than the tensor that is looked at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open

from graphprune.errors import UsageError
from graphprune.files import load_json

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"

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


class _Index(BaseModel):
    weight_map: dict[str, str]
    metadata: dict[str, Any] = {}


@dataclass(frozen=True)
class Checkpoint:
    """What is in a checkpoint. folder: of its files. entries: tensors by name, shard after shard, each in the order of its file.
    metadata: texts in the header of each shard. index: the file that lists the shards, if there is one."""

    folder: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, Mapping[str, str]]
    index: Path | None = None

    @property
    def shards(self) -> dict[str, list[Entry]]:
        """Tensors by file."""
        found: dict[str, list[Entry]] = {shard: [] for shard in self.metadata}
        for entry in self.entries.values():
            found[entry.shard].append(entry)
        return found

    def tensor(self, name: str) -> torch.Tensor:
        """Load one tensor. Raises UsageError where its file has changed or cannot be read."""
        entry = self.entries[name]
        path = self.folder / entry.shard
        try:
            with safe_open(path, framework="pt", device="cpu") as handle:
                tensor: torch.Tensor = handle.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error
        if (tensor.dtype, tuple(tensor.shape)) != (entry.dtype, entry.shape):
            raise UsageError(f"{path} changed while it was read. Start again once it is complete.")
        return tensor

    def identity(self) -> str:
        """A digest of the files' names, sizes and times of change, and of what is in them: another one where they were replaced."""
        digest = hashlib.sha256()
        for shard in self.metadata:
            status = (self.folder / shard).stat()
            digest.update(json.dumps([shard, status.st_size, status.st_mtime_ns]).encode())
        for entry in self.entries.values():
            digest.update(f"{entry.shard} {entry.name} {entry}\n".encode())
        return digest.hexdigest()


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Read the index and the headers of a checkpoint, and no weights.

    path: a folder with ``model.safetensors.index.json`` or ``model.safetensors``; or one of these, of any name.

    Raises UsageError naming the file where one is missing, damaged, truncated, outside of the folder, or not as the index says.
    """
    file = _file_of(Path(path))
    if file.suffix != ".json":
        entries, metadata = _header(file)
        return Checkpoint(file.parent, {entry.name: entry for entry in entries}, {file.name: metadata})
    listed = load_json(_Index, file, "index of a checkpoint", "Get it again with its shards.", UsageError).weight_map
    entries_by_name: dict[str, Entry] = {}
    metadata_of: dict[str, Mapping[str, str]] = {}
    shards = dict.fromkeys(listed.values())
    for shard in shards:
        _check_name(shard, file)
    for shard in shards:
        entries, metadata_of[shard] = _header(file.parent / shard)
        for entry in entries:
            if listed.get(entry.name) != shard:
                raise UsageError(f"{file} does not say that {shard} holds {entry.name}. Get the index that belongs to the shards.")
            entries_by_name[entry.name] = entry
    missing = next((name for name in listed if name not in entries_by_name), None)
    if missing is not None:
        raise UsageError(f"{file} says that {listed[missing]} holds {missing}, and it does not. Get the shards that belong to it.")
    return Checkpoint(file.parent, entries_by_name, metadata_of, file)


def _file_of(path: Path) -> Path:
    if not path.is_dir():
        if path.is_file() and path.name.endswith((".safetensors", ".json")):
            return path
        raise UsageError(f"There is no checkpoint {path}. Give a folder with {INDEX} or {SINGLE}, or one of these files.")
    for name in (INDEX, SINGLE):
        if (path / name).is_file():
            return path / name
    raise UsageError(f"The folder {path} holds neither {INDEX} nor {SINGLE}. Save the weights with save_pretrained.")


def _check_name(shard: str, index: Path) -> None:
    if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
        raise UsageError(f"{index} names the shard {shard!r}, which is no .safetensors file of its folder. Do not use it.")
    if not (index.parent / shard).is_file():
        raise UsageError(f"{index} names the shard {shard}, which is not in its folder. Get the missing file.")


def _header(path: Path) -> tuple[list[Entry], Mapping[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as handle:
            return list(_entries(handle, path)), handle.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _entries(handle: Any, path: Path) -> Iterator[Entry]:
    for name in handle.offset_keys():
        found = handle.get_slice(name)
        if found.get_dtype() not in DTYPES:
            raise UsageError(f"{name} of {path} has the dtype {found.get_dtype()}, which cannot be pruned. Use unpacked weights.")
        yield Entry(name, path.name, DTYPES[found.get_dtype()], tuple(found.get_shape()))


def _damaged(path: Path, error: Exception) -> UsageError:
    return UsageError(f"{path} is not a whole safetensors file ({error}). Get it again.")
