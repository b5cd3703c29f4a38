"""Attributes of a model's modules that state widths: which take the new ones where its code reads them.

A call of the slim graph whose numbers were changed is one whose widths the model's code states. Where it reads them from attributes
of the module that it is in (``x.reshape(n, length, self.heads, 64)``), or of what this holds (``self.config.heads``, a config that
modules share), the attributes are what has to be changed. They are found by their values, and by their names in the line of the
call, or else in its function. That this was right is for :mod:`graphprune.own_class.calls` to see.
"""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterable, Mapping, Sequence
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
"""New values by the path of a module and the name of its attribute, which has dots where the module holds what has it."""


class Stated(RewriteError):
    """A width that the model's code states, and that no attribute can give another value. calls: where it does."""

    def __init__(self, text: str, calls: Sequence[fx.Node]) -> None:
        super().__init__(text)
        self.calls = calls


_CHAIN: Final = re.compile(r"\bself\.([A-Za-z]\w*(?:\.[A-Za-z]\w*)+)")
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
    """The choice of a policy, whichever, with which a changed call may go by sizes that its code computes: they were seen to."""
    return f"sizes@{node.meta['graphprune'].source}"


def stated_in(model: nn.Module, node: fx.Node, policy: Mapping[str, str]) -> dict[str, Any] | None:
    """The attributes that a changed call reads its widths from, with their new values; None where it reads some elsewhere.

    What the code computes from sizes is left to it where the policy has a choice about these, at this call.
    """
    mark, path = node.meta.get("graphprune"), node.meta.get("module")
    if not isinstance(mark, Provenance) or mark.before is None or path is None:
        return None
    if computes(node) and tied_at(node) not in policy:
        return None
    found: dict[str, Any] = {}
    reads = _Reads(model.get_submodule(path), _line(node), _function(node), found)
    return found if all(map(reads.follow, mark.before, (node.args, node.kwargs))) else None


def stated(model: nn.Module, slim: fx.GraphModule, policy: Mapping[str, str]) -> Attributes:
    """All attributes that state widths of a slim graph, made under a policy. Raises Stated."""
    found: Attributes = {}
    readers: dict[tuple[int, str], list[tuple[fx.Node, Any]]] = {}
    for node in filter(is_changed, slim.graph.nodes):
        new, path = stated_in(model, node, policy), str(node.meta.get("module", ""))
        if new is None:
            raise Stated(f"it states a width in {in_words(node)}", [node])
        for name, value in new.items():
            known = readers.setdefault((id(_holder(model.get_submodule(path), name)), name.rpartition(".")[2]), [])
            known.append((node, value))
            if value != known[0][1]:
                where = path or type(model).__name__
                raise Stated(f"{where} reads {name}, which stands for several widths", [call for call, _ in known])
            found.setdefault(path, {})[name] = value
    return found


def set_attributes(model: nn.Module, attributes: Mapping[str, Mapping[str, Any]], original: nn.Module) -> None:
    """Give modules of a copy of a model new values of attributes that they, or what they hold, have.

    Raises RewriteError for any other, and where the copy shares what has them with the original.
    """
    for path, values in attributes.items():
        for name, new in values.items():
            holder, last = _holder(model.get_submodule(path), name), name.rpartition(".")[2]
            old: Any = _state(holder).get(last)
            held = hasattr(holder, "__dict__") and holder is not model.get_submodule(path)
            blank = old is None and isinstance(new, int) and held  # left to a config's class
            alike = _is_width(old) and isinstance(old, int) is isinstance(new, int)
            if last in _INTERNAL or not (blank or alike) or not _is_width(new):
                raise RewriteError(f"{path or type(model).__name__} has no width {name!r}.")
            if holder is _holder(original.get_submodule(path), name):
                raise RewriteError(f"{path or type(model).__name__} has its width {name!r} in what is not copied with the model.")
            kind: Any = int if blank else type(old)
            _state(holder)[last] = kind(new)


def _holder(module: nn.Module, name: str) -> Any:
    """What has an attribute: the module, or what is found in it by the parts of a dotted name; None where there is no such."""
    holder: Any = module
    for part in name.split(".")[:-1]:
        holder = (
            holder.get_submodule(part) if isinstance(holder, nn.Module) and part in holder._modules else _state(holder).get(part)
        )
    return holder


def _state(holder: Any) -> dict[str, Any]:
    """The attributes of an object, if it has any that can be set."""
    state = getattr(holder, "__dict__", None)
    return state if isinstance(state, dict) else {}


def _take(found: dict[str, Any], more: Mapping[str, Any]) -> bool:
    """Add values; whether none of them contradicts what is there."""
    fits = all(found.get(name, value) == value for name, value in more.items())
    found.update(more)
    return fits


def reads_one_of(node: fx.Node, names: Iterable[str]) -> bool:
    """Whether the line of a call names one of some attributes."""
    return any(_names(_line(node), name) for name in names)


def _names(line: str, name: str) -> bool:
    """Whether a line names an attribute of its module."""
    return re.search(rf"(?:\bself\.|(?<![\w.])){re.escape(name)}\b", line) is not None


def _line(node: fx.Node) -> str:
    """The line of a call, with those that its brackets go on to."""
    file, _, number = str(node.meta.get("source", "")).rpartition(":")
    lines = linecache.getlines(file)[int(number) - 1 :] if number.isdecimal() else []
    text = ""
    for line in lines:
        text += line
        if len(re.findall(r"[(\[{]", text)) <= len(re.findall(r"[)\]}]", text)):
            break
    return text


def _function(node: fx.Node) -> str:
    """The function that a call is in, up to the call."""
    file, _, number = str(node.meta.get("source", "")).rpartition(":")
    lines = linecache.getlines(file)[: int(number)] if number.isdecimal() else []
    heads = [index for index, line in enumerate(lines) if re.match(r"\s*(async )?def ", line)]
    return "".join(lines[heads[-1] :]) if heads else ""


@dataclass(frozen=True)
class _Reads:
    """What a line of a module's code reads, itself or above in its function. found: new values of its attributes."""

    module: nn.Module
    line: str
    function: str
    found: dict[str, Any]

    def follow(self, old: Any, new: Any) -> bool:
        """Find attributes for all that differs between old and new arguments; whether there are some."""
        if isinstance(old, slice) and isinstance(new, slice):
            old, new = ((bounds.start, bounds.stop, bounds.step) for bounds in (old, new))
        if old == new or isinstance(old, fx.Node):
            return True
        names = self._holding(old)
        if not names and type(old) is int and type(new) is int:
            return self._follow_part(old, new)
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

    def _follow_part(self, old: int, new: int) -> bool:
        """Find the one attribute that the line names and that is a multiple: of ``self.width // 2``."""
        state = vars(self.module)
        wider = [name for name in state.keys() - _INTERNAL if type(state[name]) is int and old and state[name] % old == 0]
        named = [name for name in wider if _names(self.line, name)]
        return len(named) == 1 and _take(self.found, {named[0]: state[named[0]] // old * new})

    def _holding(self, value: Any) -> list[str]:
        """Attributes with this value: those that the line names, or else its function, or all of the module itself."""
        if not _is_width(value):
            return []
        same = sorted(name for name in vars(self.module).keys() - _INTERNAL if self._has(name, value))
        for text in (self.line, self.function):
            held = [name for name in dict.fromkeys(_CHAIN.findall(text)) if self._has(name, value)]
            if found := held + [name for name in same if _names(text, name)]:
                return found
        return same

    def _has(self, name: str, value: Any) -> bool:
        found = _state(_holder(self.module, name)).get(name.rpartition(".")[2])
        return _is_width(found) and bool(_plain(found) == _plain(value))


def _is_width(value: Any) -> bool:
    """Whether something is a number, or a sequence of nothing but numbers."""
    return type(value) is int or (isinstance(value, _SEQUENCES) and bool(value) and all(type(part) is int for part in value))


def _plain(value: Any) -> Any:
    return value if isinstance(value, int) else tuple(value)
