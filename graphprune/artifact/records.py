"""Output classes in files: the names of their fields, without their code.

A model that returns a dataclass, as those of transformers do (``out.logits``, ``out["loss"]``, ``out[0]``), has a graph that ends
in a call of that class. A file keeps the names of the class and of its fields. What a loaded model returns has these fields, by
name, by key and by place; it is no instance of the original's class.
"""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass, make_dataclass
from functools import cache
from typing import Any, Final

from torch.utils import _pytree as pytree

from graphprune.artifact.values import check_name, shorten
from graphprune.errors import ArtifactError

_RECORD: Final = re.compile(r"record:([^()]*)\(([^()]*)\)")
_MOST: Final = 200


class Record(dict[str, Any]):
    """What a loaded model returns in place of an output class: a field is an attribute, and those that are not None are items."""

    __match_args__: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part in type(self).__match_args__:  # names of the fields, in a loop that Dynamo of all versions follows
            if getattr(self, part) is not None:
                dict.__setitem__(self, part, getattr(self, part))

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in their order."""
        return tuple(dict.values(self))


def is_record(target: Any) -> bool:
    """Whether a call's target is an output class."""
    return isinstance(target, type) and is_dataclass(target)


def record_name(kind: Any) -> str:
    """The name under which an output class is written. Raises ArtifactError where its fields are not plain names."""
    name = f"record:{kind.__name__}({','.join(part.name for part in fields(kind))})"
    find_record(name)
    return name


@cache
def find_record(text: str) -> type[Record]:
    """The class of records with the fields that a name has. Raises ArtifactError for what is no such name."""
    match = _RECORD.fullmatch(text)
    names = match[2].split(",") if match else []
    if match is None or len(names) > _MOST or len(set(names)) < len(names):
        raise ArtifactError(f"the output class {shorten(text)} is malformed")
    kind = check_name(match[1], "the output class")
    for name in names:
        if check_name(name, "the field").startswith("_") or name in vars(Record):
            raise ArtifactError(f"the output class {kind} has a field {shorten(name)}, which no record can have")
    return make_record(kind, names)


def make_record(kind: str, names: list[str]) -> type[Record]:
    """A class of records with these fields, which torch's tools can take apart."""

    def parts(record: Record) -> tuple[list[Any], list[str]]:
        return list(dict.values(record)), list(dict.keys(record))

    made = make_dataclass(kind, [(name, Any, None) for name in names], bases=(Record,), eq=False, repr=False)
    made.__module__ = __name__
    pytree.register_pytree_node(made, parts, lambda values, context: made(**dict(zip(context, values, strict=True))))
    return made
