"""The formats that a model can be written in, and the one way to write any of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import fx

from graphprune.artifact import write_artifact
from graphprune.errors import UsageError, unknown
from graphprune.exporting.aot import write_aot
from graphprune.exporting.checking import Exported, Job
from graphprune.exporting.folder import write_folder
from graphprune.exporting.onnx_file import write_onnx
from graphprune.exporting.program import write_program
from graphprune.files import check_writable
from graphprune.ir.program import Inputs
from graphprune.latency.batch import batch_of, with_batch

_BATCH: Final = 2  # of the example: torch.export takes a size of 1 for a constant


@dataclass(frozen=True)
class Format:
    """What a model can be written as.

    ending: of the file's name; none for a folder. what: in a few words. write: writes a job, and says what the result was
    compared at.
    """

    ending: str
    what: str
    write: Callable[[Job], Exported]


def _write_artifact(job: Job) -> Exported:
    write_artifact(job.path, job.module, plan=job.plan, inputs=job.inputs)
    return Exported(note="It was read back before it was written")


#: Formats by name. Where several have the ending of a file's name, the first is meant.
FORMATS: Final[Mapping[str, Format]] = {
    "pt2": Format(".pt2", "a program of torch.export", write_program),
    "aot": Format(".pt2", "machine code of AOTInductor", write_aot),
    "onnx": Format(".onnx", "ONNX; needs the extra onnx", write_onnx),
    "safetensors": Format(".safetensors", "graphprune's own", _write_artifact),
    "fx-folder": Format("", "a folder of readable Python source and weights", write_folder),
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
    module: fx.GraphModule,
    inputs: Inputs,
    path: str | Path,
    *,
    format: str | None = None,
    dynamic: bool = True,
    plan: str | None = None,
) -> Exported:
    """Write a captured or slim model for another runtime, and run what was written on random inputs, at several batches.

    inputs: example inputs. path: of the file, or of the folder. format: a name of :data:`FORMATS`; by the path's ending if None.
    dynamic: the leading size, which all inputs must share, may be any; otherwise sizes are those of the example.
    plan: JSON text to go with the model, where the format has a place for it.

    The model is written as it is in eval mode, and stays in the mode that it is in. Atomic. Raises UsageError for another format,
    for inputs without a shared leading size, and where the format cannot say what the model does, and VerificationError where
    what was written computes something else.

    >>> import tempfile, torch, graphprune
    >>> program = graphprune.capture(torch.nn.Linear(4, 2), torch.zeros(1, 4))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_model(program.module, program.inputs, f"{folder}/model.pt2").batches
    (1, 2, 3)
    """
    chosen = format_of(path, format)
    check_writable(path)
    mode = module.training
    module.eval()
    try:
        with torch.no_grad():
            example = with_batch(inputs, max(_BATCH, batch_of(inputs))) if dynamic else inputs
            return chosen.write(Job(module, example, Path(path), dynamic, plan))
    finally:
        module.train(mode)
