"""What a method is: options, and steps on a bench; and how it is called."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import nn

from graphprune.calibration import Calibration
from graphprune.claims import claimed_folder
from graphprune.errors import UsageError
from graphprune.ir.program import names_of
from graphprune.ir.twins import digest, unwrapped
from graphprune.methods.texts import Keep, Target
from graphprune.plans.plan import Plan, fingerprint
from graphprune.randomness import own_randomness
from graphprune.result import PruneResult
from graphprune.runs import ranks
from graphprune.runs.bench import Bench
from graphprune.runs.history import Round, Silent, Watch
from graphprune.runs.loop import Evaluate, Loop, Train
from graphprune.runs.stage import Stage
from graphprune.runs.task import Task
from graphprune.sources import load_calibration
from graphprune.text import columns, count


class Options(BaseModel):
    """Options that all methods have.

    >>> Options(epochs=10).trained
    True
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(ge=1, description="Length of the full training schedule, which learning rates go by.")
    trained: bool = Field(True, description="The model comes trained; otherwise it is first trained for all epochs.")
    distil: bool | None = Field(
        None,
        description="Distil from the dense model in trainings after a cut; default: where it is trained, and the loop takes one.",
    )

    def last(self, count: int | None) -> range:
        """So many epochs at the end of the schedule; None, or more than there are: all of it."""
        return range(0 if count is None else max(0, self.epochs - count), self.epochs)

    def expected_rounds(self) -> int | None:
        """How many rounds there will be, the dense model's included, where that can be said in advance."""
        return None


class AimedOptions(Options):
    """Options of methods that end where a target is met, and some layers have the widths that are given."""

    target: Target | None = Field("macs=50%", description="What must remain of the original.")
    keep: Keep = Field({})

    @model_validator(mode="before")
    @classmethod
    def _others_stay_whole(cls, given: Any) -> Any:
        """The default is none where it is said what stays."""
        return {"target": None, **given} if isinstance(given, dict) and given.get("keep") else given

    @model_validator(mode="after")
    def _aimed(self) -> Self:
        if self.target is None and not self.keep:
            raise ValueError("there is nothing to reach. Give a target, as macs=50%, or say with keep what stays of some layers.")
        return self


Chosen = TypeVar("Chosen", bound=Options)

#: Methods by name.
METHODS: Final[dict[str, Method[Any]]] = {}


@dataclass(frozen=True)
class MethodResult:
    """What a method made.

    pruned: the slim model, trained, with its plan for the original and the proof of the cut; what :func:`graphprune.save` takes.
    rounds: what happened, the dense model first. accuracy, dense_accuracy: on validation data, after the last epoch. dense: the
    model that the rounds began with, trained where the method trained it.
    """

    pruned: PruneResult
    rounds: tuple[Round, ...]
    dense: nn.Module

    def __repr__(self) -> str:
        """The rounds in a table, what there is to say of them, then the slim model as its result shows itself."""
        rows = [
            (
                f"round {row.number} ({row.status})",
                "" if row.accuracy is None else f"{row.accuracy:.4g}",
                count(row.params),
                count(row.macs),
            )
            for row in self.rounds
        ]
        notes = [f"round {row.number}: {row.note}" for row in self.rounds if row.note]
        return "\n".join([columns([("", "accuracy", "parameters", "MACs"), *rows]), *notes, repr(self.pruned)])

    @property
    def model(self) -> nn.Module:
        """The slim model."""
        return self.pruned.model

    @property
    def plan(self) -> Plan:
        """What stays of the original."""
        return self.pruned.plan

    @property
    def accuracy(self) -> float | None:
        """Of the slim model; None where no round has one."""
        return next((row.accuracy for row in reversed(self.rounds) if row.status in ("final", "accepted", "dense")), None)

    @property
    def dense_accuracy(self) -> float | None:
        """Of the dense model."""
        return next((row.accuracy for row in self.rounds if row.status == "dense"), None)


@dataclass(frozen=True)
class Method(Generic[Chosen]):
    """A method, to be called on a model. steps: from a bench and options to the last stage."""

    name: str
    options: type[Chosen]
    steps: Callable[[Bench, Chosen], Stage]

    @property
    def summary(self) -> str:
        """The first line of its documentation."""
        return (inspect.getdoc(self.steps) or "").splitlines()[0]

    def __call__(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        train: Train,
        evaluate: Evaluate,
        data: Calibration | Iterable[Any] | str | None = None,
        folder: str | Path | None = None,
        seed: int = 0,
        exclude: Sequence[str] = (),
        policy: Mapping[str, str] | None = None,
        scopes: Sequence[str] = (),
        verify: bool = True,
        masks: bool = False,
        recalibrate: bool = True,
        keep_class: bool = False,
        watch: Watch | None = None,
        **options: Any,
    ) -> MethodResult:
        """Run the method. The model itself is not changed.

        model, example_inputs, exclude, policy, scopes: as for :func:`graphprune.prune`.
        train, evaluate: the training loop; see :class:`~graphprune.runs.loop.Train` and :class:`~graphprune.runs.loop.Evaluate`.
        data: training samples without augmentation, for criteria that look at activations or gradients, and for batch-norm
            statistics after a cut: a Calibration, or what makes one.
        folder: where the run is recorded. Called again with the same folder and options, a run that was interrupted, even by
            ``kill -9``, goes on where it was, and ends with the same result.
        seed: of every epoch and every choice. verify: prove every cut. masks: train at full shape, with what is removed held at
        zero,
            instead of training the smaller model; slower, and the same where mathematics says so. recalibrate: estimate batch-norm
            statistics anew after each cut, where there are data. keep_class: as for :func:`graphprune.prune`; the slim models that
            ``train`` and ``evaluate`` get are of the model's own class, too. watch: is told how it goes.
        options: of the method; see its ``options``.

        Raises UsageError for options that make no sense, RunError for a folder of another run or one that cannot be written, and
        what cutting raises.
        """
        found = Calibration(data) if data is not None and not isinstance(data, (Calibration, str)) else data
        task = Task(
            unwrapped(model),
            example_inputs,
            Loop(train, evaluate),
            load_calibration(found) if isinstance(found, str) else found,
            names_of("exclude", exclude),
            dict(policy or {}),
            names_of("scopes", scopes),
            Path(folder) if folder is not None else None,
            seed,
            verify,
            masks,
            recalibrate,
            keep_class,
            watch or Silent(),
        )
        return self.run(task, self.parse(options))

    def parse(self, options: Mapping[str, Any]) -> Chosen:
        """Options from plain values. Raises UsageError naming the first that is wrong."""
        try:
            return self.options.model_validate(dict(options))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"])) or "options"
            known = ", ".join(self.options.model_fields)
            what = f"no option of this method{takers(name)}" if first["type"] == "extra_forbidden" else first["msg"]
            raise UsageError(f"{self.name}: {name}: {what.removeprefix('Value error, ').rstrip('.')}. Options: {known}.") from error

    def run(self, task: Task, options: Chosen) -> MethodResult:
        """Run the method on a task. Random generators are left as they were.

        Raises UsageError where another process runs in the same folder.
        """
        folder = task.folder if ranks.rank() == 0 else None
        with own_randomness(), nullcontext() if folder is None else claimed_folder(folder):
            return self._run(task, options)

    def _run(self, task: Task, options: Chosen) -> MethodResult:
        bench = Bench(task, self._about(task, options))
        try:
            stage = self.steps(bench, options)
            plan = stage.plan or Plan(
                kept={}, model=fingerprint(bench.program.module), policy=dict(task.policy), scopes=list(task.scopes)
            )
            pruned = bench.slim(plan, verify=task.verify)
            weights = stage.snapshot.load()["weights"]
            pruned.model.load_state_dict({name: weights[name] for name in pruned.model.state_dict()})
            dense = bench.model(stage if bench.first is None else bench.first)
        finally:
            bench.store.keep_all()  # what the last step left is needed when the same call is made again
        return MethodResult(pruned, tuple(bench.rounds), dense)

    def _about(self, task: Task, options: Chosen) -> dict[str, str]:
        shapes = "\n".join(f"{name} {text}" for name, text in fingerprint(task.model).items())
        weights = {"weights": digest(task.model)} if getattr(options, "trained", False) else {}  # else the run makes its own
        return {
            "method": self.name,
            "options": options.model_dump_json(),
            "model": hashlib.sha256(shapes.encode()).hexdigest()[:16],
            **weights,
            "seed": str(task.seed),
            "settings": f"exclude={list(task.exclude)} policy={dict(task.policy)} scopes={list(task.scopes)} masks={task.masks} "
            f"recalibrate={task.recalibrate and task.data is not None}{' keep_class' if task.keep_class else ''}",
        }


def takers(option: str) -> str:
    """Which methods have an option, for messages about others; empty where none has."""
    found = [name for name, one in METHODS.items() if option in one.options.model_fields]
    return f"; {', '.join(found)} take{'s' if len(found) == 1 else ''} it" if found else ""


def method(name: str, options: type[Chosen]) -> Callable[[Callable[[Bench, Chosen], Stage]], Method[Chosen]]:
    """Register a function from a bench and options to the last stage as a method."""

    def register(steps: Callable[[Bench, Chosen], Stage]) -> Method[Chosen]:
        found = METHODS[name] = Method(name, options, steps)
        return found

    return register
