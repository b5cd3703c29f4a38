"""Rules and criteria are registered by the modules that hold them: our own, and those of other packages' entry points."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Final

from graphprune.errors import UsageError, typed_line

_OWN: Final = {
    "graphprune.rules": (
        "graphprune.passes.analysis.rules",
        "graphprune.passes.rewrite.calls",
        "graphprune.passes.rewrite.modules",
    ),
    "graphprune.criteria": ("graphprune.passes.scoring",),
}


@cache
def load_extensions(group: str) -> None:
    """Import the modules that register what a group is for, once in a process: our own, then those of entry points.

    Raises UsageError naming the entry point that cannot be imported: a broken extension must not pass for a missing one.
    """
    for module in _OWN[group]:
        import_module(module)
    for entry in entry_points(group=group):
        try:
            entry.load()
        except Exception as error:
            raise UsageError(
                f"The extension {entry.name} = {entry.value} ({group}) cannot be imported: {typed_line(error)}. "
                "Repair or uninstall the package that brings it."
            ) from error
