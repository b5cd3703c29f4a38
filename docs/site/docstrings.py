"""Docstrings as Markdown: names with a colon become lists, roles become links to the reference, examples become code blocks."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|data|func|meth|mod):`(~?)([\w.]+)`")
_EXAMPLE = re.compile(r"^( *)>>> .*(?:\n\1\S.*)*", re.MULTILINE)
_SECTIONS = re.compile(r"^(Args|Returns|Raises|Example):$", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite the docstring of the package."""
        self.on_object(obj=pkg)

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring is None:
            return
        text = _EXAMPLE.sub(_fenced, _ROLE.sub(_linked, obj.docstring.value))
        if _SECTIONS.search(text):
            obj.docstring.parser = griffe.Parser.google
        else:
            text = _listed(text, obj)
        obj.docstring.value = text


def _linked(match: re.Match[str]) -> str:
    short, name = match.groups()
    shown = f"`{name.rsplit('.')[-1] if short else name}`"
    return f"[{shown}][{name}]" if name.startswith("graphprune.") else shown


def _fenced(match: re.Match[str]) -> str:
    indent = match[1]
    return f"{indent}```pycon\n{match[0]}\n{indent}```"


def _listed(text: str, obj: griffe.Object) -> str:
    """``name: what it is. other, third: ...`` as a list with an item for each, where these are parameters or attributes."""
    names = {parameter.name for parameter in getattr(obj, "parameters", ())} | set(obj.members)
    one = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    if not names:
        return text
    item = re.compile(rf"(?:^ *|(?<=[.)] ))((?:{one})(?:, (?:{one}))*): ", re.MULTILINE)
    return item.sub(lambda match: "\n\n- " + ", ".join(f"`{name}`" for name in match[1].split(", ")) + ": ", text)
