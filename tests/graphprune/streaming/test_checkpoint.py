"""Checkpoints are read header by header, and every damage is one clear error."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from graphprune.errors import UsageError
from graphprune.streaming import Entry, open_checkpoint
from graphprune.streaming.shards import in_order, is_finished, write_shard
from tests.graphprune.streaming.nets import Net, save_sharded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_sharded(Net(), tmp_path / "full")
    return tmp_path / "full"


def _index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    path = folder / "model.safetensors.index.json"
    data = json.loads(path.read_text())
    change(data["weight_map"])
    path.write_text(json.dumps(data))


def test_every_tensor_is_found_where_it_is(folder: Path) -> None:
    found = open_checkpoint(folder)
    expected = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
    assert found.entries.keys() == expected.keys()
    assert all(torch.equal(found.tensor(name), value) for name, value in expected.items())
    assert all(entry.nbytes == expected[name].nbytes for name, entry in found.entries.items())


def test_the_identity_is_another_one_once_a_file_is(folder: Path) -> None:
    before = open_checkpoint(folder).identity()
    assert open_checkpoint(folder).identity() == before
    os.utime(next(folder.glob("*.safetensors")), (0, 0))
    assert open_checkpoint(folder).identity() != before


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "..\\x.safetensors", "sub/x.safetensors", "x.bin"])
def test_shards_outside_of_the_folder_are_refused(folder: Path, name: str) -> None:
    _index(folder, lambda listed: listed.update({"embed.weight": name}))
    with pytest.raises(UsageError, match=r"which is no \.safetensors file of its folder"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda listed: listed.update({"more": "model-00001-of-00003.safetensors"}), "holds more, and it does not"),
        (lambda listed: listed.pop("embed.weight"), "does not say that .* holds embed.weight"),
        (lambda listed: listed.update({"more": "gone.safetensors"}), "gone.safetensors, which is not in its folder"),
    ],
)
def test_an_index_that_is_wrong_is_refused(folder: Path, change: Callable[[dict[str, str]], object], message: str) -> None:
    _index(folder, change)
    with pytest.raises(UsageError, match=message):
        open_checkpoint(folder)


def test_an_index_that_is_none_is_refused(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    with pytest.raises(UsageError, match="no valid index of a checkpoint"):
        open_checkpoint(folder)


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_a_truncated_shard_is_named(folder: Path, size: int) -> None:
    file = folder / "model-00002-of-00003.safetensors"
    os.truncate(file, size if size >= 0 else file.stat().st_size + size)
    with pytest.raises(UsageError, match=r"model-00002-of-00003\.safetensors is not a whole safetensors file"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}', "does not list tensors"),  # no end
        (b'{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', "does not list tensors"),
        (
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
            "values of b",
        ),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', "values of a"),
        (b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}', "values of a"),
        (b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}', "its header says"),
        (b'{"a":{"dtype":"F4","shape":[4],"data_offsets":[0,8]}}', "the dtype F4"),
    ],
)
def test_a_header_that_does_not_add_up_is_refused(tmp_path: Path, header: bytes, message: str) -> None:
    """Offsets that overlap, leave holes, or are not the size of the shape; the library refuses these files, too."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(UsageError, match=message):
        open_checkpoint(path)
    with pytest.raises(SafetensorError):
        load_file(path)


def test_a_file_that_changes_while_it_is_read_is_noticed(folder: Path) -> None:
    found = open_checkpoint(folder)
    file = folder / found.entries["embed.weight"].shard
    os.truncate(file, file.stat().st_size - 4)
    with pytest.raises(UsageError, match="changed while it was read"):
        found.tensor("embed.weight")


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds neither"):
        open_checkpoint(tmp_path)
    with pytest.raises(UsageError, match="There is no checkpoint"):
        open_checkpoint(tmp_path / "gone.safetensors")


def test_the_writer_agrees_with_the_library(tmp_path: Path) -> None:
    """Dtypes of all sizes, scalars and empty tensors, read back by safetensors, whose own file is as long."""
    tensors = {
        "half": torch.randn(3, 5).to(torch.bfloat16),
        "double": torch.randn(2).double(),
        "flag": torch.tensor([True, False, True]),
        "count": torch.tensor(7),
        "none": torch.zeros(0, 4),
        "ünï": torch.randn(4, 4).t(),
    }
    entries = in_order([Entry(name, "x", tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()])
    path = tmp_path / "x.safetensors"
    write_shard(path, entries, {"format": "pt"}, tensors.__getitem__)
    read = load_file(path)
    assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    with safe_open(path, framework="pt") as handle:
        assert handle.metadata() == {"format": "pt"}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "y.safetensors", {"format": "pt"})
    assert abs(path.stat().st_size - (tmp_path / "y.safetensors").stat().st_size) < 8 * len(tensors)
    assert is_finished(path, entries, {"format": "pt"}) and not is_finished(path, entries, {"format": "np"})
