"""A copy of a model, of its own class, whose layers and tensors are those of a slim graph."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import torch
from pydantic import TypeAdapter, ValidationError
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from graphprune.arithmetic import full_precision
from graphprune.channels.tape import plain_containers
from graphprune.errors import ArtifactError, CaptureError, RewriteError, first_line, typed_line
from graphprune.ir.program import Inputs
from graphprune.ir.twins import copies_of_computed, modules_by_path, named_tensors, undisturbed
from graphprune.own_class.attributes import Attributes, Stated, set_attributes, stated
from graphprune.own_class.calls import first_difference
from graphprune.own_class.restated import restate
from graphprune.passes.verification.verify import relative_error
from graphprune.randomness import own_randomness, seed_generators
from graphprune.result import PruneResult
from graphprune.verification import TOLERANCE

_KEY: Final = "attributes"
_ATTRIBUTES: Final = TypeAdapter(Attributes)


def seated(model: nn.Module, slim: fx.GraphModule, attributes: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """A deep copy of the model in which the layers and tensors of the slim graph, shared with it, stand for their namesakes.

    attributes: new values of attributes of its modules. What the graph does not use is copied as it is. Raises RewriteError where
    the model cannot be copied, or lacks one of these.
    """
    memo = copies_of_computed(model)
    small, modules = named_tensors(slim), modules_by_path(model)
    for name, tensor in named_tensors(model).items():
        if name in small:
            memo[id(tensor)] = small[name]
    for path in {str(node.target) for node in slim.graph.nodes if node.op == "call_module"}:
        memo[id(modules[path])] = slim.get_submodule(path)
    try:
        result = copy.deepcopy(model, memo)
    except Exception as error:
        raise RewriteError(
            f"{type(model).__name__} cannot be copied ({typed_line(error)}), and a slim model of its class "
            "is a copy of it. Leave out keep_class."
        ) from error
    set_attributes(result, attributes, model)
    restate(result, model)
    return result


def in_own_class(result: PruneResult, model: nn.Module, inputs: Inputs, *, check: bool = True) -> PruneResult:
    """The result with a model of the original's class. Raises RewriteError unless its own code runs what the slim graph runs.

    inputs: example inputs of the model. check: False where this plan was checked before.
    """
    try:
        attributes = stated(model, result.graph, result.plan.policy)
        if result.config is not None and result.config.stated:
            own_config = {f"config.{name}": value for name, value in result.config.stated.items()}
            attributes[""] = {**attributes.get("", {}), **own_config}
        own = seated(model, result.graph, attributes)
        difference = _differs(own, inputs, result) if check else ""
    except (CaptureError, Stated) as error:
        difference = first_line(error)
    if difference:
        raise RewriteError(
            f"The code of {type(model).__name__} cannot follow this plan: {difference.rstrip('.')}. "
            "Leave out keep_class, or have `prune` choose with it."
        )
    report = replace(result.report, eval_only={})  # its own code runs in every mode
    return replace(result, model=own, report=report, keeps_class=True, attributes=attributes)


def _differs(own: nn.Module, inputs: Inputs, result: PruneResult) -> str:
    """What a model does otherwise than the graph of the result, if it does: its operators, or else its outputs."""
    difference = first_difference(own, inputs, result.graph, result.inputs, result.scopes)
    return difference if difference or result.scopes else _difference(_outputs(own, inputs), _outputs(result.graph, result.inputs))


def _outputs(model: nn.Module, inputs: Inputs) -> list[Any]:
    with undisturbed(model), torch.no_grad(), full_precision(), own_randomness():
        seed_generators(0)  # whichever draws in eval mode draws the same
        return tree_leaves(plain_containers(model(*inputs.args, **inputs.kwargs)))


def _difference(own: list[Any], graph: list[Any]) -> str:
    """How far outputs are apart on the example inputs, if they are: what runs the same operators should give the same numbers."""
    pairs = [pair for pair in zip(graph, own, strict=False) if all(isinstance(one, torch.Tensor) for one in pair)]
    for reference, found in pairs:
        error = relative_error(reference, found)
        if not error <= TOLERANCE.get(reference.dtype, 0.0):
            return f"on the example inputs its outputs are {error:.1e} from those of the slim graph (relative)"
    return ""


def describe_class(result: PruneResult) -> dict[str, str]:
    """What a model that keeps its class needs besides its tensors, as an entry of an artifact's provenance; none for any other."""
    if not result.keeps_class:
        return {}
    return {_KEY: _ATTRIBUTES.dump_json({path: dict(values) for path, values in result.attributes.items()}).decode()}


def class_in(provenance: Mapping[str, str]) -> Attributes | None:
    """Attributes of the model in an artifact that keeps its class; None for a graph. Raises ArtifactError."""
    if _KEY not in provenance:
        return None
    try:
        return _ATTRIBUTES.validate_json(provenance[_KEY])
    except ValidationError as error:
        raise ArtifactError("The artifact's list of attributes cannot be read. Get an undamaged copy or write it again.") from error
