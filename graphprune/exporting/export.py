"""The formats that a model can be written in, and the one way to write any of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from graphprune.artifact import write_artifact
from graphprune.errors import UsageError, unknown
from graphprune.exporting.aot import write_aot
from graphprune.exporting.checking import Exported, Job
from graphprune.exporting.folder import write_folder
from graphprune.exporting.onnx_file import write_onnx
from graphprune.exporting.program import write_program
from graphprune.files import check_writable
from graphprune.ir.program import Inputs
from graphprune.ir.twins import undisturbed
from graphprune.latency.batch import batch_of, has_batch, with_batch
from graphprune.tracing import capture
from graphprune.tracing.inputs import normalise_inputs

_BATCH: Final = 2  # of the example: torch.export takes a size of 1 for a constant


@dataclass(frozen=True)
class Format:
    """What a model can be written as.

    ending: of the file's name; none for a folder. what: in a few words. write: writes a job, and says what the result was
    compared at. sized: it is written for sizes, so that those which may be others have to be known.
    """

    ending: str
    what: str
    write: Callable[[Job], Exported]
    sized: bool = True


def _write_artifact(job: Job) -> Exported:
    write_artifact(job.path, job.module, plan=job.plan, inputs=job.inputs)
    return Exported(note="It was read back before it was written")


#: Formats by name. Where several have the ending of a file's name, the first is meant.
FORMATS: Final[Mapping[str, Format]] = {
    "pt2": Format(".pt2", "a program of torch.export", write_program),
    "aot": Format(".pt2", "machine code of AOTInductor", write_aot),
    "onnx": Format(".onnx", "ONNX; needs the extra onnx", write_onnx),
    "safetensors": Format(".safetensors", "graphprune's own", _write_artifact, sized=False),
    "fx-folder": Format("", "a folder of readable Python source and weights", write_folder, sized=False),
}


def format_of(path: str | Path, name: str | None = None) -> Format:
    """The format of this name, or the one that the path's ending says.

    Raises UsageError for an unknown name, an ending that is no format's, and one that is not that of the named format.

    >>> format_of("slim.onnx").what
    'ONNX; needs the extra onnx'
    """
    ending = Path(path).suffix
    if name is not None and name not in FORMATS:
        raise UsageError(unknown("format", name, FORMATS, "Formats"))
    fitting = [one for key, one in FORMATS.items() if one.ending == ending and (name == key or (name is None and ending))]
    if fitting:
        return fitting[0]
    if name is not None:
        wanted = f"in {FORMATS[name].ending}" if FORMATS[name].ending else "without a full stop: it is a folder"
        raise UsageError(f"The name {path} is not one for the format {name}. End it {wanted}.")
    known = [f"{one.ending} ({one.what})" for key, one in FORMATS.items() if key not in ("aot", "fx-folder")]
    raise UsageError(f"Cannot tell the format of {path} from its name. End it in {', '.join(known)}, or give the format.")


def export_model(
    module: nn.Module,
    inputs: Any,
    path: str | Path,
    *,
    format: str | None = None,
    dynamic: bool | Mapping[str, Sequence[int]] = True,
    plan: str | None = None,
) -> Exported:
    """Write a captured or slim model for another runtime, and run what was written on random inputs, at several batches.

    module: a slim model, or any other that can be captured as a whole. inputs: example inputs, as `prune` takes them. path: of the
    file, or of a new folder. format: a name of :data:`FORMATS`; by the path's ending if None.
    dynamic: the leading size, which all inputs must share, may be any; with names of inputs, these axes of them may be, too:
    ``{"x": (2, 3)}`` for images of any height and width. False: sizes are those of the example.
    plan: JSON text to go with the model, where the format has a place for it.

    The model is written as it is in eval mode, and stays as it is. Atomic. Raises UsageError for another format, for inputs without
    a shared leading size, and where the format cannot say what the model does, and VerificationError where what was written
    computes something else.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_model(torch.nn.Linear(4, 2), torch.zeros(1, 4), f"{folder}/model.pt2").batches
    (1, 2, 3)
    """
    chosen, given = format_of(path, format), normalise_inputs(inputs)
    check_writable(path, folder=not chosen.ending)
    leaves = tree_leaves((given.args, dict(given.kwargs)))
    if chosen.write is not _write_artifact and any(isinstance(leaf, torch.Tensor) and leaf.is_meta for leaf in leaves):
        raise UsageError(
            "The example inputs have no values. Give real ones; of a model that was pruned in scopes, export each by itself: "
            "export_model(model.backbone, inputs, path)."
        )
    graph = module if isinstance(module, fx.GraphModule) else _whole(module, given)
    axes = _axes(graph, given, dynamic) if isinstance(dynamic, Mapping) else {}
    free = bool(dynamic) and (chosen.sized or has_batch(given))
    with torch.no_grad(), undisturbed(graph):
        example = with_batch(given, max(_BATCH, batch_of(given))) if free else given
        return chosen.write(Job(graph, example, Path(path), free, plan, axes))


def _whole(model: nn.Module, inputs: Inputs) -> fx.GraphModule:
    """The graph of a model. Raises UsageError where only parts of it have one."""
    program = capture(model, inputs)
    if program.scopes:
        raise UsageError(
            f"{type(model).__name__} does not trace as a whole, and export takes models that do. Export its parts, each with "
            f"inputs of its own: {', '.join(scope.path for scope in program.scopes)}."
        )
    return program.module


def _axes(module: fx.GraphModule, inputs: Inputs, named: Mapping[str, Sequence[int]]) -> Mapping[str, tuple[int, ...]]:
    """The axes besides the first that may have any size, counted from 0. Raises UsageError for those that no input has."""
    names = [str(node.target) for node in module.graph.find_nodes(op="placeholder")]
    tensors = dict(zip(names, inputs.args, strict=False)) | dict(inputs.kwargs)
    tensors = {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}
    found: dict[str, tuple[int, ...]] = {}
    for name, axes in named.items():
        if name not in tensors:
            raise UsageError(unknown("input", name, tensors, "Inputs"))
        shape = tensors[name].shape
        if wrong := [axis for axis in axes if not -len(shape) <= axis < len(shape)]:
            raise UsageError(f"The input {name} has the axes 0 to {len(shape) - 1}, and none numbered {wrong[0]}.")
        found[name] = tuple(sorted({axis % len(shape) for axis in axes} - {0}))
        if one := [axis for axis in found[name] if shape[axis] == 1]:
            raise UsageError(f"Axis {one[0]} of {name} is 1 in the example, which stands for 1 alone. Give a larger example.")
    return found
