"""Attributes of a model's modules that state widths: which take the new ones where its code reads them.

A call of the slim graph whose numbers were changed is one whose widths the model's code states. Where it reads them from attributes
of the module that it is in (``x.reshape(n, length, self.heads, 64)``), the attributes are what has to be changed. They are found by
their values, and by their names in the line of the call. That this was right is for :mod:`graphprune.own_class.calls` to see.
"""

from __future__ import annotations

import linecache
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from graphprune.errors import RewriteError
from graphprune.passes.rewrite.site import Provenance
from graphprune.tracing.source import in_brackets

Attributes = dict[str, dict[str, int | list[int]]]
"""New values by the path of a module and the name of its attribute."""


class Stated(RewriteError):
    """A width that the model's code states, and that no attribute can give another value. calls: where it does."""

    def __init__(self, text: str, calls: Sequence[fx.Node]) -> None:
        super().__init__(text)
        self.calls = calls


_INTERNAL: Final = frozenset(nn.Module().__dict__)
_SEQUENCES: Final = (tuple, list, torch.Size)


def is_changed(node: fx.Node) -> bool:
    """Whether the rewriter had to change a call that is none of a layer."""
    return isinstance(node.meta.get("graphprune"), Provenance) and node.op != "call_module"


def in_words(node: fx.Node) -> str:
    """A call and its line, for messages."""
    return f"{getattr(node.target, '__name__', node.target)}{in_brackets(str(node.meta.get('source', '')))}"


def computes(node: fx.Node) -> bool:
    """Whether a changed call takes numbers that the code computes from sizes, and that would have to be others."""
    before = node.meta["graphprune"].before
    pairs = zip_longest(tree_leaves(before), tree_leaves((node.args, node.kwargs)))
    return before is not None and any(isinstance(old, fx.Node) and old is not new for old, new in pairs)


def tied_at(node: fx.Node) -> str:
    """The choice of a policy with which a changed call may go by sizes that its code computes."""
    return f"sizes@{node.meta['graphprune'].source}"


def stated_in(model: nn.Module, node: fx.Node, policy: Mapping[str, str]) -> dict[str, Any] | None:
    """The attributes that a changed call reads its widths from, with their new values; None where it reads some elsewhere.

    What the code computes from sizes is left to it where the policy has tied these, at this call.
    """
    mark, path = node.meta.get("graphprune"), node.meta.get("module")
    if not isinstance(mark, Provenance) or mark.before is None or path is None:
        return None
    if computes(node) and tied_at(node) not in policy:
        return None
    found: dict[str, Any] = {}
    reads = _Reads(model.get_submodule(path), _line(node), found)
    return found if all(map(reads.follow, mark.before, (node.args, node.kwargs))) else None


def stated(model: nn.Module, slim: fx.GraphModule, policy: Mapping[str, str]) -> Attributes:
    """All attributes that state widths of a slim graph, made under a policy. Raises Stated."""
    found: Attributes = {}
    readers: dict[str, list[fx.Node]] = {}
    for node in filter(is_changed, slim.graph.nodes):
        new, path = stated_in(model, node, policy), str(node.meta.get("module", ""))
        if new is None:
            raise Stated(f"it states a width in {in_words(node)}", [node])
        calls = readers.setdefault(path, [])
        calls += [node] if new else []
        if not _take(found.setdefault(path, {}), new):
            raise Stated(f"{path or type(model).__name__} reads one of {', '.join(new)} for several widths", calls)
    return {path: values for path, values in found.items() if values}


def set_attributes(model: nn.Module, attributes: Mapping[str, Mapping[str, Any]]) -> None:
    """Give modules of a model new values of attributes that they have. Raises RewriteError for any other."""
    for path, values in attributes.items():
        state = model.get_submodule(path).__dict__
        for name, new in values.items():
            old: Any = state.get(name)
            if name in _INTERNAL or not _is_width(old) or isinstance(old, int) is not isinstance(new, int) or not _is_width(new):
                raise RewriteError(f"{path or type(model).__name__} has no width {name!r}.")
            kind: Any = type(old)
            state[name] = kind(new)


def _take(found: dict[str, Any], more: Mapping[str, Any]) -> bool:
    """Add values; whether none of them contradicts what is there."""
    fits = all(found.get(name, value) == value for name, value in more.items())
    found.update(more)
    return fits


def _line(node: fx.Node) -> str:
    file, _, number = str(node.meta.get("source", "")).rpartition(":")
    return linecache.getline(file, int(number)) if number.isdecimal() else ""


@dataclass(frozen=True)
class _Reads:
    """What a line of a module's code reads. found: new values of its attributes."""

    module: nn.Module
    line: str
    found: dict[str, Any]

    def follow(self, old: Any, new: Any) -> bool:
        """Find attributes for all that differs between old and new arguments; whether there are some."""
        if isinstance(old, slice) and isinstance(new, slice):
            old, new = ((bounds.start, bounds.stop, bounds.step) for bounds in (old, new))
        if old == new or isinstance(old, fx.Node):
            return True
        names = self._holding(old)
        if names:
            return (
                _is_width(new)
                and isinstance(new, int) is isinstance(old, int)
                and _take(self.found, dict.fromkeys(names, new if isinstance(new, int) else list(new)))
            )
        if isinstance(old, dict) and isinstance(new, dict):
            return old.keys() == new.keys() and all(self.follow(old[key], new[key]) for key in old)
        alike = isinstance(old, _SEQUENCES) and isinstance(new, _SEQUENCES) and len(old) == len(new)
        return alike and all(map(self.follow, old, new))

    def _holding(self, value: Any) -> list[str]:
        """Attributes with this value: those that the line names, or all where it names none."""
        if not _is_width(value):
            return []
        state = self.module.__dict__
        same = [name for name in state.keys() - _INTERNAL if _is_width(state[name]) and _plain(state[name]) == _plain(value)]
        return sorted(name for name in same if re.search(rf"\b{re.escape(name)}\b", self.line)) or sorted(same)


def _is_width(value: Any) -> bool:
    """Whether something is a number, or a sequence of nothing but numbers."""
    return type(value) is int or (isinstance(value, _SEQUENCES) and bool(value) and all(type(part) is int for part in value))


def _plain(value: Any) -> Any:
    return value if isinstance(value, int) else tuple(value)
