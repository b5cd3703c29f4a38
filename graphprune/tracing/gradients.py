"""What a model's code says about gradients and a graph does not: parts without any, and gradients of the model's own.

The graph makes the calls all the same; what it does otherwise in training is noted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from inspect import unwrap
from types import CodeType, FrameType
from typing import Any, Final
from unittest.mock import patch

import torch
from torch import fx, nn

from graphprune.channels.tape import Tape
from graphprune.rules import tensors_in
from graphprune.tracing.source import in_brackets, is_of_model, is_trace_entry, source_line

_MOST_CODES: Final = 1000  # of forwards that are remembered; some libraries have hundreds
_STOPPING: Final[dict[type[Any], bool]] = {torch.no_grad: True, torch.inference_mode: True, torch.enable_grad: False}


class Gradients:
    """What one run of a model says about gradients."""

    def __init__(self, root: nn.Module) -> None:
        self._root = root
        self._forwards = _forwards()
        self._lines = {line for _, line in self._forwards}  # a quick look, as every call asks
        self._has_own = any(self._forwards.values())
        self._stopped: list[bool] = []
        self._said: list[tuple[str, fx.Node, str]] = []

    def found(self, tape: Tape) -> dict[str, str]:
        """What the graph does otherwise in training, by the path of the module whose code says so, or the model's class.

        tape: of the finished run. What no parameter has a part in has no gradients to speak of.
        """
        said = [(module, node, reason) for module, node, reason in self._said if not node._erased]
        reasons: dict[str, dict[str, str]] = {}
        trained = self._trained(said[0][1].graph, tape) if said else frozenset()
        for module, node, reason in said:
            if node in trained:  # once for each kind, at the first line
                reasons.setdefault(module or type(self._root).__name__, {}).setdefault(reason.partition(" (")[0], reason)
        return {path: "; ".join(each.values()) for path, each in reasons.items()}

    def _trained(self, graph: fx.Graph, tape: Tape) -> Container[fx.Node]:
        """The calls whose results have gradients."""
        results = {step.node: step.result for step in tape.steps}
        parameters = {name for name, _ in self._root.named_parameters(remove_duplicate=False)}
        found: set[fx.Node] = set()
        for node in graph.nodes:
            if node.op == "get_attr":
                has_some = str(node.target) in parameters
            else:
                layer = self._root.get_submodule(str(node.target)) if node.op == "call_module" else nn.Module()
                has_some = any(True for _ in layer.parameters()) or not found.isdisjoint(node.all_input_nodes)
            stops = node.target in ("detach", torch.detach)
            if has_some and not stops and any(map(torch.is_floating_point, tensors_in((results[node.name],)))):
                found.add(node)
        return found

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within, what the running code says is heard."""
        with ExitStack() as patches:
            for kind, stops in _STOPPING.items():
                enter, leave = kind.__enter__, kind.__exit__
                if kind is torch.inference_mode:  # in which torch runs other operators; a trace has no gradients anyway
                    enter = leave = _nothing
                patches.enter_context(patch.object(kind, "__enter__", self._entering(enter, stops)))
                patches.enter_context(patch.object(kind, "__exit__", self._leaving(leave)))
            yield

    def note_call(self, module: str, node: fx.Node) -> None:
        """A call that a module's code has made: is it in a Function, or without gradients?"""
        stopped = bool(self._stopped) and self._stopped[-1]
        if not (stopped or self._has_own):
            return
        name = self._function()
        if name:
            reason = f"{name}{in_brackets(source_line())} has gradients of its own, the slim model those of its operators"
        elif name is None and stopped:
            reason = f"it computes without gradients{in_brackets(source_line())}, the slim model with"
        else:
            return
        self._said.append((module, node, reason))

    def _function(self) -> str | None:
        """The name of the autograd Function whose forward is running, empty for one of torch; None outside of one."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and not is_trace_entry(frame.f_code):
            if frame.f_code.co_firstlineno in self._lines and (place := _place(frame.f_code)) in self._forwards:
                return self._forwards[place]
            frame = frame.f_back
        return None

    def _entering(self, before: Callable[..., Any], stops: bool) -> Callable[..., Any]:
        def enter(context: Any) -> Any:
            self._stopped.append(stops and getattr(context, "mode", True))
            return before(context)

        return enter

    def _leaving(self, before: Callable[..., Any]) -> Callable[..., Any]:
        def leave(context: Any, *error: Any) -> Any:
            self._stopped.pop()
            return before(context, *error)

        return leave


def _nothing(*_: Any) -> None:
    """A context that is not entered, or left."""


def _forwards() -> dict[tuple[str, int], str]:
    """Where the code of each autograd Function is, with the name of the class; empty for those of torch, as checkpoints are."""
    found, pending = {}, torch.autograd.Function.__subclasses__()
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        code = _code_of(kind.forward)
        if code is not None:
            found[_place(code)] = kind.__name__ if is_of_model(code) else ""
    return found


@lru_cache(_MOST_CODES)
def _code_of(forward: Callable[..., Any]) -> CodeType | None:
    code = getattr(unwrap(forward), "__code__", None)
    return code if isinstance(code, CodeType) else None


def _place(code: CodeType) -> tuple[str, int]:
    """What code has in common with a changed copy of it."""
    return code.co_filename, code.co_firstlineno
