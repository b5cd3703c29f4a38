"""Pruning of checkpoints that are larger than the memory: scored and cut one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from torch import nn

from graphprune.calibration import Calibration, no_data
from graphprune.channels.tape import run_graph
from graphprune.compensation import Compensated
from graphprune.costs.cost import Costs
from graphprune.errors import UsageError
from graphprune.ir.program import Inputs, Program, names_of
from graphprune.passes.analysis.channels import ChannelsPass
from graphprune.passes.calibration.supply import SYNTHETIC
from graphprune.passes.rewrite.compensate import CompensatePass
from graphprune.passes.rewrite.rewrite import RewritePass
from graphprune.passes.scoring.expression import parse_criterion
from graphprune.passes.scoring.score import ScorePass, check_streams
from graphprune.passes.selection.levers import is_stating
from graphprune.passes.selection.select import selection_pass
from graphprune.passes.selection.target import asked_for
from graphprune.pipeline.observers import Observer
from graphprune.pipeline.pass_base import Pass
from graphprune.pipeline.pass_manager import PassManager
from graphprune.pipeline.text import format_pipeline
from graphprune.plans.plan import Plan, fingerprint
from graphprune.runs.ranks import rank, ranks, shared
from graphprune.sources import load_calibration
from graphprune.streaming.checkpoint import open_checkpoint
from graphprune.streaming.configs import Config, Fit
from graphprune.streaming.family import Family, numbers_at
from graphprune.streaming.header import Entry
from graphprune.streaming.levers_pass import LeversPass
from graphprune.streaming.proof import Proof, prove
from graphprune.streaming.weights import Matched, match, weights_of
from graphprune.streaming.writing import Progress, Writing, digest, plan_of, silent
from graphprune.tracing import capture, normalise_inputs

_UNPROVED: Final = Proof(None, note="verify=False")


@dataclass(frozen=True)
class CheckpointReport:
    """What a pruning of a checkpoint did.

    plan: the decision. before, after: costs at the example inputs. widths: units of every prunable group, before and after.
    bytes_before, bytes_after: of all tensors. shards: the files of the output, and resumed: how many of them an earlier run had
    finished; both empty and 0 where only the plan was wanted. tensors: how many of the slim graph have the shapes that the plan
    leaves. proof: what was proved on numbers. config: the changed config, or why there is none; None where the model has none.
    compensation: what was done about lost inputs, layer by layer.
    """

    plan: Plan = field(repr=False)
    before: Costs
    after: Costs
    widths: Mapping[str, tuple[int, int]] = field(repr=False)
    bytes_before: int
    bytes_after: int
    shards: tuple[str, ...]
    resumed: int
    tensors: int
    proof: Proof
    config: Fit | None
    compensation: tuple[Compensated, ...] = field(default=(), repr=False)


def prune_checkpoint(
    model: nn.Module,
    example_inputs: Any,
    checkpoint: str | Path,
    out: str | Path,
    *,
    target: str | Mapping[str, float | str] | None = None,
    keep: Mapping[str, float | str] | None = None,
    criterion: str = "l2",
    reduction: str = "default",
    normalise: str = "max",
    share: str = "none",
    select: str = "select",
    ranking: str | None = None,
    round_to: int | Literal["auto"] = 1,
    min_channels: int = 1,
    max_ratio: float = 1.0,
    widths: str = "config",
    exclude: Sequence[str] = (),
    policy: Mapping[str, str] | None = None,
    data: Calibration | Iterable[Any] | str | None = None,
    compensate: str | None = None,
    seed: int = 0,
    verify: bool = True,
    proof_bytes: int = 2**30,
    plan_only: bool = False,
    config: Config | None = None,
    observers: Sequence[Observer] = (),
    progress: Progress = silent,
) -> CheckpointReport:
    """Prune a safetensors checkpoint that need not fit into memory. Nothing of it is changed.

    At no time are more than a few tensors in memory: one, its slice, and its powers while it is scored. The output has the same
    shards under the same names. A run that was ended goes on where it was when it is started again with the same arguments.

    model: its parameters on the meta device (``with torch.device("meta"): ...``). example_inputs: as for :func:`graphprune.prune`.
    checkpoint: a folder, an index, or a single file. out: a folder, which is made. The slim weights go there, the plan as
        ``plan.json``, and, with a config, what the folder has of tokenisers and settings.
    keep: as for :func:`graphprune.prune`; under ``widths="config"`` what is said of a layer goes for all whose width is the same
        number of the config, at the next width that it can state.
    ranking: ``local`` by default, which gives alike layers the same widths.
    widths: ``config`` takes only such as a config can state, where one is given and the pass ``select`` selects: groups that one
        number of it makes narrower keep the same share of their units, and what none does stays whole. ``any`` leaves each group
        its own width.
    verify: prove the plan on a copy of reduced depth with random weights (float32), where that takes at most ``proof_bytes``.
    plan_only: write the plan and no weights. config: that of transformers which the model was built from; the changed one is
        written where there is one.
    data: as of :func:`graphprune.prune`, for criteria of activations. All batches run in step, so that every weight is read once:
        what is alive of all samples at one place is in memory, and the weights of a few layers. In each process of
        ``torch.distributed`` give it a part of the data: scores are of all, and the first process writes. A run that goes on knows
        data by their name and number.
    compensate: ``least-squares``, as of :func:`graphprune.prune`, layer by layer, in one process: every weight is read twice more,
        and new ones wait in files of the temporary folder until they are written.
    The other options are those of :func:`graphprune.prune`. Criteria must read one tensor after another: see
    :func:`graphprune.criteria.criterion`.

    Raises UsageError for a checkpoint that is damaged or is not the model's, for options that are no good, and for an output folder
    that holds something else, before anything is written; and what a pruning raises.
    """
    floors = {"round_to": round_to, "min_channels": min_channels, "max_ratio": max_ratio, "keep": keep or {}}
    passes: list[Pass] = [
        ChannelsPass(exclude=names_of("exclude", exclude), policy=dict(policy or {})),
        ScorePass(criterion=criterion, reduction=reduction, normalise=normalise, share=share, seed=seed),
        selection_pass(select, ranking or ("local" if select == "select" else "global"), {**floors, **_targets(target, keep)}),
        RewritePass(),
    ]
    check_streams(parse_criterion(criterion))
    remedies = _compensation(compensate)
    inputs = normalise_inputs(example_inputs)
    asking = [f"Criterion {criterion!r}" for term in parse_criterion(criterion) if term.needs]
    stating = is_stating(widths) and select == "select"
    measured = _calibration([*asking, *(f"Pass {one.name!r}" for one in remedies)], data, inputs)
    job = _Job(model, inputs, match(model, open_checkpoint(checkpoint)), Path(out), _family(config, inputs))
    text = format_pipeline([*passes, *remedies], defaults=True)
    request = job.request(text, stating, *(() if measured is None else (measured.name, measured.samples)))
    known = shared(plan_of(job.folder, request) if rank() == 0 else None)
    levers = job.levers if stating else []
    steps = [passes[0], *levers, *passes[1:]] if known is None else [*levers, RewritePass()]
    done = job.pruned([*steps, *([] if plan_only else remedies)], known, observers, progress, measured)
    assert done.plan is not None
    plan = shared(known or done.plan.model_copy(update={"pipeline": text}))
    proof = job.proof(plan, seed, proof_bytes) if verify else _UNPROVED
    return job.written(done, plan, proof, request, progress, weights=not plan_only)


def apply_plan_to_checkpoint(
    model: nn.Module,
    example_inputs: Any,
    checkpoint: str | Path,
    out: str | Path,
    plan: Plan | str | Path,
    *,
    seed: int = 0,
    verify: bool = True,
    proof_bytes: int = 2**30,
    config: Config | None = None,
    observers: Sequence[Observer] = (),
    progress: Progress = silent,
) -> CheckpointReport:
    """Carry out a plan, or the file of one, on a checkpoint as :func:`prune_checkpoint` does its own.

    Raises PlanError naming the first difference where the plan does not fit the model, and what :func:`prune_checkpoint` raises.
    """
    given = plan if isinstance(plan, Plan) else Plan.load(plan)
    inputs = normalise_inputs(example_inputs)
    job = _Job(model, inputs, match(model, open_checkpoint(checkpoint)), Path(out), _family(config, inputs))
    request = job.request(given.model_dump_json())
    plan_of(job.folder, request)
    done = job.pruned([*job.levers, RewritePass()], given, observers, progress)
    proof = job.proof(given, seed, proof_bytes) if verify else _UNPROVED
    return job.written(done, given, proof, request, progress)


@dataclass(frozen=True)
class _Job:
    """What is pruned, and where it goes. model: without values. family: what else its class builds, if it has configs."""

    model: nn.Module
    inputs: Inputs
    matched: Matched
    folder: Path
    family: Family | None

    @property
    def levers(self) -> list[Pass]:
        """The pass that finds what its configs can state, where there are any."""
        return [] if self.family is None else [LeversPass(self.family)]

    def request(self, *how: str | int | None) -> str:
        """A digest of all that decides what is written. how: the pipeline, and what its data are called; or the plan."""
        return digest(*how, self.inputs.describe(), fingerprint(self.model), self.matched.checkpoint.identity())

    def pruned(
        self,
        passes: Sequence[Pass],
        known: Plan | None,
        observers: Sequence[Observer],
        progress: Progress,
        data: Calibration | None = None,
    ) -> Program:
        """The slim graph, on the meta device, by passes; known: the plan, where these do not make one."""
        program = capture(self.model, self.inputs)
        if program.scopes:
            raise UsageError(
                f"{type(self.model).__name__} does not trace as a whole, and scopes are not streamed. Use graphprune.prune."
            )
        if known is not None:
            known.check_fits(program.module)
            program = program.with_(plan=known, policy=known.policy)
        total = sum(entry.nbytes for entry in self.matched.checkpoint.entries.values())
        read = [0]

        def watch(name: str) -> None:
            read[0] += self.matched.blocks[name].entry(name).nbytes
            progress("Scoring", read[0], max(total, read[0]))

        weights = weights_of(program.module, self.matched, watch)
        return PassManager(passes, observers).run(program.with_(weights=weights, calibration=data))

    def proof(self, plan: Plan, seed: int, most: int) -> Proof:
        """What can be proved on a copy of at most so many bytes."""
        return prove(self.model, self.inputs, plan, most=most, seed=seed)

    def written(
        self, done: Program, plan: Plan, proof: Proof, request: str, progress: Progress, *, weights: bool = True
    ) -> CheckpointReport:
        """Check the slim graph, find its config, write all of it, and report."""
        assert done.record is not None
        entries = self.matched.slim(plan)
        state = self.matched.slim_state(plan)
        tensors = _check_shapes(done, state)
        numbers = numbers_at(done.levers, done.record.groups, done.record.widths)
        fit = None if self.family is None else self.family.fit(done, state, numbers)
        others = done.weights if done.compensation and done.weights is not None else {}
        writing = Writing(self.folder, self.matched, plan, entries, progress, others)
        resumed = writing.run(request, fit, weights=weights) if rank() == 0 else 0
        return CheckpointReport(
            plan,
            done.record.before,
            done.record.after,
            done.record.widths,
            sum(entry.nbytes for entry in self.matched.checkpoint.entries.values()),
            sum(entry.nbytes for entry in entries.values()),
            tuple(writing.shards) if weights else (),
            resumed,
            tensors,
            proof,
            fit,
            done.compensation,
        )


def _targets(target: str | Mapping[str, float | str] | None, keep: object) -> dict[str, float | str]:
    targets = asked_for(target, keep)
    if "latency" in targets:
        raise UsageError("A latency target needs the whole model on a device. Use macs, params, weight_bytes, memory or channels.")
    return targets


def _family(config: Config | None, inputs: Inputs) -> Family | None:
    return None if config is None else Family(config, inputs)


def _compensation(name: str | None) -> list[Pass]:
    """The pass that compensates, if any. Raises UsageError where it cannot."""
    if name not in (None, "least-squares"):
        raise UsageError(f"Compensation {name!r} is not made of weights that are read one by one; least-squares is.")
    if name is not None and ranks() > 1:
        raise UsageError(
            "Compensation solves on all data at once, and several processes divide them. Run one process, or leave it out."
        )
    return [] if name is None else [CompensatePass()]


def _calibration(asking: Sequence[str], data: Calibration | Iterable[Any] | str | None, like: Inputs) -> Calibration | None:
    """The data. asking: what needs some. Raises UsageError where anything does, and there are none."""
    if data is None:
        if asking:
            raise no_data(asking[0])
        return None
    if isinstance(data, str):
        if data == SYNTHETIC:
            raise UsageError("Synthetic data are made by gradients, for which a model must fit into memory. Give batches.")
        return load_calibration(data, like=like).called_as(like)
    return (data if isinstance(data, Calibration) else Calibration(data)).called_as(like)


def _check_shapes(done: Program, state: Mapping[str, Entry]) -> int:
    """How many tensors of the slim graph have the shape that will be written; the graph also runs on them, on the meta device."""
    found = [(name, tensor) for name, tensor in done.tensors.items() if name in state]
    for name, tensor in found:
        assert tuple(tensor.shape) == state[name].shape, f"{name} is {list(tensor.shape)} in the slim graph, not {state[name]}"
    run_graph(done)
    return len(found)
