"""The backend: each graph that Dynamo hands over is lifted, pruned, and handed on to the inner backend."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Final
from warnings import warn

import torch
from torch import Tensor, fx, nn

from graphprune.api import run_pipeline
from graphprune.compiling.lifting import Lifted, lift
from graphprune.compiling.named import NamedInParts
from graphprune.compiling.parts import names_in_plan, part_of_plan
from graphprune.compiling.runtime import Compiled, Runtime, Slice, functional, written_buffers
from graphprune.errors import CaptureError, CheckError, PlanError, UsageError
from graphprune.ir.twins import unwrapped
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.pipeline.analysis_manager import AnalysisManager
from graphprune.plans.plan import Plan
from graphprune.plans.reading import read_plan
from graphprune.result import PruneResult
from graphprune.tracing import capture

_SELECTION: Final = (
    *("criterion", "reduction", "normalise", "select", "ranking", "round_to", "min_channels", "max_ratio", "keep"),
    *("exclude", "policy", "seed"),
)
_DROPOUT: Final = {"dropout": "allow"}  # graphs of train mode have it inside


@dataclass(frozen=True)
class _Decision:
    """A plan for some tensors, which are held weakly."""

    tensors: tuple[weakref.ref[Tensor], ...]
    plan: Plan

    def is_for(self, tensors: Sequence[Tensor]) -> bool:
        return len(tensors) == len(self.tensors) and all(ref() is tensor for ref, tensor in zip(self.tensors, tensors, strict=True))


@dataclass(frozen=True, eq=False)
class Backend:
    """A backend of ``torch.compile`` that prunes what it compiles.

    plan: a plan of the model, or the file of one. target: instead of a plan, what must remain, as in
        :func:`graphprune.prune`. selection: options of that function for targets, such as ``criterion``; ``keep`` may go alone.
    inner: what compiles the slim graph: the name of a Dynamo backend, or a callable.
    model: the model that the plan is for; needed only where Dynamo compiles parts that occur in it several times.
    mode: one of ``torch.compile`` for the inner backend ``inductor``, such as ``reduce-overhead``.
    verify: prove each rewrite of a graph in eval mode against the masked original. Graphs with random operators or running
        statistics, those of train mode, have no such proof.

    ``decided`` holds the plans so far, one for each part of a model that Dynamo compiles: what was decided for some weights stays
    decided when Dynamo compiles them again. The model keeps its full weights.

    Raises UsageError for options that do not go together.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    >>> backend = Backend(target="channels=50%", inner="eager")
    >>> torch.compile(model, backend=backend)(torch.zeros(2, 8)).shape
    torch.Size([2, 4])
    >>> [len(plan.kept["0.weight"][0]) for plan in backend.plans]
    [16]
    """

    plan: Plan | str | Path | None = None
    target: str | Mapping[str, float | str] | None = None
    inner: str | Callable[..., Any] = "inductor"
    model: nn.Module | None = field(default=None, repr=False)
    verify: bool = True
    mode: str | None = None
    selection: Mapping[str, Any] = field(default_factory=dict)
    decided: list[_Decision] = field(default_factory=list, init=False, repr=False)
    _named: NamedInParts = field(default_factory=NamedInParts, init=False, repr=False)

    def __post_init__(self) -> None:
        strange = sorted(self.selection.keys() - set(_SELECTION))
        if strange or (self.selection and self.plan is not None):
            name = strange[0] if strange else min(self.selection)
            raise UsageError(
                f"The backend has no option {name!r}{'' if strange else ' beside a plan'}. Options are plan, target, inner, mode, "
                f"model and verify; with a target also {', '.join(_SELECTION)}, of which keep goes without one, too."
            )
        if (self.plan is None) == (self.target is None and not self.selection.get("keep")):
            raise UsageError(
                "The backend takes a plan or a target. Give one of options={'plan': ...} and options={'target': ...}, or say what "
                "stays of some layers with options={'keep': ...}."
            )
        if isinstance(self.plan, (str, Path)):
            object.__setattr__(self, "plan", read_plan(self.plan))
        if self.model is not None:
            object.__setattr__(self, "model", unwrapped(self.model))

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Backend:
        """The backend that these options describe, those of the selection among them."""
        own = {each.name for each in fields(cls) if each.init} - {"selection"}
        return cls(
            **{name: value for name, value in options.items() if name in own},
            selection={name: value for name, value in options.items() if name not in own},
        )

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plans that were carried out so far."""
        return tuple(decision.plan for decision in self.decided)

    def __call__(self, module: fx.GraphModule, arguments: Sequence[Any], *, mode: str | None = None) -> Compiled:
        """Compile a graph of Dynamo. What cannot be pruned is compiled as it is, with a warning that says why."""
        inner = _inner(self.inner, mode or self.mode)
        self._named.parts |= _break(module) is not None
        try:
            result = self._pruned(module, arguments)
        except (CaptureError, CheckError, PlanError) as error:
            _say(f"{_described(module)} is compiled as it is, without pruning: {error}")
            result = None
        if result is None:
            compiled: Compiled = inner(module, arguments)
            return compiled
        lifted, found = result
        return self._compile(module, arguments, lifted, found, inner)

    # -- pruning ---------------------------------------------------------------------------------------------------------

    def _pruned(self, module: fx.GraphModule, arguments: Sequence[Any]) -> tuple[Lifted, PruneResult] | None:
        """The graph, and its slim twin; None where there is nothing to prune."""
        lifted = lift(module, arguments)
        tensors = [arguments[place] for place in lifted.tensors.values()]
        if not any(isinstance(tensor, nn.Parameter) for tensor in tensors) or not lifted.inputs.args:
            return None
        if torch.is_grad_enabled() and any(node.target is torch._C._set_grad_enabled for node in module.graph.nodes):
            raise CaptureError("it turns gradients on or off inside, which the rewritten graph would not")
        with torch.no_grad():
            key = [tensor for tensor in tensors if isinstance(tensor, nn.Parameter)]
            known = next((decision.plan for decision in self.decided if decision.is_for(key)), None)
            plan = self.plan if known is None else known
            assert not isinstance(plan, (str, Path))
            result = self._selected(lifted) if plan is None else self._applied(module, lifted, plan, whole=known is None)
        if known is None and result is not None:
            self.decided.append(_Decision(tuple(map(weakref.ref, key)), _of_tensors(result.plan, lifted.tensors)))
        _say_break(module)
        if plan is None and self._named.missing:
            names = ", ".join(map(repr, self._named.missing))
            _say(f"{_described(module)} has no layers to which {names} applies, nor had a graph before it. Check the names.")
        return None if result is None or not result.plan.kept else (lifted, result)

    def _selected(self, lifted: Lifted) -> PruneResult | None:
        verify = self.verify and not _of_train_mode(lifted)
        options = {**self.selection, "policy": _DROPOUT | dict(self.selection.get("policy") or {})}
        return self._named.prune(lifted, target=self.target, verify=verify, source="torch.compile", **options)

    def _applied(self, module: fx.GraphModule, lifted: Lifted, plan: Plan, *, whole: bool) -> PruneResult:
        """A plan carried out, as far as it lies within the graph. whole: it is for the model, not for this graph."""
        names = names_in_plan(plan, lifted.module, self.model if whole else None)
        analyses = AnalysisManager()
        program = capture(lifted.module, lifted.inputs, source="torch.compile").with_(policy={**plan.policy, **_DROPOUT})
        part, refused = part_of_plan(plan, program.module, analyses.get(program, ChannelGroups), names)
        if refused:
            name, reason = next(iter(refused.items()))
            more = f" and {len(refused) - 1} more" if len(refused) > 1 else ""
            _say(f"{_described(module)} keeps channels of {name}{more} that the plan removes: {reason}.")
        steps = "rewrite,verify" if self.verify and not _of_train_mode(lifted) else "rewrite"
        return run_pipeline(program.with_(plan=part), steps, analyses=analyses)

    # -- compiling -------------------------------------------------------------------------------------------------------

    def _compile(
        self, module: fx.GraphModule, arguments: Sequence[Any], lifted: Lifted, result: PruneResult, inner: Compiled
    ) -> Compiled:
        written = written_buffers(result.graph, lifted.inputs)
        slices = tuple(Slice(result.plan, name, name in written) for name in lifted.tensors)
        tensors = [arguments[place] for place in lifted.tensors.values()]
        with torch.no_grad():
            given = [_like(each.of(tensor), tensor) for each, tensor in zip(slices, tensors, strict=True)]
        examples = [*_static(given), *(arguments[place] for place in lifted.given)]
        compiled: Compiled = inner(functional(result.graph, list(lifted.tensors)), examples)
        accepts = _Accepts(
            _Decision(tuple(map(weakref.ref, tensors)), result.plan), module, self.plan is not None and not self.model
        )
        return Runtime(compiled, lifted, slices, accepts, module)


class _Accepts:
    """Whether a decision holds for tensors: for those it was made for; by a plan of names, for all of these names.

    Dynamo uses what it has compiled for every module of one class and of equal shapes.
    """

    def __init__(self, decision: _Decision, module: fx.GraphModule, by_name: bool) -> None:
        self._decision, self._module, self._by_name = decision, module, by_name
        self._said = False

    def __call__(self, tensors: Sequence[Tensor]) -> bool:
        if self._by_name or self._decision.is_for(tensors):
            return True
        if not self._said:
            self._said = True
            _say(
                f"{_described(self._module)} runs as it is, without pruning, for other weights than it was pruned for: Dynamo uses "
                "it for all modules of one class. Compile without graph breaks, or prune with graphprune.prune."
            )
        return False


def _of_tensors(plan: Plan, names: Container[str]) -> Plan:
    """A plan without what it says of constants of the graph, which are of one shape of inputs. names: of its other tensors."""
    own = {part: {name: what for name, what in getattr(plan, part).items() if name in names} for part in ("kept", "model")}
    return plan.model_copy(update=own)


def _of_train_mode(lifted: Lifted) -> bool:
    """Whether a graph has random operators or writes to its buffers."""
    steps = capture(lifted.module, lifted.inputs).tape
    assert steps is not None
    random = any(torch.Tag.nondeterministic_seeded in run.operator.tags for step in steps.steps for run in step.operations)
    return random or bool(written_buffers(lifted.module, lifted.inputs))


def _like(found: Tensor, tensor: Tensor) -> Tensor:
    """A slice as an example of itself: a leaf that asks for gradients if its tensor does."""
    return found if found is tensor else found.detach().requires_grad_(tensor.requires_grad)


def _static(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Examples of these tensors for the compilation that is going on, which learns that their sizes do not vary."""
    context = torch._guards.TracingContext.try_get()
    if context is None or context.fake_mode is None:
        return list(tensors)
    mode = context.fake_mode
    return [tensor if tensor in context.tensor_to_context else mode.from_tensor(tensor, static_shapes=True) for tensor in tensors]


def _inner(inner: str | Callable[..., Any], mode: str | None) -> Compiled:
    found: Compiled = torch._dynamo.lookup_backend(inner)
    if mode in (None, "default"):
        return found
    modes: Mapping[str, Mapping[str, Any]] = torch._inductor.list_mode_options()
    if inner != "inductor" or mode not in modes:
        raise UsageError(f"mode={mode!r} is none of the inner backend {inner!r}. Modes of 'inductor': {', '.join(modes)}.")
    return partial(found, config_patches=dict(modes[mode]))


def _described(module: fx.GraphModule) -> str:
    reason = getattr(module, "compile_subgraph_reason", None)
    stack = getattr(reason, "user_stack", None)
    return f"The graph that ends at {stack[-1].filename}:{stack[-1].lineno}" if stack else "A graph of Dynamo"


def _break(module: fx.GraphModule) -> str | None:
    """The graph break that a graph ends in, if it does."""
    reason = getattr(module, "compile_subgraph_reason", None)
    return None if reason is None or not reason.graph_break else str(reason.reason).strip().splitlines()[0]


def _say_break(module: fx.GraphModule) -> None:
    if (first := _break(module)) is not None:
        _say(
            f"{_described(module)} ends in a graph break ({first}): it is pruned by itself, and what it passes on stays as wide as "
            "it is. torch.compile(fullgraph=True) refuses breaks."
        )


def _say(text: str) -> None:
    warn(text, UserWarning, stacklevel=2)


# Dynamo hands the backend of a name the same options at each compilation, and nothing else to keep its decisions with.
_BACKENDS: list[tuple[Mapping[str, Any], Backend]] = []


def compile_backend(
    module: fx.GraphModule, arguments: Sequence[Any], *, options: Mapping[str, Any] | None = None, mode: str | None = None
) -> Compiled:
    """The backend ``"graphprune"`` of ``torch.compile``: ``torch.compile(model, backend="graphprune", options={"target": ...})``.

    options: those of :class:`Backend`, with the options of a selection beside them. mode: torch.compile takes options or a mode, so
    it is one of the options. Raises UsageError as that does.
    """
    if mode is not None:
        raise UsageError("torch.compile takes no mode beside options, which the backend needs. Write options={'mode': ..., ...}.")
    given = {} if options is None else options
    backend = next((backend for known, backend in _BACKENDS if known is given), None)
    if backend is None:
        backend = Backend.of(given)
        _BACKENDS.append((given, backend))
    return backend(module, arguments)
