"""Carrying the state of a training over a cut: momentum, moments and averaged weights lose the slices that the weights lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn

from graphprune.errors import PlanError, UsageError
from graphprune.ir.twins import named_tensors, unwrapped
from graphprune.plans.plan import Plan

_Key: TypeAlias = int | str

_WRAPPERS: Final = ("module.", "_orig_mod.")  # what DDP, AveragedModel and torch.compile put before names


def slice_state(state: Any, plan: Plan, before: nn.Module, after: nn.Module) -> tuple[Any, list[str]]:
    """The state of a training of ``before``, as the training of the slim ``after`` can go on from it.

    state: any nesting of mappings, lists and tuples. In it are found
        - state dicts of optimisers (``state`` and ``param_groups``): what an optimiser keeps in the shape of a parameter
          (momentum, moments) is sliced as the parameter, numbers stay. Parameters are known by ``param_names``, where the
          optimiser was given named parameters, by name where they are keyed so, else by order and shape.
        - mappings from names of the model's tensors to tensors (averaged weights), which are sliced as the model's.
        All else stays. Nothing is changed in place, and what was found shares no memory with the old state.
    plan: its kept indices are those of ``before``.

    Returns the new state, and one sentence for each thing that could not be carried over. A parameter whose state has other
    shapes (factored moments) starts afresh. Where an optimiser's parameters cannot be told apart, or new ones have no known
    place in its groups, the state is None: the training starts with a fresh one.

    Raises PlanError where the plan does not lead from the one model to the other, and UsageError for what has a state instead of
    being one, such as an optimiser.
    """
    slicer = _Slicer(plan, unwrapped(before), unwrapped(after))
    try:
        result = slicer.visit(state)
    except (_Unknown, RecursionError) as error:
        reason = str(error) if isinstance(error, _Unknown) else "the old one holds itself, or is nested too deep"
        return None, [*slicer.notes, f"The training starts from a fresh state: {reason}."]
    return result, slicer.notes


def in_short(notes: Sequence[str]) -> str:
    """The last of the notes of :func:`slice_state`, which speaks of the whole state where one does, and how many more there are."""
    more = f" And {len(notes) - 1} more, in the journal." if len(notes) > 1 else ""
    return f"{notes[-1]}{more}" if notes else ""


class _Unknown(Exception):
    """Why an optimiser's state cannot be carried over as a whole."""


class _Slicer:
    def __init__(self, plan: Plan, before: nn.Module, after: nn.Module) -> None:
        self.kept = plan.kept
        self.tensors, self.slim = named_tensors(before), named_tensors(after)
        self.old, self.new = dict(before.named_parameters()), dict(after.named_parameters())
        self.notes: list[str] = []
        for name in self.kept.keys() & self.tensors.keys() & self.slim.keys():
            have, slim = list(self.tensors[name].shape), list(self.slim[name].shape)
            kept = self.kept[name]
            wanted = [len(kept.get(axis, range(size))) for axis, size in enumerate(have)]
            if wanted != slim or any(axis >= len(have) or max(indices) >= have[axis] for axis, indices in kept.items()):
                raise PlanError(
                    f"The plan does not make {name} of shape {slim} out of {have}. Give the models before and after this plan."
                )

    def plain(self, name: str) -> str:
        """A tensor's name in the model, without what wrappers of the model put before it."""
        while name not in self.tensors and name.startswith(_WRAPPERS):
            name = name.partition(".")[2]
        return name

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """The slices of a tensor of the shape of ``name`` that stay, in memory of their own: optimisers write in place."""
        result = tensor.detach().clone()
        for axis, indices in self.kept.get(name, {}).items() if tensor.dim() else ():
            result = result.index_select(axis, torch.tensor(indices, device=result.device))
        return result

    # -- nesting -------------------------------------------------------------------------------------------------------------

    def visit(self, state: Any) -> Any:
        if isinstance(state, Mapping):
            if state.keys() >= {"state", "param_groups"}:
                return _Optimiser(self, state).sliced()
            return {key: value for key, item in state.items() if (value := self.entry(key, item)) is not _DROPPED}
        if isinstance(state, (list, tuple)):
            items = [self.visit(item) for item in state]
            return type(state)(*items) if hasattr(state, "_fields") else type(state)(items)
        if callable(getattr(state, "state_dict", None)):
            raise UsageError(f"A {type(state).__name__} itself cannot be cut. Give its state_dict(), and load what comes back.")
        return state

    def entry(self, key: Any, item: Any) -> Any:
        name = self.plain(key) if isinstance(key, str) else ""
        tensor = self.tensors.get(name)
        if tensor is None or not isinstance(item, Tensor):
            return self.visit(item)
        if item.shape == tensor.shape and name in self.slim:
            return self.cut(name, item)
        why = f"its shape is {list(item.shape)}" if name in self.slim else "the slim model has no such tensor"
        self.notes.append(f"The averaged {name} is dropped: {why}.")
        return _DROPPED


_DROPPED: Final = object()


class _Optimiser:
    """The state dict of one optimiser."""

    def __init__(self, slicer: _Slicer, state: Mapping[str, Any]) -> None:
        self.slicer = slicer
        self.entries: Mapping[_Key, Any] = state["state"]
        self.groups: Sequence[Mapping[str, Any]] = state["param_groups"]
        self.rest = {key: value for key, value in state.items() if key not in ("state", "param_groups")}
        self.keyed = any(isinstance(key, str) for group in self.groups for key in group["params"])
        self.names = self._identify()

    def sliced(self) -> dict[str, Any]:
        groups, entries, count = [], dict[_Key, Any](), 0
        keys_before = {name: key for key, name in self.names.items()}
        for group in self.groups:
            names = self._ordered([self.names[key] for key in group["params"]])
            keys: list[_Key] = (
                [keys_before.get(name, name) for name in names] if self.keyed else [*range(count, count + len(names))]
            )
            count += len(names)
            for name, key in zip(names, keys, strict=True):
                entry = self._entry(name, self.entries.get(keys_before[name]) if name in keys_before else None)
                if entry is not None:
                    entries[key] = entry
            named = {"param_names": names} if "param_names" in group else {}
            groups.append({**group, **named, "params": keys})
        return {"state": entries, "param_groups": groups, **self.rest}

    def _ordered(self, names: list[str]) -> list[str]:
        """The names of a group that the slim model has, in its order if they were in that of the model before."""
        old, new, notes = self.slicer.old, self.slicer.new, self.slicer.notes
        fresh = [name for name, parameter in new.items() if name not in old and parameter.requires_grad]
        if fresh and len(self.groups) > 1:
            raise _Unknown(f"{fresh[0]} is new, and the optimiser has {len(self.groups)} groups of parameters")
        notes += [f"The optimiser's state of {n} is dropped: the slim model has no such parameter." for n in names if n not in new]
        notes += [f"The optimiser's state of {name} starts afresh: the parameter is new." for name in fresh]
        place = {name: index for index, name in enumerate(old)}
        if names == sorted(names, key=place.__getitem__):
            return [name for name in new if name in {*names, *fresh}]
        return [name for name in names if name in new] + fresh

    def _entry(self, name: str, entry: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """What the optimiser keeps for one parameter; None where it keeps nothing, or something that cannot be sliced."""
        shape = self.slicer.old[name].shape if name in self.slicer.old else None
        if not entry:
            return None
        for key, value in entry.items() if name in self.slicer.kept else ():
            if _is_array(value) and value.shape != shape:
                self.slicer.notes.append(
                    f"The optimiser's state of {name} starts afresh: its {key} has the shape {list(value.shape)}, "
                    "which is not that of the parameter."
                )
                return None
        return {key: self.slicer.cut(name, value) if isinstance(value, Tensor) else value for key, value in entry.items()}

    # -- which parameter is which ----------------------------------------------------------------------------------------------

    def _identify(self) -> dict[_Key, str]:
        """The parameter's name for each key of the state dict."""
        names: dict[_Key, str] = {}
        for group in self.groups:
            given = group["params"] if self.keyed else group.get("param_names", ())
            names.update(zip(group["params"], map(self.slicer.plain, given), strict=False))
        if len(names) < sum(len(group["params"]) for group in self.groups):
            return self._by_order()
        unknown = next((name for name in names.values() if name not in self.slicer.old), None)
        if unknown is not None:
            raise _Unknown(f"the optimiser holds {unknown}, which is no parameter of the model")
        return names

    def _by_order(self) -> dict[_Key, str]:
        """Parameters in the order of the model, all or those that are trained, dealt out to the groups by shape."""
        queues = [list(group["params"]) for group in self.groups]
        total = sum(map(len, queues))
        trained = [name for name, parameter in self.slicer.old.items() if parameter.requires_grad]
        order = trained if len(trained) == total else list(self.slicer.old)
        found: dict[_Key, str] = {}
        for name in order:
            shape = self.slicer.old[name].shape
            fitting = [queue for queue in queues if queue and self._shape(queue[0]) in (None, shape)]
            if len(fitting) != 1:
                break
            found[fitting[0].pop(0)] = name
        if len(found) < len(order) or any(queues):
            raise _Unknown("the optimiser's parameters cannot be told apart. Build it on model.named_parameters()")
        return found

    def _shape(self, key: _Key) -> torch.Size | None:
        """The shape of a parameter, as its state shows it; None where it shows none, or several (factored moments)."""
        shapes = {value.shape for value in self.entries.get(key, {}).values() if _is_array(value)}
        return shapes.pop() if len(shapes) == 1 else None


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0
