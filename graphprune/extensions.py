"""What other packages register under our entry point groups for rules and criteria."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from graphprune.errors import UsageError


@cache
def load_extensions(group: str) -> None:
    """Import the modules registered under an entry point group, once in a process.

    Raises UsageError naming the entry point that cannot be imported: a broken extension must not pass for a missing one.
    """
    for entry in entry_points(group=group):
        try:
            entry.load()
        except Exception as error:
            raise UsageError(
                f"The extension {entry.name} = {entry.value} ({group}) cannot be imported: {type(error).__name__}: {error}. "
                "Repair or uninstall the package that brings it."
            ) from error
