"""Constants as tagged JSON: every value that a graph or a module may hold, and nothing that could run.

JSON numbers, strings, booleans, null and arrays (lists) stand for themselves; everything else is an object with one key,
its tag: ``{"tuple": [1, 2]}``, ``{"dtype": "float32"}``, ``{"float": "inf"}``. The types are those whose ``repr`` is safe
Python source, because fx writes constants into the code that it compiles. Types are compared exactly: a subclass brings
its own ``repr``.
"""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx.immutable_collections import immutable_dict, immutable_list

from graphprune.errors import ArtifactError

MAX_DEPTH = 32
MAX_TEXT = 10_000
MAX_INTEGER = 2**64
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)

Writer = Callable[[Any, Callable[[Any], Any]], Any]
Reader = Callable[[Any, Callable[[Any], Any]], Any]


def check_name(name: Any, what: str) -> str:
    """The name, if it is an ASCII identifier and no keyword; it will stand in generated source. Raises ArtifactError."""
    if not isinstance(name, str) or len(name) > MAX_TEXT or not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise ArtifactError(f"{what} {shorten(name)} is not a plain identifier")
    return name


def shorten(value: Any) -> str:
    """A value for a message, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def of_type(value: Any, kind: type, what: str) -> Any:
    """The value, if it is exactly of this type. Raises ArtifactError."""
    if type(value) is not kind:
        raise ArtifactError(f"{what} is not a JSON {kind.__name__}: {shorten(value)}")
    return value


def field(record: Any, key: str, kind: type) -> Any:
    """A field of a JSON object, exactly of this type. Raises ArtifactError."""
    of_type(record, dict, "a record")
    if key not in record:
        raise ArtifactError(f"a record has no field {key!r}: {shorten(record)}")
    return of_type(record[key], kind, f"the field {key!r}")


@dataclass(frozen=True)
class Codec:
    """Which types are written under which tag, and how each tag is read back.

    writers: exact type -> (tag, function of the value and the writer of nested values).
    readers: tag -> function of the payload and the reader of nested values.
    """

    writers: Mapping[type, tuple[str, Writer]]
    readers: Mapping[str, Reader]

    def extended(self, writers: Mapping[type, tuple[str, Writer]], readers: Mapping[str, Reader]) -> Codec:
        """A codec that knows more types."""
        return Codec({**self.writers, **writers}, {**self.readers, **readers})

    def write(self, value: Any) -> Any:
        """A value as plain JSON data. Raises ArtifactError naming the type that has no such form."""
        kind = type(value)
        if value is None or kind in (bool, int, str) or (kind is float and math.isfinite(value)):
            return value
        if kind in (list, immutable_list):
            return [self.write(item) for item in value]
        if kind not in self.writers:
            raise ArtifactError(f"a value of type {kind.__module__}.{kind.__qualname__} has no form as plain data")
        tag, writer = self.writers[kind]
        return {tag: writer(value, self.write)}

    def read(self, data: Any, depth: int = 0) -> Any:
        """The value that plain JSON data stands for. Raises ArtifactError for anything that is not known and safe."""
        if depth > MAX_DEPTH:
            raise ArtifactError(f"values are nested more than {MAX_DEPTH} deep")
        if type(data) is list:
            return [self.read(item, depth + 1) for item in data]
        if type(data) is not dict:
            return _plain(data)
        if len(data) != 1 or next(iter(data)) not in self.readers:
            raise ArtifactError(f"a value has an unknown form: {shorten(data)}")
        tag, payload = next(iter(data.items()))
        return self.readers[tag](payload, lambda item: self.read(item, depth + 1))


def _plain(data: Any) -> Any:
    if type(data) is int and abs(data) > MAX_INTEGER:
        raise ArtifactError("an integer is out of range")
    if type(data) is str and (len(data) > MAX_TEXT or "# COUNTER" in data):  # fx cuts lines with this mark from its source
        raise ArtifactError(f"a text is too long or reserved: {shorten(data)}")
    return data


def _sequence(data: Any, read: Callable[[Any], Any]) -> list[Any]:
    return [read(item) for item in of_type(data, list, "a sequence")]


def _three(data: Any, read: Callable[[Any], Any], kinds: tuple[type, ...] | None) -> list[Any]:
    items = _sequence(data, read)
    if len(items) != 3 or (kinds and any(type(item) not in kinds for item in items)):
        raise ArtifactError(f"a slice or range needs three bounds: {shorten(data)}")
    return items


def _range(data: Any, read: Callable[[Any], Any]) -> range:
    start, stop, step = _three(data, read, (int,))
    if step == 0:
        raise ArtifactError("a range has steps of zero")
    return range(start, stop, step)


def _pairs(data: Any, read: Callable[[Any], Any]) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for pair in of_type(data, list, "a dictionary"):
        if type(pair) is not list or len(pair) != 2 or type(key := read(pair[0])) not in (str, int, bool, float, type(None)):
            raise ArtifactError(f"a dictionary entry is not a pair of a plain key and a value: {shorten(pair)}")
        result[key] = read(pair[1])
    return result


def _size(data: Any, read: Callable[[Any], Any]) -> torch.Size:
    items = _sequence(data, read)
    if any(type(item) is not int for item in items):
        raise ArtifactError(f"a torch.Size holds something other than integers: {shorten(data)}")
    return torch.Size(items)


def _float(data: Any, read: Callable[[Any], Any]) -> float:
    if data not in ("inf", "-inf", "nan"):
        raise ArtifactError(f"{shorten(data)} is not inf, -inf or nan")
    return float(data)


def _complex(data: Any, read: Callable[[Any], Any]) -> complex:
    items = _sequence(data, read)
    if len(items) != 2 or any(type(item) is not float for item in items):
        raise ArtifactError(f"a complex number needs two floats: {shorten(data)}")
    return complex(*items)


def _device(data: Any, read: Callable[[Any], Any]) -> torch.device:
    if not re.fullmatch(r"[a-z]{1,20}(:[0-9]{1,4})?", of_type(data, str, "a device"), re.ASCII):
        raise ArtifactError(f"{shorten(data)} is not a device")
    try:
        return torch.device(data)
    except RuntimeError as error:
        raise ArtifactError(f"{shorten(data)} is not a device that this torch knows") from error


def _named(kind: type) -> tuple[Writer, Reader]:
    """Constants that torch knows by name (dtypes, layouts, memory formats)."""
    table = {name: value for name, value in vars(torch).items() if type(value) is kind}

    def read(data: Any, _: Callable[[Any], Any]) -> Any:
        if type(data) is not str or data not in table:
            raise ArtifactError(f"{shorten(data)} is not a torch.{kind.__name__}")
        return table[data]

    return (lambda value, _: str(value).removeprefix("torch.")), read


_DTYPE, _LAYOUT, _FORMAT = _named(torch.dtype), _named(torch.layout), _named(torch.memory_format)
_DICT: tuple[str, Writer] = ("dict", lambda value, write: [[write(key), write(item)] for key, item in value.items()])
_THREE: Writer = lambda value, write: [write(value.start), write(value.stop), write(value.step)]  # noqa: E731
_ITEMS: Writer = lambda value, write: [write(item) for item in value]  # noqa: E731

CONSTANTS = Codec(
    writers={
        tuple: ("tuple", _ITEMS),
        torch.Size: ("size", _ITEMS),
        dict: _DICT,
        immutable_dict: _DICT,
        slice: ("slice", _THREE),
        range: ("range", _THREE),
        float: ("float", lambda value, _: str(value)),  # only inf and nan come here
        complex: ("complex", lambda value, write: [write(value.real), write(value.imag)]),
        type(...): ("ellipsis", lambda value, _: None),
        torch.device: ("device", lambda value, _: str(value)),
        torch.dtype: ("dtype", _DTYPE[0]),
        torch.layout: ("layout", _LAYOUT[0]),
        torch.memory_format: ("memory_format", _FORMAT[0]),
    },
    readers={
        "tuple": lambda data, read: tuple(_sequence(data, read)),
        "size": _size,
        "dict": _pairs,
        "slice": lambda data, read: slice(*_three(data, read, None)),
        "range": _range,
        "float": _float,
        "complex": _complex,
        "ellipsis": lambda data, _: ...,
        "device": _device,
        "dtype": _DTYPE[1],
        "layout": _LAYOUT[1],
        "memory_format": _FORMAT[1],
    },
)
"""Codec of plain constants; graphs add nodes, modules add functions, inputs add tensors."""
