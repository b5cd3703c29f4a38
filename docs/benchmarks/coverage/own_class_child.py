"""One model that keeps its class, in a process of its own: ``python own_class_child.py KEY RESULT``."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import child
import torch
from compile_child import example_of, same
from suites import load
from torch import nn
from torch.utils._pytree import tree_leaves

import graphprune
from graphprune.ir.program import Inputs
from graphprune.tracing import normalise_inputs


def try_model(key: str, row: child.Row) -> None:
    """Prune it as a graph and in its class, and compare."""
    case = load(key)
    torch.manual_seed(0)
    model, inputs = case.build().eval(), normalise_inputs(case.inputs())
    example = example_of(inputs)
    child.warm_up()
    total = child.parameters(model)

    def pruned(**how: Any) -> graphprune.PruneResult:
        return graphprune.prune(model, example, verify=False, **child.HOW, **how)

    def left(result: graphprune.PruneResult) -> float:
        return (result.report.after.parameters + total - result.report.before.parameters) / total

    graph, seconds = timed(pruned)
    row.add(stage="own class", graph_left=left(graph), graph_seconds=seconds)
    own, seconds = timed(lambda: pruned(keep_class=True))
    assert type(own.model) is type(model)
    reasons = Counter(group.reason.text for group in own.groups.frozen if group.reason and "own code" in group.reason.text)
    row.add(
        own_left=left(own),
        own_seconds=seconds,
        stays=sum(reasons.values()),
        why=next((text for text, _ in reasons.most_common(1)), "")[:160],
        attributes=sum(map(len, own.attributes.values())),
        train=in_train_mode(model, own.model, inputs),
    )
    equal = own.scopes or same(outputs(own.model, inputs), outputs(own.graph, inputs))
    fine = equal and row.facts["train"] != "fails"
    row.add(status="same" if fine else "differs", reason="" if fine else "in train mode" if equal else "other outputs")


def timed(make: Callable[[], Any]) -> tuple[Any, float]:
    """A result, and the CPU seconds that it took."""
    start = time.process_time()
    result = make()
    return result, time.process_time() - start


def outputs(model: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    """Tensors that a model returns."""
    with torch.no_grad():
        result = model(*inputs.args, **inputs.kwargs)
    return [leaf.float() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def in_train_mode(original: nn.Module, slim: nn.Module, inputs: Inputs) -> str:
    """Whether a copy of the slim model runs in train mode: ``runs``, ``fails``, or ``as its original`` where that fails."""
    found = []
    for model in (original, slim):
        try:
            outputs(copy.deepcopy(model).train(), inputs)
            found.append(True)
        except Exception:
            found.append(False)
    return "runs" if found[1] else "fails" if found[0] else "as its original"


if __name__ == "__main__":
    child.fill(try_model)
