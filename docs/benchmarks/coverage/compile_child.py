"""One model under torch.compile, in a process of its own: ``python compile_child.py KEY RESULT``."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import child
import torch
from suites import load
from torch import nn
from torch.utils._pytree import tree_leaves

import graphprune
from graphprune.errors import GraphpruneError
from graphprune.ir.program import Inputs
from graphprune.latency.batch import with_batch
from graphprune.tracing import normalise_inputs

BATCHES = (2, 3)
Facts = dict[str, Any]


def try_model(key: str, row: child.Row) -> None:
    """Compile the original and the slim model in both modes, and judge."""
    case = load(key)
    torch.manual_seed(0)
    model, example = case.build(), normalise_inputs(case.inputs())
    slim = graphprune.prune(model, example_of(example), verify=False, **child.HOW).model
    calls = batches_of(example)
    row.add(stage="compile", batches=len(calls))
    worse = []
    for mode in ("eval", "train"):
        facts = [compiled_facts(which.train(mode == "train"), calls) for which in (model, slim)]
        row.add(**{f"original_{mode}": facts[0], f"slim_{mode}": facts[1]})
        worse += [f"{mode}: {text}" for text in differences(*facts)]
    row.add(status="worse" if worse else "same", reason="; ".join(worse)[:300])


def example_of(inputs: Inputs) -> Any:
    """Example inputs as a user gives them."""
    return dict(inputs.kwargs) if inputs.kwargs and not inputs.args else inputs.args


def batches_of(inputs: Inputs) -> list[Inputs]:
    """The inputs at the batch sizes; as they are where they have no common one."""
    try:
        return [with_batch(inputs, size) for size in BATCHES]
    except GraphpruneError:
        return [inputs]


def compiled_facts(model: nn.Module, calls: Sequence[Inputs]) -> Facts:
    """What Dynamo makes of a model: whether it is whole, graphs and breaks, and whether it computes what it does eagerly.

    A model that raises an error, compiled or not, has that instead.
    """
    try:
        whole = facts_of(model, calls, fullgraph=True)
        return {**whole, "whole": True}
    except Exception as error:
        reason = child.message(error)[:200]
    try:
        return {**facts_of(model, calls, fullgraph=False), "whole": False, "refusal": reason}
    except Exception as error:
        return {"error": child.message(error)[:200]}


def facts_of(model: nn.Module, calls: Sequence[Inputs], *, fullgraph: bool) -> Facts:
    """Graphs and breaks of a copy of a model, and whether outputs and running statistics are those of another, uncompiled copy."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    eager, other = copy.deepcopy(model), copy.deepcopy(model)
    compiled = torch.compile(other, fullgraph=fullgraph, backend="eager")
    equal = True
    with torch.no_grad():
        for call in calls:
            outputs = []
            for which in (eager, compiled):
                torch.manual_seed(1)
                outputs.append([leaf for leaf in tree_leaves(which(*call.args, **call.kwargs)) if isinstance(leaf, torch.Tensor)])
            equal &= same(*outputs)
    equal &= same(list(eager.state_dict().values()), list(other.state_dict().values()))
    breaks = sum(counters["graph_break"].values())
    return {"graphs": int(counters["stats"]["unique_graphs"]), "breaks": int(breaks), "equal": equal}


def same(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> bool:
    """Whether tensors are equal to rounding."""
    return len(first) == len(second) and all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-4, equal_nan=True) for a, b in zip(first, second, strict=True)
    )


def differences(original: Facts, slim: Facts) -> list[str]:
    """In what the slim model is worse than its original."""
    if "error" in slim:
        return [] if "error" in original else [f"the slim model fails: {slim['error']}"]
    found = [] if slim["equal"] else ["compiled and eager differ"]
    if "error" in original:
        return found
    if original["whole"] and not slim["whole"]:
        found.append(f"not whole: {slim['refusal']}")
    found += [f"{slim[what]} {what} for {original[what]}" for what in ("graphs", "breaks") if slim[what] > original[what]]
    return found


if __name__ == "__main__":
    child.fill(try_model)
