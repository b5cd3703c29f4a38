"""The public calls: prune, apply_plan, verify. (Files are in :mod:`graphprune.saving`.)"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import fx, nn

from graphprune.arithmetic import callers_modes_off
from graphprune.calibration import Calibration, no_data
from graphprune.channels.groups import Groups
from graphprune.collector import collector_paused
from graphprune.errors import CaptureError, PipelineError, PlanError, UsageError, VerificationError, unknown
from graphprune.ir.program import Inputs, Program, Scope
from graphprune.ir.twins import checked_module, named_tensors, unwrapped
from graphprune.ir.weights import Weights
from graphprune.latency.environment import environment_of
from graphprune.latency.table import LatencyTable
from graphprune.own_class.limits import within_own_code
from graphprune.own_class.seat import in_own_class
from graphprune.passes.analysis.channels import ChannelGroups, ChannelsPass
from graphprune.passes.calibration.supply import SYNTHETIC, calibrated
from graphprune.passes.latency.source import timed
from graphprune.passes.rewrite.compensate import CompensatePass
from graphprune.passes.rewrite.fold_constants import FoldConstantsPass
from graphprune.passes.rewrite.recalibrate import RecalibratePass
from graphprune.passes.rewrite.rewrite import RewritePass
from graphprune.passes.scoring.score import ScorePass
from graphprune.passes.selection.levers import is_stating
from graphprune.passes.selection.select import selection_pass
from graphprune.passes.selection.target import asked_for
from graphprune.passes.verification.captured import check_captured, check_runs
from graphprune.passes.verification.verify import VerifyPass, compare
from graphprune.pipeline.analysis_manager import AnalysisManager
from graphprune.pipeline.observers import Observer
from graphprune.pipeline.pass_base import Pass
from graphprune.pipeline.pass_manager import PassManager
from graphprune.pipeline.text import format_pipeline, parse_pipeline
from graphprune.placement import placement_of
from graphprune.plans.plan import Plan
from graphprune.plans.reading import read_plan
from graphprune.result import PruneResult, Report
from graphprune.surveys.profiling import profile_program
from graphprune.tracing import capture, joined, normalise_inputs, put_back
from graphprune.verification import Verification

if TYPE_CHECKING:
    from graphprune.streaming.family import Family

#: What ``compensate`` may be.
COMPENSATIONS: Mapping[str, Callable[[], Pass]] = {"least-squares": CompensatePass, "constants": FoldConstantsPass}


def channel_groups(program: Program) -> Groups:
    """The channel groups of a captured model, under its ``exclude`` and ``policy``. Raises UsageError where these do not fit, and
    CaptureError for a model that is not captured.

    >>> import torch
    >>> groups = channel_groups(capture(torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2)), torch.zeros(1, 8)))
    >>> [group.name for group in groups.prunable]
    ['0']
    """
    if not isinstance(program, Program):
        raise CaptureError(f"Expected a captured model, got {type(program).__name__}: graphprune.capture(model, inputs) makes one.")
    return AnalysisManager().get(program, ChannelGroups)


@callers_modes_off()
def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    target: str | Mapping[str, float | str] | None = None,
    keep: Mapping[str, float | str] | None = None,
    criterion: str = "l2",
    reduction: str = "default",
    normalise: str = "max",
    share: str = "none",
    select: str = "select",
    ranking: str | None = None,
    widths: str = "any",
    round_to: int | Literal["auto"] = 1,
    min_channels: int = 1,
    max_ratio: float = 1.0,
    exclude: Sequence[str] = (),
    scopes: Sequence[str] = (),
    policy: Mapping[str, str] | None = None,
    data: Calibration | Iterable[Any] | str | None = None,
    latency: LatencyTable | str | Path | None = None,
    measure: bool = True,
    seed: int = 0,
    verify: bool = True,
    compensate: str | None = None,
    recalibrate: bool = False,
    keep_class: bool = False,
    observers: Sequence[Observer] = (),
    source: str = "",
) -> PruneResult:
    """Prune a model: capture, score, select, rewrite, verify. The model itself is not changed.

    model: any module; one that accelerate has dispatched or FSDP2 has sharded, too, if it traces as a whole, and the slim one is
        placed alike. example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments.
    target: what must remain: ``macs=50%``, ``params=2M``, ``channels=0.5``, ``weight_bytes=20MB``, ``memory=30MiB`` (peak
        activations at the example inputs), ``latency=3.2ms``, or a mapping of several. By default ``macs=50%``; with ``keep`` none.
    keep: what stays of some layers, whatever the target: ``{"layer4.*": "30%", "layer1.0.conv1": 48}``. A pattern names layers that
        make channels, or a group of such; an amount is a share or a number of channels. Of two for one group the later counts.
    criterion, reduction, normalise, share: see :class:`~graphprune.passes.scoring.score.ScorePass`.
    data: batches that the model takes, for criteria that look at activations or gradients, and for compensation: a DataLoader, a
        list, or the name of a file, folder or callable (see :func:`~graphprune.sources.data.load_calibration`), or ``synthetic``
        for data made from batch-norm statistics. A :class:`Calibration` says more.
    select: the selection pass: ``select``, which removes in one order of all units (its ranking is an option of its own),
        ``knapsack``, ``greedy`` or ``threshold``.
    ranking, round_to, min_channels, max_ratio: see :class:`~graphprune.passes.selection.select.SelectPass`. The ranking is
        ``global`` by default, and ``local`` with ``widths="config"``.
    widths: ``any``, or ``config``: only such as a config can state, for a model of transformers. With ``keep_class`` the slim model
        has this config, so that ``from_pretrained`` loads what its ``save_pretrained`` writes.
    latency: for a target on it, the model's table (:func:`~graphprune.surveys.profiling.profile`), or the file of one; by default
        it is measured first, which takes minutes. What is chosen by its predictions is timed here and put right until it is within
        1 % of the target. measure: False for the predictions alone, as for a table of another machine.
    exclude, policy: see :class:`~graphprune.passes.analysis.channels.ChannelsPass`.
    scopes: submodules to prune in place, see :func:`~graphprune.tracing.capture`.
    compensate: what layers do about inputs that they lost, after the proof: ``least-squares`` gives them the weights that come
        nearest to their old outputs on the data; ``constants`` folds removed constants into biases, exactly and without data.
    recalibrate: estimate batch-norm statistics anew on the data, last of all. It helps where nothing is compensated.
    keep_class: give back a copy of the model itself, of its own class, with smaller layers in it. What its Python code could not
        follow (a width that it states) stays as wide as it is; the groups say why.
    verify: prove the rewrite against the masked original. seed: of random criteria and of verification.
    source: what the model is, for the record in reports and artifacts.

    Raises CaptureError, UsageError, TargetError, RewriteError or VerificationError.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    >>> result = prune(model, torch.zeros(1, 8), target="channels=50%")
    >>> result.model.get_submodule("0").out_features
    16
    """
    targets, stating = asked_for(target, keep), is_stating(widths)
    if stating and select != "select":
        raise UsageError(f'The pass {select!r} takes any widths; widths="config" goes with select="select". Leave out one of them.')
    ranking = ranking or ("local" if stating else "global")
    floors = {"round_to": round_to, "min_channels": min_channels, "max_ratio": max_ratio, "keep": keep or {}}
    passes: list[Pass] = [
        ScorePass(criterion=criterion, reduction=reduction, normalise=normalise, share=share, seed=seed),
        selection_pass(select, ranking, {**floors, **targets}),
        RewritePass(),
        *([VerifyPass(seed=seed)] if verify else []),
        *([] if compensate is None else [_compensation(compensate)]),
        *([RecalibratePass()] if recalibrate else []),
    ]
    asking = next((step.name for step in passes if "calibration" in step.needs), None)
    if asking is not None and data is None:
        raise no_data(f"Pass {asking!r}")
    captured = _captured(model, example_inputs, verify, scopes=scopes, source=source)
    if captured.weights is not None and ("latency" in targets or data == SYNTHETIC):
        raise UsageError("A latency target and synthetic data need all weights in memory, and this model's are elsewhere.")
    program = calibrated(captured, data, seed=seed, whole=(model, example_inputs))
    program = program.under(exclude, policy)
    analyses = AnalysisManager()
    if keep_class:
        program = within_own_code(unwrapped(model), normalise_inputs(example_inputs), program, analyses)
    family = _family(model, example_inputs, stating, keep_class)
    if stating and family is not None:
        from graphprune.streaming.loaded import bound  # which imports this module

        program = bound(program, analyses.get(program, ChannelGroups), family)
    if "latency" in targets and latency is None:
        device = next((parameter.device.type for parameter in model.parameters()), "cpu")
        groups = analyses.get(program, ChannelGroups)
        latency = profile_program(program, groups, environment_of(program.module, device))
    if latency is not None:
        program = timed(program, latency, measure=measure, analyses=analyses)
    steps = [ChannelsPass(exclude=program.exclude, policy=program.policy), *passes]
    result = run_pipeline(program, steps, observers=observers, model=model, analyses=analyses)
    return _finished(result, program, model, normalise_inputs(example_inputs), verify, keep_class, family)


def _captured(model: nn.Module, example_inputs: Any, verify: bool, **how: Any) -> Program:
    """The model captured, and if it is to be verified, compared with it. Code may do something else where it knows of a trace: then
    it is not told. Raises VerificationError where that does not help, either."""
    program = capture(model, example_inputs, on_demand=True, **how)
    if not verify:
        return program
    root, inputs = unwrapped(model), normalise_inputs(example_inputs)
    try:
        check_captured(root, inputs, program)
    except VerificationError as error:
        try:
            program = capture(model, example_inputs, on_demand=True, announced=False, **how)
        except CaptureError:
            raise error from None
        if program.scopes:
            raise
        check_captured(root, inputs, program)
    return program


def _finished(
    result: PruneResult, program: Program, model: nn.Module, inputs: Inputs, verify: bool, keep_class: bool, family: Family | None
) -> PruneResult:
    """The result as it is handed over: run once if it is to be verified and has scopes, and in the model's class if wanted.

    program: that was pruned. family: what configs make of the model's class.
    """
    if verify and result.scopes:
        check_runs(result.model, inputs)
    if family is not None and not result.scopes:
        from graphprune.streaming.loaded import fitted  # which imports this module

        result = fitted(result, program, model, family)
    return in_own_class(result, unwrapped(model), inputs) if keep_class else result


def _family(model: nn.Module, example_inputs: Any, stating: bool, keep_class: bool) -> Family | None:
    """What configs make of a model's class, if that is asked for: where it must be, raises UsageError if they make nothing."""
    if not (stating or keep_class):
        return None
    from graphprune.streaming.loaded import family_of  # which imports this module

    try:
        return family_of(model, normalise_inputs(example_inputs))
    except UsageError:
        if stating:
            raise
        return None


def _compensation(name: str) -> Pass:
    if name not in COMPENSATIONS:
        raise UsageError(unknown("compensation", name, COMPENSATIONS, "Compensations"))
    return COMPENSATIONS[name]()


@callers_modes_off()
def run_pipeline(
    program: Program,
    passes: str | Sequence[Pass],
    *,
    observers: Sequence[Observer] = (),
    model: nn.Module | None = None,
    analyses: AnalysisManager | None = None,
) -> PruneResult:
    """Run a pipeline (objects, or text such as ``channels,score,select{macs=50%},rewrite,verify``) that ends in a rewrite.

    model: the module that was captured, to report what its forward leaves unused. analyses: results to start from. Raises
    PipelineError for a pipeline without a rewrite, and whatever its passes raise.
    """
    steps = parse_pipeline(passes) if isinstance(passes, str) else list(passes)
    if not any(isinstance(step, RewritePass) for step in steps):
        raise PipelineError("The pipeline does not rewrite the model; add 'rewrite' after 'select'.")
    with collector_paused():
        done = PassManager(steps, observers).run(program, analyses)
        assert done.plan is not None
        plan = done.plan if program.plan else done.plan.model_copy(update={"pipeline": format_pipeline(steps, defaults=True)})
        return _result(done, plan, model)


@callers_modes_off()
def apply_plan(
    model: nn.Module,
    example_inputs: Any,
    plan: Plan | str | Path,
    *,
    verify: bool = True,
    keep_class: bool = False,
    observers: Sequence[Observer] = (),
    source: str = "",
) -> PruneResult:
    """Carry out a plan on the model that it was made for: the same slim model, bit for bit.

    plan: or a file that holds one, of its own or of a slim model.
    keep_class: give back a model of the original's class; see :func:`prune`. Raises PlanError naming the first difference where the
    plan does not fit the model or contradicts itself, and RewriteError where the model's own code cannot follow it.
    """
    decision = plan if isinstance(plan, Plan) else read_plan(plan)
    program = _captured(model, example_inputs, verify, scopes=decision.scopes, source=source)
    decision.check_fits(program.module)
    passes: list[Pass] = [RewritePass(), *([VerifyPass()] if verify else [])]
    program = program.with_(plan=decision, policy=decision.policy)
    result = run_pipeline(program, passes, observers=observers, model=model)
    family = _family(model, example_inputs, False, keep_class)
    return _finished(result, program, model, normalise_inputs(example_inputs), verify, keep_class, family)


@callers_modes_off()
def verify(
    original: nn.Module, slim: nn.Module, plan: Plan, example_inputs: Any, *, seed: int = 0, weights: bool = True
) -> Verification:
    """Prove that a slim model computes what the masked original computes; see :mod:`graphprune.passes.verification`.

    weights: also require that every weight of the slim model is the plan's slice of the original's; False for a model
    that was trained since, whose structure is then verified with the original's weights. Raises PlanError where the
    plan is for another model. The result says what differs; call its ``check()`` to raise VerificationError instead.
    """
    inputs = normalise_inputs(example_inputs)
    slim = unwrapped(checked_module(slim))
    # The original is captured anew even if it is a graph: so it was when it was pruned, and nodes are paired by name.
    results = []
    for announced in (True, False):  # as `_captured` does
        try:
            full = capture(original, inputs, scopes=plan.scopes, on_demand=True, announced=announced)
            plan.check_fits(full.module)
        except (CaptureError, PlanError):
            if announced:
                raise
            break
        small, loads = _graph_of(slim, inputs, full.scopes)
        results.append(compare(full.module, small, plan, full.inputs, seed=seed, weights=weights, loads=(full.weights, loads)))
        if results[-1].passed:
            return results[-1]
    return results[0]


def _graph_of(slim: nn.Module, inputs: Inputs, scopes: Sequence[Scope]) -> tuple[fx.GraphModule, Weights | None]:
    """The graph of a slim model, and where its weights are loaded from, if they are. scopes: of the original."""
    found = placement_of(slim)
    plain = slim if found is None else found.plain
    if isinstance(plain, fx.GraphModule):
        return plain, None if found is None else found.weights(plain)
    whole = joined(plain, scopes) if scopes and found is None else None
    if whole is not None:  # captured anew, its nodes could have other names, by which they are paired
        return whole, None
    program = capture(slim, inputs, scopes=[scope.path for scope in scopes], on_demand=True)
    return program.module, program.weights


def _unused(model: nn.Module, plan: Plan) -> tuple[str, ...]:
    """Tensors of a model that its graph does not have under any of their names."""
    tensors = named_tensors(model)
    used = {id(tensors[name]) for name in plan.model if name in tensors}
    return tuple(name for name, tensor in tensors.items() if id(tensor) not in used)


def _result(done: Program, plan: Plan, model: nn.Module | None) -> PruneResult:
    assert done.record is not None and done.original is not None
    scopes = tuple(scope.path for scope in done.scopes)
    slim: nn.Module = done.module
    model = None if model is None else unwrapped(model)
    if scopes:
        if model is None:
            raise PipelineError("A program of scopes is put back into its model; pass model= to run_pipeline.")
        slim = put_back(model, done.module, done.scopes)
    elif model is not None and done.weights is not None and (found := placement_of(model)) is not None:
        from graphprune.runs.ranks import agreed  # which imports this module

        agreed(plan.model_dump_json(), "what to remove")
        slim = found.place(done.module, done.weights)
    unused = _unused(model, plan) if model is not None and not scopes else ()
    record = done.record
    report = Report(
        record.before,
        record.after,
        record.widths,
        record.groups,
        done.verification,
        done.opaque,
        unused,
        scopes,
        done.compensation,
        done.eval_only,
        done.untraced,
    )
    return PruneResult(slim, done.module, plan, report, done.inputs, done.source, done.scopes)
