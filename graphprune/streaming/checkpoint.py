"""Safetensors checkpoints, one file or sharded, read one tensor at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from graphprune.errors import UsageError
from graphprune.files import Saved
from graphprune.streaming.header import Entry, Header, damaged, read_header

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"


class _Index(Saved, BaseModel, what="index of a checkpoint", remedy="Get it again with its shards."):
    model_config = ConfigDict(extra="ignore")

    weight_map: dict[str, str]
    metadata: dict[str, Any] = {}


@dataclass(frozen=True)
class Checkpoint:
    """What is in a checkpoint. folder: of its files. entries: tensors by name, shard after shard, each in the order of its file.
    headers: of each shard, by name. index: the file that lists the shards, if there is one."""

    folder: Path
    entries: Mapping[str, Entry]
    headers: Mapping[str, Header]
    index: Path | None = None

    @property
    def shards(self) -> dict[str, list[Entry]]:
        """Tensors by file."""
        return {shard: list(header.entries) for shard, header in self.headers.items()}

    def tensor(self, name: str) -> torch.Tensor:
        """Load one tensor. Raises UsageError where its file has changed or cannot be read."""
        entry = self.entries[name]
        path, header = self.folder / entry.shard, self.headers[entry.shard]
        try:
            values = np.fromfile(path, np.uint8, entry.nbytes, offset=header.begins[name])
            same = header.belongs_to(path.stat())
        except OSError as error:
            raise damaged(path, error) from error
        if not same:
            raise UsageError(f"{path} changed while it was read. Start again once it is complete.")
        if not entry.nbytes:
            return torch.empty(entry.shape, dtype=entry.dtype)
        return torch.from_numpy(values).view(entry.dtype).reshape(entry.shape)

    def identity(self) -> str:
        """A digest of the files' names, sizes and times of change, and of what is in them: another one where they were replaced."""
        digest = hashlib.sha256()
        for shard, header in self.headers.items():
            digest.update(json.dumps([shard, header.size, header.modified]).encode())
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
        header = read_header(file)
        return Checkpoint(file.parent, {entry.name: entry for entry in header.entries}, {file.name: header})
    listed = _Index.load(file).weight_map
    entries_by_name: dict[str, Entry] = {}
    headers: dict[str, Header] = {}
    shards = dict.fromkeys(listed.values())
    for shard in shards:
        _check_name(shard, file)
    for shard in shards:
        headers[shard] = read_header(file.parent / shard)
        for entry in headers[shard].entries:
            if listed.get(entry.name) != shard:
                raise UsageError(f"{file} does not say that {shard} holds {entry.name}. Get the index that belongs to the shards.")
            entries_by_name[entry.name] = entry
    missing = next((name for name in listed if name not in entries_by_name), None)
    if missing is not None:
        raise UsageError(f"{file} says that {listed[missing]} holds {missing}, and it does not. Get the shards that belong to it.")
    return Checkpoint(file.parent, entries_by_name, headers, file)


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
