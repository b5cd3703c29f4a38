"""Names of groups: what a group is called, and which groups a user means by the name of a tensor, a layer or a block."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from graphprune.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from graphprune.channels.groups import Group

_PLAIN: Final = ("weight", "bias", "running_mean", "running_var")  # tensors that say less than their module's name


def new_name(tensor: str, taken: set[str]) -> str:
    """A name after the first module that uses the group (the one that makes it), numbered where that is taken; it is then, too."""
    path, _, leaf = tensor.rpartition(".")
    name = base = path if path and leaf in _PLAIN else tensor
    number = 1
    while name in taken:
        number += 1
        name = f"{base}#{number}"
    taken.add(name)
    return name


def named(groups: Iterable[Group], name: str) -> tuple[Group, ...]:
    """Those that a tensor, layer or block of this name has a part in, else those of this name, in their order; maybe none."""
    groups = tuple(groups)
    found = [group for group in groups if any(_within(member.tensor, name) for member in group.members)]
    return tuple(found or [group for group in groups if group.name == name])


def unknown(groups: Iterable[Group], name: str) -> UsageError:
    """What to say of a name that fits no group, with near ones."""
    known = with_modules(member.tensor for group in groups for member in group.members)
    hint = did_you_mean(name, known, f"; known are, among others, {', '.join(known[:3])}.")
    return UsageError(f"No channel group has a layer or tensor named {name!r}{hint}")


def with_modules(tensors: Iterable[str]) -> list[str]:
    """The names of tensors and of the modules around them, sorted."""
    return sorted(
        {tensor[:end] for tensor in tensors for end in (*(at for at, mark in enumerate(tensor) if mark == "."), len(tensor))}
    )


def _within(tensor: str, name: str) -> bool:
    return tensor == name or tensor.startswith(f"{name}.")
