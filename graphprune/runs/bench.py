"""The bench: what a method can do to a model, each step recorded, so that a killed run goes on and ends the same."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import isnan
from typing import Any, Final

from torch import nn

from graphprune.api import run_pipeline
from graphprune.channels.filters import coupled_axes, find_filters
from graphprune.channels.groups import Groups, Ints
from graphprune.costs.cost import CostModel, Costs
from graphprune.errors import CheckError, DivergedError, TargetError, UsageError
from graphprune.files import write_whole
from graphprune.ir.program import Program
from graphprune.latency.environment import environment_of
from graphprune.latency.table import LatencyTable
from graphprune.own_class.limits import within_own_code
from graphprune.own_class.seat import in_own_class
from graphprune.passes.analysis.channels import ChannelGroups, ChannelsPass
from graphprune.passes.analysis.cost import ModelCost
from graphprune.passes.calibration.consumers import find_norms
from graphprune.passes.calibration.supply import calibrated
from graphprune.passes.latency.source import timed
from graphprune.passes.rewrite.recalibrate import RecalibratePass
from graphprune.passes.rewrite.rewrite import RewritePass
from graphprune.passes.scoring.score import ScorePass
from graphprune.passes.selection.target import parse_target
from graphprune.passes.verification.verify import VerifyPass
from graphprune.pipeline.analysis_manager import AnalysisManager
from graphprune.pipeline.pass_base import Pass
from graphprune.pipeline.pass_manager import PassManager
from graphprune.plans.plan import Plan, kept_units
from graphprune.result import PruneResult
from graphprune.runs import ranks
from graphprune.runs.fitting import Fitting
from graphprune.runs.history import Round, write_rounds
from graphprune.runs.journal import Journal
from graphprune.runs.results import check_result
from graphprune.runs.seeding import derived, seed_everything
from graphprune.runs.stage import Stage
from graphprune.runs.store import Store
from graphprune.runs.task import Task
from graphprune.surveys.profiling import profile_program
from graphprune.tracing import capture, normalise_inputs
from graphprune.training.optimiser_state import in_short, slice_state
from graphprune.training.penalties import Penalty

_SAVE_EVERY: Final = 20.0  # seconds between two savings of a training that goes on


class Bench:
    """A model on the bench: train, evaluate, choose, cut.

    Each of these steps is recorded when it is done. about: what makes the run what it is, for the record; a folder that holds
    another run is refused. first: the stage of the first round, which the others are compared with.
    """

    def __init__(self, task: Task, about: Mapping[str, str]) -> None:
        self.task = task
        self.rounds: list[Round] = []
        self.first: Stage | None = None
        self.shown: dict[str, dict[str, list[float | None]]] = {}
        folder, writes = task.folder, ranks.rank() == 0
        self._journal = Journal(folder and folder / "journal.jsonl", about, write=writes)
        self.store = Store(folder and folder / "snapshots", write=writes)
        self._analyses = AnalysisManager()
        ranks.together()  # nobody writes before all have read

    # -- the model -----------------------------------------------------------------------------------------------------

    @cached_property
    def program(self) -> Program:
        """The original, captured; constrained to what its own code can follow, where its class is kept."""
        task = self.task
        found = capture(task.model, task.inputs, scopes=task.scopes).with_(exclude=task.exclude, policy=dict(task.policy))
        if not task.keep_class:
            return found
        return within_own_code(task.model, normalise_inputs(task.inputs), found, self._analyses)

    @cached_property
    def _facts(self) -> tuple[Groups, CostModel]:
        """Groups and costs of the original."""
        program = self.program
        return self._analyses.get(program, ChannelGroups()), self._analyses.get(program, ModelCost())

    @property
    def groups(self) -> Groups:
        """The groups of the original."""
        return self._facts[0]

    def dense(self) -> Stage:
        """The original with the weights that it came with."""
        groups, cost = self._facts
        known = self._recall("dense", "")
        if known is None:
            self.store.write("dense", {"weights": self.task.model.state_dict(), "training": None})
            self._record("dense", "", {})
        return Stage(None, self.store.known("dense"), cost.costs(groups.widths))

    def model(self, stage: Stage) -> nn.Module:
        """A model of its own for a stage, in train mode where the original is."""
        model = copy.deepcopy(self.task.model) if stage.plan is None else self.slim(stage.plan, verify=False, check=False).model
        stage.snapshot.fill(model)
        return model

    def slim(self, plan: Plan, *, verify: bool, check: bool = True) -> PruneResult:
        """The original cut by a plan, with the original's weights; verify: and proved.

        check: that the model's own code follows, where its class is kept; needless for a plan that was carried out before.
        """
        task, program = self.task, self.program.with_(plan=plan, policy=dict(plan.policy))
        passes: list[Pass] = [RewritePass(), *([VerifyPass(seed=task.seed)] if verify else [])]
        found = run_pipeline(program, passes, model=task.model)
        return in_own_class(found, task.model, normalise_inputs(task.inputs), check=check) if task.keep_class else found

    @cached_property
    def coupled(self) -> tuple[str, ...]:
        """What to exclude for groups that several layers make to stay whole."""
        return coupled_axes(self.program, self.groups, find_filters(self.program, self.groups))

    def amount(self, kind: str, value: float | str) -> float:
        """A target on the original as an amount: half of its MACs for ``macs`` and ``50%``. Not for latency."""
        groups, cost = self._facts
        return parse_target(kind, value).limit(float(cost.measures()[kind](groups.widths)))

    def measured(self, stage: Stage, kind: str) -> float:
        """What a stage has of a kind of cost, other than latency."""
        return float(self._facts[1].measures()[kind](self._widths(stage)))

    def widths(self, stage: Stage) -> dict[str, int]:
        """Units that a stage has of every prunable group of the original."""
        return dict(zip((group.name for group in self.groups.prunable), self._widths(stage).tolist(), strict=True))

    def _widths(self, stage: Stage) -> Ints:
        return self.groups.widths if stage.plan is None else kept_units(stage.plan, self.groups).widths()

    # -- steps ----------------------------------------------------------------------------------------------------------

    def train(
        self,
        stage: Stage,
        epochs: range,
        *,
        penalty: Penalty | None = None,
        teacher: Stage | None = None,
        fresh: bool = False,
        judge: bool = False,
        what: str = "Training",
    ) -> tuple[Stage, list[float]]:
        """Train a stage for some epochs of the schedule.

        penalty: added to the loss. teacher: a stage to distil from. fresh: with a new optimiser. judge: evaluate after every epoch;
        the second result lists these. A loss that is infinite or NaN ends the training: the stage then says so, with the weights
        from before.
        """
        key = f"{stage.snapshot.name} {epochs.start}..{epochs.stop}" + (f" {type(penalty).__name__}" if penalty is not None else "")
        number, known = self._journal.number, self._recall("train", key)
        name = f"{number:05d}"
        if known is None:
            self.task.watch.working(what, number)
            known = self._trained(stage, epochs, name, _How(penalty, teacher, fresh, judge))
            self._record("train", key, known)
        self.store.drop(f"{name}-partial")
        if known["diverged"]:
            return replace(stage, diverged=known["diverged"]), []
        lost = "" if fresh else stage.lost
        done = replace(stage, snapshot=self.store.known(name), epochs=stage.epochs + len(epochs), diverged="", lost=lost)
        return done, known["accuracies"]

    def evaluate(self, stage: Stage) -> float:
        """How good a stage is, on validation data."""
        known = self._recall("evaluate", stage.snapshot.name)
        if known is None:
            self.task.watch.working("Evaluating", self._journal.number)
            known = {"accuracy": self._judged(self.model(stage))}
            self._record("evaluate", stage.snapshot.name, known)
        return float(known["accuracy"])

    def choose(
        self, stage: Stage, passes: Sequence[Pass], *, table: LatencyTable | None = None, what: str = "Choosing"
    ) -> Plan | None:
        """What scoring and selection passes would remove from a stage, as a plan for its model; None for nothing.

        table: the stage's latency, for targets on it. Raises what the passes raise; a TargetError is recorded as well.
        """
        key = " ".join([stage.snapshot.name, *(f"{step.name}{step}" for step in passes)])
        number, known = self._journal.number, self._recall("choose", key)
        if known is None:
            self.task.watch.working(what, number)
            try:
                plan = self._run(stage, passes, table).plan
                assert plan is not None, "the last pass selects"
                known = {"plan": plan.model_dump(mode="json") if plan.kept else None}
            except TargetError as error:
                known = {"refused": str(error)}
            ranks.agreed(json.dumps(known), "what to remove")
            self._record("choose", key, known)
        if "refused" in known:
            raise TargetError(known["refused"])
        return None if known["plan"] is None else Plan.model_validate(known["plan"])

    def cut(self, stage: Stage, plan: Plan) -> Stage:
        """A stage with what a plan for its model leaves: weights and optimiser state are sliced, not thrown away."""
        number, known = self._journal.number, self._recall("cut", stage.snapshot.name)
        name = f"{number:05d}"
        whole = plan if stage.plan is None else stage.plan.then(plan)
        if known is None:
            self.task.watch.working("Cutting", number)
            found, before = self.slim(whole, verify=self.task.verify), self.model(stage)
            weights, training = before.state_dict(), stage.snapshot.load()["training"]
            found.model.load_state_dict({key: plan.slice(key, weights[key]) for key in found.model.state_dict()})
            dropped: list[str] = []
            if not self.task.masks:
                training, dropped = slice_state(training, plan, before, found.model)
            samples = self._recalibrate(found)
            self.store.write(name, {"weights": found.model.state_dict(), "training": training})
            known = {"costs": asdict(found.report.after), "dropped": dropped, "samples": samples}
            self._record("cut", stage.snapshot.name, known)
        costs, samples = Costs(**known["costs"]), stage.samples + known["samples"]
        return Stage(whole, self.store.known(name), costs, stage.epochs, samples, lost=in_short(known["dropped"]))

    def prune(self, stage: Stage, passes: Sequence[Pass], *, table: LatencyTable | None = None) -> Stage:
        """:meth:`choose` and :meth:`cut`: the stage itself where there is nothing to remove."""
        plan = self.choose(stage, passes, table=table)
        if plan is None:
            return stage
        share = None if table is None else plan.achieved.get("latency")
        latency = None if table is None or share is None else share * (stage.latency or table.full_ms)
        return replace(self.cut(stage, plan), latency=latency)

    def rewind(self, stage: Stage, to: Stage) -> Stage:
        """What is left of a stage, with the weights and the optimiser that an earlier one, whole or wider, has there."""
        assert stage.plan is not None, "there is something cut"
        if to.plan is not None:
            raise UsageError("Weights are rewound to the dense model only, which this stage no longer is.")
        cut = self.cut(to, stage.plan)
        return replace(cut, epochs=stage.epochs, samples=stage.samples + cut.samples - to.samples)

    def scores(self, stage: Stage, score: ScorePass) -> dict[str, list[float | None]]:
        """The scores of a stage's units by group, for pictures: rounded, None where the criterion has nothing to say."""
        key = f"{stage.snapshot.name} {score}"
        number, known = self._journal.number, self._recall("score", key)
        if known is None:
            self.task.watch.working("Scoring", number)
            program = self._run(stage, [score], None)
            values = next(iter(program.scores.values())).values
            groups = AnalysisManager().get(program, ChannelGroups()).prunable
            known = {g.name: [None if isnan(v) else float(f"{v:.5g}") for v in values[g.units].tolist()] for g in groups}
            self._record("score", key, known)
        return dict(known)

    def show(self, name: str, scores: Mapping[str, Sequence[float | None]]) -> None:
        """Keep scores for the pictures of the run."""
        self.shown[name] = {group: list(values) for group, values in scores.items()}
        if self.task.folder is not None and ranks.rank() == 0:
            write_whole(self.task.folder / "scores.json", json.dumps(self.shown))

    def latency_table(self, stage: Stage) -> LatencyTable:
        """The latency table of a stage's model, measured here."""
        number, known = self._journal.number, self._recall("profile", stage.snapshot.name)
        if known is None:
            self.task.watch.working("Measuring latency", number)
            path = self.task.folder and self.task.folder / f"latency-{number:05d}.json"
            program = self._captured(stage, self.model(stage).eval())
            device = next((parameter.device.type for parameter in program.module.parameters()), "cpu")
            groups = AnalysisManager().get(program, ChannelGroups)
            table = profile_program(program, groups, environment_of(program.module, device), path=path, clock=self.task.clock)
            known = {"table": ranks.shared(table.model_dump(mode="json"))}
            self._record("profile", stage.snapshot.name, known)
        return LatencyTable.model_validate(known["table"])

    def note(self, row: Round) -> None:
        """A round is over."""
        self.rounds.append(row)
        if self.task.folder is not None and ranks.rank() == 0 and not self._journal.replaying:
            write_rounds(self.task.folder / "rounds.jsonl", self.rounds)
        self.task.watch.round(row, repeated=self._journal.recalled)

    # -- how ------------------------------------------------------------------------------------------------------------

    def _recall(self, step: str, key: str) -> Mapping[str, Any] | None:
        number, known = self._journal.number, self._journal.recall(step, key)
        if known is None:
            seed_everything(derived(self.task.seed, number))  # what a step draws is the same in whatever process it is done
        else:
            check_result(step, known)
        return known

    def _record(self, step: str, key: str, result: Mapping[str, Any]) -> None:
        self._journal.record(step, key, result)
        ranks.together()

    def _judged(self, model: nn.Module) -> float:
        found = self.task.loop.evaluate(model)
        try:
            accuracy = float(found)
        except (TypeError, ValueError, RuntimeError) as error:
            kind = type(found).__name__
            raise UsageError(f"evaluate returned {kind}. Return one number to decide by, as float, higher is better.") from error
        if isnan(accuracy) and not self.rounds:  # not on record, so that the same run goes on once evaluate is mended
            raise CheckError("evaluate returned NaN for the model that the run begins with.")
        return ranks.shared(accuracy)

    def _run(self, stage: Stage, passes: Sequence[Pass], table: LatencyTable | None) -> Program:
        task = self.task
        model = self.model(stage)
        program = self._captured(stage, model)
        program = calibrated(program, task.data, seed=task.seed, whole=(model, task.inputs))
        if table is not None:
            program = timed(program, table, clock=task.clock)
        return PassManager([ChannelsPass(program.exclude, program.policy), *passes]).run(program)

    def _captured(self, stage: Stage, model: nn.Module) -> Program:
        """The model of a stage, constrained as the original is, and to plans that are of the original's units."""
        program, original = capture(model, self.task.inputs, scopes=self.task.scopes), self.program
        whole = {**original.whole, **dict(self._last_units(stage, program))}
        return program.with_(exclude=original.exclude, policy=original.policy, whole=whole)

    def _last_units(self, stage: Stage, program: Program) -> Iterator[tuple[str, str]]:
        """Axes of the original's groups of which a stage has one unit left, which stays, with the reason.

        In the smaller model it could be several: a single head no longer has to go whole. But plans are of the original's units.
        """
        left = self.widths(stage)
        for group in self.groups.prunable:
            if group.size > 1 and left[group.name] == 1 and max(m.multiplicity for m in group.members) > 1:
                axes = (f"{m.tensor}[{m.axis}]" for m in group.members if m.tensor in program.tensors)
                yield from ((axis, f"the run keeps the last unit of {group.name}") for axis in axes)

    def _recalibrate(self, found: PruneResult) -> int:
        """Estimate the batch-norm statistics of a model that was just cut; on how many samples."""
        task = self.task
        if task.data is None or not task.recalibrate or found.scopes:
            return 0
        used = [0]
        program = Program(found.graph, normalise_inputs(task.inputs))
        if not find_norms(program):
            return 0
        program = calibrated(program, task.data.watched(used.append))
        found.graph.load_state_dict(PassManager([RecalibratePass()]).run(program).module.state_dict())
        return used[-1]

    def _fitting(self, stage: Stage, content: Mapping[str, Any]) -> Fitting:
        slim = self.model(stage)
        stage.snapshot.fill(slim, content)
        if not self.task.masks or stage.plan is None:
            return Fitting(slim)
        statistic = next((group for group in self.groups.prunable if group.statistics is not None), None)
        if statistic is not None:
            raise UsageError(
                f"Masks are not exact here: {statistic.name} takes part in a statistic over channels ({statistic.statistics}). "
                "Train the smaller model (masks=False)."
            )
        return Fitting(slim, copy.deepcopy(self.task.model), stage.plan)

    def _trained(self, stage: Stage, epochs: range, name: str, how: _How) -> dict[str, Any]:
        """Train, saving now and then; what to record."""
        partial = f"{name}-partial"
        found = self.store.read(partial) if self.store.has(partial) else stage.snapshot.load()
        content: dict[str, Any] = {"done": 0, "accuracies": [], **found}
        fitting = self._fitting(stage, content)
        state = None if how.fresh and not content["done"] else content["training"]
        extras = {} if how.teacher is None else {"teacher": self.model(how.teacher).eval()}
        accuracies, saved = list(content["accuracies"]), time.monotonic()
        for done, epoch in enumerate(epochs[content["done"] :], content["done"] + 1):
            seed_everything(derived(self.task.seed, name, epoch))
            try:
                with fitting.held(how.penalty):
                    state = self.task.loop.train(fitting.model, range(epoch, epoch + 1), state, **extras)
                fitting.check_finite()
            except DivergedError as error:
                return {"diverged": str(error), "accuracies": []}
            if how.judge:
                accuracies.append(self._judged(fitting.slim()))
            self.task.watch.epoch(done, len(epochs))
            if time.monotonic() - saved > _SAVE_EVERY and done < len(epochs):
                now = {"weights": fitting.weights(), "training": state, "done": done, "accuracies": accuracies}
                self.store.write(partial, now)
                saved = time.monotonic()
        self.store.write(name, {"weights": fitting.weights(), "training": state})
        return {"diverged": "", "accuracies": accuracies}


@dataclass(frozen=True)
class _How:
    """How to train."""

    penalty: Penalty | None
    teacher: Stage | None
    fresh: bool
    judge: bool
