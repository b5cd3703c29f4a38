"""Models of transformers that are in memory: which widths their config can state, and what it says of a slim one."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from torch import Tensor, nn

from graphprune.channels.groups import Groups
from graphprune.errors import UsageError
from graphprune.ir.program import Inputs, Program
from graphprune.ir.twins import named_tensors, unwrapped
from graphprune.result import PruneResult
from graphprune.streaming.configs import MOST
from graphprune.streaming.family import Family, numbers_at
from graphprune.streaming.folder import config_of

_FEW: Final = 100  # models that are built to see whether a config states widths by chance


def family_of(model: nn.Module, inputs: Inputs) -> Family:
    """What configs make of the class of a model. Raises UsageError where none do, or the model cannot be built from one."""
    return Family(config_of(unwrapped(model)), inputs.to("cpu"), cached=True)


def bound(program: Program, groups: Groups, family: Family) -> Program:
    """The program with the widths of its groups bound to what configs of the family can state. Raises UsageError where none can."""
    levers = family.levers(groups, program.policy)
    if not levers.each:
        raise UsageError(
            f"No number of the config of {family.name} makes any of its groups narrower. Check that the example inputs make its "
            'forward use all of its layers, or take any widths (widths="any").'
        )
    return program.with_(levers=levers)


def fitted(result: PruneResult, program: Program, model: nn.Module, family: Family) -> PruneResult:
    """The result with the config that states its widths, or the reason why none does. program: what was pruned, of the model."""
    report = result.report
    numbers = numbers_at(program.levers, report.groups, report.widths)
    slim = program.with_(module=result.graph, tape=None)
    state = _state(unwrapped(model), result.graph)
    return replace(result, config=family.fit(slim, state, numbers, most=MOST if numbers else _FEW))


def _state(model: nn.Module, slim: nn.Module) -> dict[str, Tensor]:
    """The state of a slim model of the class of the original, with what its graph does not use."""
    small = named_tensors(slim)
    cut = {id(tensor): small[name] for name, tensor in named_tensors(model).items() if name in small}
    return {name: cut.get(id(tensor), tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
