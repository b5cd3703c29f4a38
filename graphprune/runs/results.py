"""What a journal holds of each step of a bench, as types: what is read back is checked before anything goes by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, RootModel, ValidationError, model_validator

from graphprune.costs.cost import Costs
from graphprune.errors import RunError, first_problem
from graphprune.latency.table import LatencyTable
from graphprune.plans.plan import Plan


class _Result(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Dense(_Result):
    pass


class _Trained(_Result):
    diverged: str
    accuracies: list[float]


class _Evaluated(_Result):
    accuracy: float


class _Chosen(_Result):
    plan: Plan | None = None
    refused: str | None = None

    @model_validator(mode="after")
    def _check_one(self) -> _Chosen:
        if len(self.model_fields_set) != 1:
            raise ValueError("it has neither a plan nor a refusal, or both")
        return self


class _Costs(_Result):
    parameters: int
    macs: int
    weight_bytes: int
    activation_bytes: int


class _Cut(_Result):
    costs: _Costs
    dropped: list[str]
    samples: int


class _Scored(RootModel[dict[str, list[float | None]]]):
    pass


class _Profiled(_Result):
    table: LatencyTable


_STEPS: Final[Mapping[str, type[BaseModel]]] = {
    "dense": _Dense,
    "train": _Trained,
    "evaluate": _Evaluated,
    "choose": _Chosen,
    "cut": _Cut,
    "score": _Scored,
    "profile": _Profiled,
}

assert _Costs.model_fields.keys() == Costs.__dataclass_fields__.keys()


def check_result(step: str, result: Any) -> None:
    """Raise RunError where the journal's result of a step is none."""
    try:
        _STEPS[step].model_validate(result)
    except ValidationError as error:
        place, problem = first_problem(error)
        raise RunError(
            f"The journal of the run is damaged: the result of a step {step} is wrong ({problem} at {place}). "
            "Start anew in another folder."
        ) from error
