"""Capture: a model and example inputs become a :class:`Program`, an fx graph with the model's own hierarchy and names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from graphprune.arithmetic import callers_modes_off
from graphprune.artifact.modes import noted_modes
from graphprune.channels.tape import Step, run_error
from graphprune.collector import collector_paused
from graphprune.errors import CaptureError, TraceError, UsageError
from graphprune.extensions import load_extensions
from graphprune.ir.program import Inputs, Program, Scope, names_of
from graphprune.ir.twins import named_tensors
from graphprune.placement import Placement, placement_of
from graphprune.tracing.dead_writes import leave_out_dead_writes
from graphprune.tracing.earlier_calls import inputs_of_other_sizes
from graphprune.tracing.early_checks import bring_checks_forward
from graphprune.tracing.handing import linked, taken_arguments
from graphprune.tracing.inputs import ModuleCall, check_inputs, holds_tensor, normalise_inputs, options_of, with_names
from graphprune.tracing.models import check_plain, checked_model
from graphprune.tracing.module_tree import module_over
from graphprune.tracing.parts import outside
from graphprune.tracing.rehearsal import rehearse
from graphprune.tracing.scopes import find_scopes, named_scopes, reach, record_calls, scope_of
from graphprune.tracing.source import error_line, in_brackets
from graphprune.tracing.tracer import Tracer
from graphprune.tracing.training import Difference, Differs, Mode, follow_mode, keep_still
from graphprune.tracing.untraced import Untraceable, sentences, why_untraced
from graphprune.tracing.watching import Watch


@callers_modes_off()
def capture(
    model: nn.Module,
    example_inputs: Any,
    *,
    scopes: Sequence[str] | Sequence[ModuleCall] = (),
    source: str = "",
    on_demand: bool = False,
    announced: bool = True,
) -> Program:
    """Capture a model as a program.

    model: any ``nn.Module``; never modified. It is traced in eval mode, and the graph follows ``train()`` and
        ``eval()`` as the original does; ``program.eval_only`` says where it cannot.
    example_inputs: a tensor, a tuple or list of positional arguments, or a dict of keyword arguments. They decide control
        flow that depends on shapes; sizes that are only data stay variable.
    scopes: submodules to capture instead of the whole. Where none are named and the whole does not trace, the largest
        submodules that do are found; ``program.scopes`` says which, and ``program.untraced`` why. Given as calls, they are captured
        as they are called there; else as they are called when the model runs on its example inputs.

    announced: tell code that asks (``torch.compiler.is_compiling()``) that it is being traced, which spares it questions that a
        trace cannot answer.
    on_demand: take a model whose weights are elsewhere (dispatched by accelerate, sharded by FSDP2), too: ``program.weights`` then
        loads them, and what needs them all at once refuses the program.

    Modules that do not trace become leaves: they run as they are, and everything that touches them is frozen with
    the reason. Raises CaptureError when the model is no module, is scripted, or nothing of it traces; UsageError where its weights
    are elsewhere and cannot be loaded, or are not to be.

    >>> import torch
    >>> program = capture(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU()), torch.zeros(1, 4))
    >>> [node.op for node in program.module.graph.nodes]
    ['placeholder', 'call_module', 'call_module', 'output']
    """
    load_extensions("graphprune.rules")
    placement = _placement(root := checked_model(model), on_demand)
    root = root if placement is None else placement.plain
    check_plain(root)
    inputs = normalise_inputs(example_inputs)
    check_inputs(root, inputs)
    with collector_paused(), torch.compiler.set_stance("force_eager"):  # what the model compiles within is code like any other
        trace = _scoped(root, inputs, scopes) if scopes else _whole(root, inputs, announced)
        tracer = trace.tracer
        follows = _follow_training_mode(trace, root) if tracer.mode.consulted or tracer.questions else {}
        tracer.writer.leave_out_checks()
        leave_out_dead_writes(tracer.writer.graph, tracer.writer.tape)
        bring_checks_forward(tracer.writer.graph, tracer.writer.tape)
        module = module_over(root, tracer.writer.graph, tracer.writer.constants)
        tracer.release()
    if placement is not None and trace.scopes:
        raise UsageError(
            f"{type(root).__name__} does not trace as a whole, and scopes of a model whose weights are elsewhere are not pruned. "
            "Load the whole model."
        )
    # Options that a graph cannot take are part of it now.
    given = trace.given
    left = Inputs((), given) if inputs.kwargs and not inputs.args and not trace.scopes else Inputs(tuple(given.values()))
    program = Program(
        module,
        left,
        dict(tracer.opaque),
        source,
        trace.scopes,
        tracer.writer.tape,
        None if placement is None else placement.weights(module),
        eval_only={**noted_modes(root), **_gradients(tracer), **follows},
        untraced=trace.untraced,
    )
    tracer.writer.name_tensors(program.tensors)
    return program


def _placement(model: nn.Module, wanted: bool) -> Placement | None:
    """Where the weights are, if they are not with the model. Raises UsageError where they may not be."""
    found = placement_of(model)
    if found is not None and not wanted:
        raise UsageError(
            f"The weights of {type(model).__name__} are not in memory as a whole: accelerate or FSDP2 has placed them. "
            "Only prune, apply_plan and verify take it so; load the whole model."
        )
    return found


@dataclass(frozen=True)
class _Trace:
    """A finished trace of some calls. given: the arguments that became placeholders, by their names in the graph, in order.
    untraced: why these are parts of the model, where the user has named none."""

    tracer: Tracer
    calls: tuple[ModuleCall, ...]
    given: dict[str, Any]
    scopes: tuple[Scope, ...]
    announced: bool
    untraced: str = ""

    @property
    def cost(self) -> tuple[int, int]:
        """What is the less the better."""
        return len(self.tracer.opaque), self.tracer.checks


def _whole(root: nn.Module, inputs: Inputs, announced: bool) -> _Trace:
    call = ModuleCall("", inputs)
    try:
        trace = _least_opaque(root, (call,)) if announced else _trace(root, (call,), Mode(False), announced=False)
        return _inside_leaves(root, inputs, trace) or (_least_checked(root, trace) if announced else trace)
    except TraceError as error:
        try:
            calls, watch = _recorded(root, inputs, error.where)
        except CaptureError:
            if any(tensor.is_meta for tensor in named_tensors(root).values()):
                raise error from None  # a run without values may fail for want of them
            raise
        found = find_scopes(root, calls, lambda call: _traces(root, call))
        if not found:
            raise
        return replace(_joint_trace(root, watch, found), untraced=error.reason)


def _inside_leaves(root: nn.Module, inputs: Inputs, trace: _Trace) -> _Trace | None:
    """Scopes instead of the whole, where much of it is in modules that do not trace, and scopes reach more there than they part.

    Their boundaries stay as they are: what they part is what lies outside of those modules, but for the largest scope there.
    """
    leaves = trace.tracer.opaque
    if not leaves:
        return None
    whole, *sizes = [sum(parameter.numel() for parameter in root.get_submodule(path).parameters()) for path in ("", *leaves)]
    if 4 * sum(sizes) < whole:
        return None
    try:
        calls, watch = _recorded(root, inputs)
        found = find_scopes(root, calls, lambda call: _traces(root, call))
    except CaptureError:
        return None
    inside, around = reach(root, [call.path for call in found], leaves)
    if sum(inside) <= whole - sum(sizes) - max(around, default=0):
        return None
    _, path = max(zip(sizes, leaves, strict=True))
    return replace(_joint_trace(root, watch, found), untraced=f"module {path} does not trace: {leaves[path]}")


def _scoped(root: nn.Module, inputs: Inputs, scopes: Sequence[str] | Sequence[ModuleCall]) -> _Trace:
    calls = [scope for scope in scopes if isinstance(scope, ModuleCall)]
    if calls:
        trace = _best_trace(root, tuple(calls))
    else:
        names = names_of("scopes", scopes)
        recorded, watch = _recorded(root, inputs)
        trace = _joint_trace(root, watch, named_scopes(root, recorded, names))
    for path, target in outside(trace.tracer.writer.graph, [call.path for call in trace.calls]):
        raise CaptureError(f"Scope {path!r} uses {target}, which lies outside of it; name a submodule that holds both.")
    return trace


def _joint_trace(root: nn.Module, watch: Watch | None, calls: list[ModuleCall]) -> _Trace:
    """The trace of scopes that hand to each other what nothing else uses; of each by itself where that one fails."""
    together = calls if watch is None else linked(root, watch, calls)
    try:
        return _best_trace(root, tuple(together))
    except TraceError:
        if not any(call.taken for call in together):
            raise
        return _best_trace(root, tuple(calls))


def _recorded(root: nn.Module, inputs: Inputs, where: str = "") -> tuple[dict[str, ModuleCall], Watch | None]:
    """The calls of one real run, watched unless the model does not run so. Raises CaptureError where it does not run at all.

    where: what has failed to trace.
    """
    watch = Watch(root)
    with suppress(Exception):
        return record_calls(root, inputs, watch=watch), watch
    try:
        return record_calls(root, inputs), None
    except Exception as error:
        raise run_error(inputs, error, where or f"{type(root).__name__}.forward", error_line(error)) from error


def _traces(root: nn.Module, call: ModuleCall) -> bool:
    try:
        tracer = _best_trace(root, (call,)).tracer
    except Exception:  # also what the classes of its inputs say of values without data, as packed sequences do
        return False
    return not tracer.opaque and not tracer.writer.left_out and not list(outside(tracer.writer.graph, [call.path]))


def _best_trace(root: nn.Module, calls: tuple[ModuleCall, ...]) -> _Trace:
    """The trace that leaves the fewest modules opaque, and then the one that checks the fewest sizes."""
    return _least_checked(root, _least_opaque(root, calls))


def _least_checked(root: nn.Module, found: _Trace) -> _Trace:
    """A trace, or one after a call of other sizes that checks fewer: code that keeps what it has made compares with that."""
    if not found.tracer.compares_what_it_keeps:
        return found
    others = [ModuleCall(call.path, inputs) for call in found.calls for inputs in inputs_of_other_sizes(call.inputs)]
    traces = (_trace_after(other, root, found.calls, found.announced) for other in others)
    better = (trace for trace in traces if trace is not None and trace.cost < found.cost)
    return next(better, found)


def _trace_after(other: ModuleCall, root: nn.Module, calls: tuple[ModuleCall, ...], announced: bool) -> _Trace | None:
    """A trace after another call; None where the model does not take that one, or keeps what was computed of its values."""
    try:
        before = _trace(root, (other,), Mode(False), announced=announced).tracer
        trace = None if before.keeps_values else _trace(root, calls, Mode(False), announced=announced, after=before)
    except CaptureError:
        return None
    before.release()
    return trace


def _least_opaque(root: nn.Module, calls: tuple[ModuleCall, ...]) -> _Trace:
    """The trace of a model that knows of it, or of one that does not where that one leaves fewer modules opaque."""
    try:
        knowing = _trace(root, calls, Mode(False), announced=True)
    except CaptureError as error:
        try:
            return _trace(root, calls, Mode(False), announced=False)
        except CaptureError:
            raise error from None
    if not knowing.tracer.opaque:
        return knowing
    try:
        unknowing = _trace(root, calls, Mode(False), announced=False)
    except CaptureError:
        return knowing
    return min(knowing, unknowing, key=lambda found: len(found.tracer.opaque))


def _trace(
    root: nn.Module,
    calls: tuple[ModuleCall, ...],
    mode: Mode,
    *,
    announced: bool,
    earlier: Tracer | None = None,
    still: Iterable[str] = (),
    after: Tracer | None = None,
) -> _Trace:
    tracer = Tracer(root, mode, earlier, still, after)
    try:
        return _traced(tracer, root, calls, announced)
    except Differs:
        tracer.release()
        raise


def _traced(tracer: Tracer, root: nn.Module, calls: tuple[ModuleCall, ...], announced: bool) -> _Trace:
    given: dict[str, Any] = {}
    scopes: list[Scope] = []
    results: dict[str, Any] = {}
    for call in calls:
        prefix = f"{call.path.replace('.', '_')}_" if call.path else ""
        names, placeholders = {}, {}
        arguments = [*with_names(root.get_submodule(call.path), call.inputs.args), *call.inputs.kwargs.items()]
        taken = {one.argument for one in call.taken}
        for name, value in arguments:
            names[name] = prefix + name if holds_tensor(value) and name not in taken else ""
            if names[name]:
                given[names[name]] = value
                # Integers that a scope is given may be made by the code around it, of activations.
                placeholders[name] = tracer.placeholder(names[name], value, decides=not call.path)
        if call.path:
            scopes.append(scope_of(root, call, names))
        else:
            options = options_of(arguments, len(call.inputs.args))
            tracer.options(options)
            given |= options
        try:
            placeholders |= taken_arguments(tracer.hand_over, call, dict(arguments), results)
            results[call.path] = tracer.run(call, placeholders, announced=announced)
        except Exception as error:
            raise _trace_error(root, call, tracer, error) from error
    try:
        tracer.finish(tuple(results.values()) if scopes else results[""])
    except Untraceable as error:
        raise _trace_error(root, calls[-1], tracer, error) from error
    return _Trace(tracer, calls, given, tuple(scopes), announced)


def _trace_error(root: nn.Module, call: ModuleCall, tracer: Tracer, error: Exception) -> TraceError:
    where = f"module {tracer.failed}" if tracer.failed else f"{type(root.get_submodule(call.path)).__name__}.forward"
    place = error_line(error)
    why = why_untraced(error)
    return TraceError(
        f"{where} does not trace{f' at {place}' if place else ''}: {sentences(error)}",
        where,
        f"{where} does not trace: {why}{'' if in_brackets(place) in why else in_brackets(place)}",
    )


def _gradients(tracer: Tracer) -> dict[str, str]:
    """What the model's code says about gradients and the graph does not, besides the modules that run as they are."""
    as_they_are = tuple(f"{path}." for path in tracer.opaque)
    return {
        path: reason
        for path, reason in tracer.gradients.found(tracer.writer.tape).items()
        if not f"{path}.".startswith(as_they_are)
    }


def _follow_training_mode(trace: _Trace, root: nn.Module) -> dict[str, str]:
    """Make the graph follow the mode. Returns the modules whose own code does what it does in eval mode, with the reason."""
    found, stays = _train_mode(trace, root)
    nodes = list(trace.tracer.writer.graph.nodes)
    for question in trace.tracer.questions:
        if question.path in stays:
            keep_still(nodes[question.start.nodes : question.end.nodes])
    before: dict[str, list[Step]] = defaultdict(list)
    for node, step in follow_mode(found):
        before[node.name].append(step)
    steps = trace.tracer.writer.tape.steps
    steps[:] = [one for step in steps for one in (*before[step.node], step)]
    return stays


def _train_mode(trace: _Trace, root: nn.Module) -> tuple[list[Difference], dict[str, str]]:
    """What is different in train mode, and what cannot follow it."""
    tracer = trace.tracer
    if not tracer.mode.consulted:
        found, stays = rehearse(root, tracer, trace.announced)
        if not stays:
            return found, {}
    try:
        return _run_in_train_mode(trace, root), {}
    except Differs as differs:
        reason = str(differs)
    if not tracer.mode.consulted:
        return found, stays
    # Code besides the modules that can be asked alone asks for the mode too. It follows at most where those follow.
    found, stays = rehearse(root, tracer, trace.announced)
    if stays:
        try:
            return _run_in_train_mode(trace, root, stays), stays
        except Differs as differs:
            reason = str(differs)
    return found, {type(root).__name__: reason} | stays


def _run_in_train_mode(trace: _Trace, root: nn.Module, still: Iterable[str] = ()) -> list[Difference]:
    """What differs where all but the modules in ``still`` run in train mode. Raises Differs where the graph cannot follow."""
    try:
        other = _trace(root, trace.calls, Mode(True), announced=trace.announced, earlier=trace.tracer, still=still).tracer
    except CaptureError as error:
        raise Differs(str(error)) from error
    other.release()
    return other.writer.found
