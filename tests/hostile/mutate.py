"""Mutators: what is done to a sound file, from flipped bits to changes that keep the format and lie in it.

A mutator takes the bytes of a file and a generator of random numbers, and returns other bytes, or a :class:`Placed` for what no
bytes can be: links and devices.
"""

from __future__ import annotations

import io
import json
import os
import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from tests.hostile.payloads import CODE, NAMES, bare_pickle, torch_pickle, zip_bomb

_DEEP: Final = "\u2063deep"
_TWICE: Final = "\u2063twice"
_DEPTH: Final = 100_000


@dataclass(frozen=True)
class Placed:
    """Something else than a file of bytes at the path. put: makes it."""

    put: Callable[[Path], None]


Mutator = Callable[[bytes, Random], bytes | Placed]

# -- bytes -----------------------------------------------------------------------------------------------------------------------


def truncated(data: bytes, random: Random) -> bytes:
    return data[: random.choice((0, 1, 7, 8, 9, random.randrange(len(data)), len(data) - 1))]


def flipped(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 16))):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def spliced(data: bytes, random: Random) -> bytes:
    """A piece taken out, doubled, zeroed, or replaced by noise."""
    start = random.randrange(len(data))
    stop = min(len(data), start + random.choice((1, 4, 64, len(data) // 2)))
    piece = random.choice((b"", data[start:stop] * 2, bytes(stop - start), random.randbytes(stop - start), b"\xff\xfe\x00"))
    return data[:start] + piece + data[stop:]


def replaced(data: bytes, random: Random) -> bytes:
    """Another kind of file altogether."""
    others = (
        bare_pickle, torch_pickle, lambda: torch_pickle(False), zip_bomb, lambda: b"", lambda: random.randbytes(512),
        lambda: b"\x80\x04",
        lambda: b"[" * _DEPTH, lambda: b'{"a":' * _DEPTH, lambda: CODE.encode(), lambda: b"\xef\xbb\xbf" + data, lambda: data * 2,
        lambda: b"PK\x05\x06" + bytes(18), lambda: struct.pack("<Q", 2**60) + data[8:], lambda: b"null", lambda: b"[]",
        lambda: b"{}",
    )  # fmt: skip
    return random.choice(others)()


def larger_numbers(data: bytes, random: Random) -> bytes:
    """A number in the text of a file replaced by one that is absurd."""
    found = list(re.finditer(rb"\d+", data))
    if not found:
        return flipped(data, random)
    match = random.choice(found)
    number = random.choice((b"1000000000000", b"9" * 5000, b"-1", b"1e999", b"NaN", b"4294967296", b"0"))
    return data[: match.start()] + number + data[match.end() :]


def placed(data: bytes, random: Random) -> Placed:
    """A link, a device, a pipe or a folder where the file should be."""
    return Placed(
        random.choice(
            (
                lambda path: path.symlink_to("/dev/zero"),
                lambda path: path.symlink_to(path),
                lambda path: path.symlink_to("/no/such/file"),
                os.mkfifo,
                Path.mkdir,
            )
        )
    )


BYTES: Final[tuple[Mutator, ...]] = (truncated, flipped, spliced, replaced, larger_numbers, placed)

# -- JSON ------------------------------------------------------------------------------------------------------------------------


def _value(random: Random) -> Any:
    return random.choice(
        (
            None, True, False, 0, -1, 1, 7, 10**12, 10**30, -(2**63), 1e308, 0.5, float("nan"), float("inf"), "0",
            "a" * 100_000, [], {},
            [[]], {"": {}}, [0] * 1000, _DEEP, {"node": "x"}, {"tuple": [1]}, {"as_int": 10**12}, random.choice(NAMES),
            random.choice(NAMES),
            random.choice(NAMES), [random.choice(NAMES)], {random.choice(NAMES): 1}, f"float32[{10**12}, {10**12}]",
        )
    )  # fmt: skip


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every container with a key or an index in it."""
    found: list[tuple[Any, Any]] = []
    pending = [tree]
    while pending:
        part = pending.pop()
        keys = list(part) if isinstance(part, dict) else list(range(len(part))) if isinstance(part, list) else []
        found += [(part, key) for key in keys]
        pending += [part[key] for key in keys]
    return found


def _copied(value: Any) -> Any:
    return json.loads(json.dumps(value))


def mutate_tree(tree: Any, random: Random) -> Any:
    """Change one to three places of a tree of JSON data; returns the tree, or what replaces it."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        places = _places(tree)
        if not places or random.random() < 0.03:
            return _value(random)
        part, key = random.choice(places)
        random.choice(_EDITS)(part, key, places, random)
    return tree


def _set(part: Any, key: Any, places: list[tuple[Any, Any]], random: Random) -> None:
    part[key] = _value(random)


def _delete(part: Any, key: Any, places: list[tuple[Any, Any]], random: Random) -> None:
    del part[key]


def _swap(part: Any, key: Any, places: list[tuple[Any, Any]], random: Random) -> None:
    """Another part of the file: wrong types, cycles and references forward."""
    other, place = random.choice(places)
    part[key] = _copied(other[place])


def _repeat(part: Any, key: Any, places: list[tuple[Any, Any]], random: Random) -> None:
    if isinstance(part, list):
        part.insert(key, _copied(part[key]))
    else:
        part[f"{key}{random.choice(('', _TWICE, '.0', '2'))}"] = _copied(part[key])


def _rename(part: Any, key: Any, places: list[tuple[Any, Any]], random: Random) -> None:
    if isinstance(part, dict):
        part[str(random.choice((*NAMES, "weight", "extra", "-1", "99999999999", "u99999999999")))] = part.pop(key)
    else:
        part[key] = random.choice(NAMES)


def _nudge(part: Any, key: Any, places: list[tuple[Any, Any]], random: Random) -> None:
    """A number that is a little off, a text with something added: what looks right."""
    value = part[key]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        part[key] = value + random.choice((-1, 1, 2, -value - 1))
    elif isinstance(value, str):
        part[key] = random.choice((value + "x", value[:-1], value.upper(), f"{value}.__class__", f"{value}\n{CODE}", value * 2))
    else:
        part[key] = _value(random)


_EDITS: Final = (_set, _set, _set, _delete, _swap, _swap, _repeat, _rename, _nudge, _nudge)


def text_of(tree: Any) -> str:
    """A tree as JSON text, with what no tree can hold: a hundred thousand levels, keys that come twice."""
    text = json.dumps(tree).replace(json.dumps(_TWICE)[1:-1], "")
    return text.replace(json.dumps(_DEEP), "[" * _DEPTH + "]" * _DEPTH)


def json_changed(data: bytes, random: Random) -> bytes:
    return text_of(mutate_tree(json.loads(data), random)).encode("utf-8", "surrogatepass")


def lines_changed(data: bytes, random: Random) -> bytes:
    """Lines of JSON: one changed, taken out, doubled or torn."""
    lines = data.splitlines(keepends=True)
    place = random.randrange(len(lines))
    changed = json_changed(lines[place], random) + b"\n"
    lines[place] = random.choice((changed, changed, changed, b"", lines[place] * 2, lines[place][:-5], b"\n", b"[]\n", b"1\n"))
    return b"".join(lines)


# -- TOML ------------------------------------------------------------------------------------------------------------------------


def toml_changed(data: bytes, random: Random) -> bytes:
    """A line with another value or name, or one more line."""
    lines = data.decode().splitlines()
    numbers = [number for number, line in enumerate(lines) if line and not line.startswith("#")]
    number = random.choice(numbers)
    name = lines[number].partition("=")[0].strip()
    value = random.choice(
        (
            "1" * 5000, "-1", "nan", "inf", "true", '"a"', "[]", "{}", "[" * 5000 + "]" * 5000,
            "{a=" * 500 + "1" + "}" * 500, '"\\u0000"',
            "1979-05-27T07:32:00Z", "0x7fffffffffffffffffff", "1e400", json.dumps(random.choice(NAMES)),
            f"[{json.dumps(random.choice(NAMES))}]",
        )
    )  # fmt: skip
    lines[number] = random.choice(
        (
            f"{name} = {value}", f"{name} = {value}", f"{name} = {value}", lines[number] * 2,
            f"{lines[number]}\n{lines[number]}", "",
            f"[{name}]", f"[[{name}]]", f"{'a.' * 3000}b = 1", f"{name}.more = 1", f"x{name} = 1",
            f"{lines[number]}\nextra = {value}",
        )
    )  # fmt: skip
    return "\n".join(lines).encode("utf-8", "replace")


# -- safetensors -----------------------------------------------------------------------------------------------------------------


def split_safetensors(data: bytes) -> tuple[Any, bytes]:
    """The header as JSON data, and the bytes after it."""
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join_safetensors(header: Any, body: bytes, length: int | None = None) -> bytes:
    """A file of a header and a body. length: what the file says of its header; the truth by default."""
    text = text_of(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def safetensors_changed(data: bytes, random: Random) -> bytes:
    """Lies in the header: length, dtypes, shapes, offsets, names."""
    header, body = split_safetensors(data)
    tensors = [name for name in header if name != "__metadata__"]
    entry = header[random.choice(tensors)]
    kind = random.randrange(6)
    if kind == 0:
        return join_safetensors(header, body, random.choice((2**60, 2**63, 2**64 - 1, 0, 1, 10**8, len(data))))
    if kind == 1:
        entry["dtype"] = random.choice(("F64", "I8", "BOOL", "F8_E8M0", "F4", "C64", "U16", "X", "", "F32 "))
    elif kind == 2:
        entry["shape"] = random.choice(([10**12], [2**32, 2**32], [-1], [0], [], [1] * 5000, entry["shape"][::-1], [2**63, 2]))
    elif kind == 3:
        entry["data_offsets"] = random.choice(([0, 0], [0, 2**63], [5, 1], [0, len(body)], [-1, 4], entry["data_offsets"] * 2))
    else:
        header = mutate_tree(header, random)
    return join_safetensors(header, body)


# -- zip -------------------------------------------------------------------------------------------------------------------------

_PARTS: Final[dict[str, Mutator]] = {".json": json_changed}
_EVIL_NAMES: Final = (
    "../../evil", "/evil", "a/data/constants/opaque_obj_0", "a/data/aotinductor/model/model.so", "a/extra/../../evil", "a\\b",
    "a/" * 300,
    "a/models/other.json", "x.npy", "A/MODELS/MODEL.JSON", "version", "serialized_exported_program.json",
)  # fmt: skip


def zip_changed(data: bytes, random: Random) -> bytes:
    """A member changed in its own format, renamed, doubled, dropped, compressed, or one more."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members: list[list[Any]] = [[info.filename, archive.read(info)] for info in archive.infolist()]
    chosen = random.choice([member for member in members if member[1]])
    suffix = Path(chosen[0]).suffix
    action = random.choice(("change",) * 6 + ("rename", "double", "drop", "add", "pickle", "bomb", "swap"))
    compression = random.choice((zipfile.ZIP_STORED,) * 4 + (zipfile.ZIP_DEFLATED,))
    if action == "change":
        changed = _PARTS.get(suffix, random.choice((truncated, flipped, spliced, larger_numbers)))(chosen[1], random)
        assert isinstance(changed, bytes)
        chosen[1] = changed
    elif action == "rename":
        chosen[0] = random.choice(_EVIL_NAMES)
    elif action == "double":
        members.append([chosen[0], random.choice((bare_pickle(), torch_pickle(), chosen[1], b"{}"))])
    elif action == "drop":
        members.remove(chosen)
    elif action == "add":
        members.append([random.choice(_EVIL_NAMES), bare_pickle()])
    elif action == "pickle":
        chosen[1] = random.choice((bare_pickle(), torch_pickle(), torch_pickle(False)))
    elif action == "bomb":
        return zip_bomb(chosen[0])
    else:
        chosen[1] = random.choice(members)[1]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression, compresslevel=1) as made:
        for name, content in members:
            made.writestr(name, content)
    return stream.getvalue()
