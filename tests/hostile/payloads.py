"""What would run, if anything ran it: each payload leaves a canary, a file or an event of the interpreter's audit."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
import zlib
from functools import cache
from typing import Any, Final

import torch

CANARY: Final = "graphprune_canary"
CODE: Final = f"__import__('os').system('touch {CANARY}')"
NAMES: Final = (
    "os.system", "posix.system", "builtins.eval", "torch.hub.load", "torch.load", "torch.os.system", f"os:system('touch {CANARY}')",
    f"{CANARY}:net", "aten::no_such_operator", "torch.ops.aten.no_such.default", "torch.ops.aten.from_file.default",
    "image::read_file",
    "torch.ops.load_library", "operator.attrgetter", "__class__", "../../../etc/passwd", "/dev/zero", "evil.pt", CODE,
    f"Symbol('s0') if {CODE} else 1", f"L['x'].size()[0] == {CODE}", f"a; {CODE}", "2**(10**10)", "self", "lambda", "\uff41", "",
)  # fmt: skip


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {CANARY}",)


class _Imports:
    def __reduce__(self) -> tuple[Any, ...]:
        return __import__, (CANARY,)


def bare_pickle() -> bytes:
    """A pickle that runs a command."""
    return pickle.dumps(_Runs())


@cache
def torch_pickle(zipped: bool = True) -> bytes:
    """A checkpoint of torch with a pickle in it that runs a command, in the zip format or the older one."""
    stream = io.BytesIO()
    content = {"weight": torch.zeros(2), "more": _Runs(), "again": _Imports()}
    torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


@cache
def zip_bomb(member: str = "x.npy") -> bytes:
    """A zip file of under a megabyte that expands to 700 MB: one block of compressed zeros, many times over."""
    packer = zlib.compressobj(wbits=-15)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(member, block * 700 + packer.flush())
    data = bytearray(stream.getvalue())
    for mark, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):  # both headers: that it is compressed, and how large it is
        struct.pack_into("<H", data, data.find(mark) + place, zipfile.ZIP_DEFLATED)
        struct.pack_into("<I", data, data.find(mark) + place + 14, 700 * 2**20)
    return bytes(data)
