"""Scopes: submodules that trace, inside a whole that does not. They are pruned together, and put back where they were.

A detector's forward looks at data; its backbone, its neck and the heads do not. The model runs once as it is, and what each
scope was called with becomes its example input. All scopes make one program: a graph with the inputs of all of them and a
tuple of their results, so that budgets, plans and proofs cover them together.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from graphprune.channels.tape import stand_in
from graphprune.errors import CaptureError, did_you_mean
from graphprune.ir.program import Inputs, Scope
from graphprune.ir.twins import undisturbed
from graphprune.randomness import own_randomness
from graphprune.tracing.inputs import ModuleCall
from graphprune.tracing.watching import Watch


def record_calls(
    root: nn.Module, inputs: Inputs, paths: Collection[str] | None = None, watch: Watch | None = None
) -> dict[str, ModuleCall]:
    """Run the model as it is, in eval mode, and note what submodules are called with first, by path.

    paths: those of which the values are wanted, as they are then; by default all submodules, of which the shapes are. watch: notes
        more of the run.
    """
    calls: dict[str, ModuleCall] = {}
    kept = _emptied if paths is None else _copied

    def noting(path: str) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if path not in calls:
                with _disable_current_modes(), torch._C.DisableTorchFunction():  # what is asked here, the model does not ask
                    calls[path] = ModuleCall(path, Inputs(*tree_map(kept, (args, kwargs))))

        return note

    wanted = [(path, module) for path, module in root.named_modules() if (path if paths is None else path in paths)]
    hooks = [module.register_forward_pre_hook(noting(path), with_kwargs=True) for path, module in wanted]
    try:
        with undisturbed(root), torch.no_grad(), own_randomness(), nullcontext() if watch is None else watch.over():
            _held = root(*inputs.args, **inputs.kwargs)  # to the end of what is watched
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _emptied(item: Any) -> Any:
    """A floating-point tensor without its values, of which an example only needs the shape; anything else as it is."""
    return stand_in(item) if isinstance(item, torch.Tensor) and item.is_floating_point() else item


def _copied(item: Any) -> Any:
    """A copy of a tensor, which the model may write into later."""
    return item.detach().clone() if isinstance(item, torch.Tensor) else item


def named_scopes(root: nn.Module, calls: dict[str, ModuleCall], names: Sequence[str]) -> list[ModuleCall]:
    """The calls of the scopes that a user names. Raises CaptureError for one that does not exist or is not called."""
    paths = {path for path, _ in root.named_modules()}
    for name in names:
        if name not in paths:
            raise CaptureError(f"Scope {name!r} is no submodule of {type(root).__name__}{did_you_mean(name, paths)}")
        if name not in calls:
            raise CaptureError(f"Scope {name!r} is not called on these example inputs.")
        if not is_plain(calls[name].inputs):
            raise CaptureError(f"Scope {name!r} is called with something other than tensors; name submodules of it.")
    return [calls[name] for name in dict.fromkeys(names)]


def find_scopes(root: nn.Module, calls: dict[str, ModuleCall], traces: Callable[[ModuleCall], bool]) -> list[ModuleCall]:
    """The largest submodules with parameters that trace, from the outside in."""
    found: list[ModuleCall] = []

    def search(module: nn.Module, path: str) -> None:
        for name, child in module.named_children():
            inner = f"{path}.{name}" if path else name
            if next(child.parameters(), None) is None:
                continue
            call = calls.get(inner)
            if call is not None and is_plain(call.inputs) and traces(call):
                found.append(call)
            else:
                search(child, inner)

    search(root, "")
    return found


def reach(root: nn.Module, scopes: Iterable[str], leaves: Iterable[str]) -> tuple[list[int], list[int]]:
    """The parameters of scopes that lie in some modules, and of those that do not; a layer that is alone has none to lose."""
    inside: list[int] = []
    around: list[int] = []
    within = tuple(f"{path}." for path in leaves)
    for path in scopes:
        scope = root.get_submodule(path)
        if next(scope.children(), None) is not None:
            (inside if path.startswith(within) else around).append(sum(parameter.numel() for parameter in scope.parameters()))
    return inside, around


def is_plain(inputs: Inputs) -> bool:
    """Whether nothing but tensors varies in the inputs: numbers and other objects would become part of the graph."""
    leaves = tree_leaves((inputs.args, dict(inputs.kwargs)))
    return any(isinstance(leaf, torch.Tensor) for leaf in leaves) and all(
        leaf is None or isinstance(leaf, (torch.Tensor, bool, str)) for leaf in leaves
    )


def scope_of(root: nn.Module, call: ModuleCall, placeholders: dict[str, str]) -> Scope:
    """What is needed to put a scope back. placeholders: names in the joint graph, by the scope's own argument names."""
    names = list(inspect.signature(root.get_submodule(call.path).forward).parameters)
    order = sorted(placeholders, key=lambda name: names.index(name) if name in names else len(names))
    return Scope(call.path, tuple((name, placeholders[name]) for name in order), call.taken)
