"""Files of slim models: save and load."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final, cast, overload

import torch
from torch import fx, nn

from graphprune.arithmetic import callers_modes_off
from graphprune.artifact import read_artifact, write_artifact
from graphprune.artifact.modes import describe_modes
from graphprune.artifact.parts import describe_parts, parts_in, with_weights_of
from graphprune.errors import ArtifactError, RewriteError, UsageError
from graphprune.files import check_writable, write_whole
from graphprune.ir.twins import checked_module, twin, unwrapped
from graphprune.own_class.seat import class_in, describe_class, seated
from graphprune.placement import placement_of, with_values
from graphprune.result import PruneResult
from graphprune.tracing import put_back

_ARTIFACT: Final = ".safetensors"
_PROGRAM: Final = ".pt2"


def save(result: PruneResult | nn.Module, path: str | Path, *, like: str | Path | None = None) -> None:
    """Write a slim model as one safetensors file that needs neither the original code nor pickle to load.

    Of a model that was pruned in scopes the file holds all but the code around these; :func:`load` then asks for the
    original. One that keeps its class is written as its graph, and loads into the original, too. ``.pt2`` writes an exported
    program instead. Atomic.

    result: of a pruning; its model may have been trained since. Or a model that was loaded from a file, and trained since.
    like: that file, for a model; what it holds is written again, with the model's weights.

    Raises UsageError where the path cannot be written, or tells of no format, and ArtifactError where the model holds something
    that the format cannot, or does not go with the file.
    """
    path = Path(path)
    if path.suffix not in (_ARTIFACT, _PROGRAM):
        raise UsageError(f"Cannot tell the format of {path} from its name. End it in {_ARTIFACT}, or in {_PROGRAM} (torch.export).")
    if not isinstance(result, PruneResult):
        _save_again(result, path, like)
    elif path.suffix == _PROGRAM:
        _save_exported(result, path)
    else:
        _save_artifact(result, path)


def _save_artifact(result: PruneResult, path: Path) -> None:
    scopes = result.scopes
    write_artifact(
        path,
        with_weights_of(result.model, result.graph)
        if scopes or result.keeps_class
        else with_values(result.graph, placement_of(result.model)),
        plan=result.plan.model_dump_json(),
        inputs=result.inputs,
        provenance={
            "source": result.source,
            "pipeline": result.plan.pipeline,
            **describe_parts(scopes),
            **describe_class(result),
            **describe_modes(result.report.eval_only),
        },
    )


def _save_again(model: nn.Module, path: Path, like: str | Path | None) -> None:
    if like is None:
        raise UsageError(
            f"What is saved is the result of a pruning, not its model, and this is a {type(model).__name__}. Of a model that was "
            "loaded, name the file that it is from: graphprune.save(model, path, like=...)."
        )
    if path.suffix != _ARTIFACT:
        raise UsageError(f"{path} cannot hold what {like} does. Write a {_ARTIFACT} file, which `graphprune export` takes.")
    model = unwrapped(checked_module(model))
    artifact = read_artifact(like)
    old, new = (module.state_dict(keep_vars=True) for module in (artifact.module, model))
    if {name: tensor.shape for name, tensor in old.items()} != {name: tensor.shape for name, tensor in new.items()}:
        raise ArtifactError(
            f"{like} is not the file of this {type(model).__name__}, whose weights have other names or shapes. "
            "Give the one that it was loaded from."
        )
    names = {id(tensor): name for name, tensor in old.items()}
    module = cast(fx.GraphModule, twin(artifact.module, lambda tensor: new.get(names.get(id(tensor), ""), tensor)))
    write_artifact(path, module, plan=artifact.plan, inputs=artifact.inputs, provenance=artifact.provenance)


def _save_exported(result: PruneResult, path: Path) -> None:
    if result.scopes:
        raise ArtifactError(
            f"{path} cannot hold this model, which runs code around its pruned parts ({', '.join(result.report.scopes)}). "
            "Write a .safetensors file, which loads into the original."
        )
    check_writable(path)
    mode = result.model.training
    exported = torch.export.export(result.graph.eval(), result.inputs.args, dict(result.inputs.kwargs))
    result.model.train(mode)
    stream = io.BytesIO()  # in memory first: torch aborts the process on a full disk
    torch.export.save(exported, stream, extra_files={"plan.json": result.plan.model_dump_json()})
    write_whole(path, stream.getvalue())


@overload
def load(path: str | Path) -> fx.GraphModule: ...


@overload
def load(path: str | Path, model: nn.Module) -> nn.Module: ...


@callers_modes_off()
def load(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Load a slim model written by :func:`save`, without the code of the original and without pickle.

    model: the original, with any weights, for a file that holds pruned parts of a model, or a model that keeps its class: a copy of
        it with these parts, or layers, and all weights of the file is returned, and the model itself is not changed. Not used for
        other files.

    What is not as the original when trained, and why, is in ``meta["eval_only"]`` of the graph module, as in
    ``report.eval_only`` of the pruning.

    Raises ArtifactError for a file that is damaged, hostile, no artifact, or does not go with the model.
    """
    if not isinstance(path, str | Path):
        raise UsageError(f"Expected the path of a slim model, got {type(path).__name__}: graphprune.load(path, model).")
    artifact = read_artifact(path)
    scopes = parts_in(artifact.provenance)
    attributes = class_in(artifact.provenance)
    if not scopes and (attributes is None or model is None):
        return artifact.module
    if model is None:
        raise ArtifactError(
            f"{path} holds parts of a model that does not trace as a whole ({', '.join(scope.path for scope in scopes)}). "
            "Give the original, whose code runs them: graphprune.load(path, model)."
        )
    try:
        original = unwrapped(model)
        small = artifact.module
        whole = put_back(original, small, scopes) if attributes is None else seated(original, small, attributes)
        whole.load_state_dict(artifact.module.state_dict())
    except (AttributeError, KeyError, IndexError, RuntimeError, RewriteError) as error:
        raise ArtifactError(
            f"{path} does not go with this {type(model).__name__}, whose parts or weights have other names or shapes. "
            f"Give the model that was pruned{f': {source}' if (source := artifact.provenance.get('source')) else ''}."
        ) from error
    return whole
