"""The artifact file: safetensors with the graph, the modules, the plan and the provenance in its metadata.

Every metadata value is text: ``format`` (``pt``, by the custom of safetensors), ``graphprune`` (version of this layout),
``torch`` (version that wrote it), ``graph``, ``modules``, ``tensors``, ``inputs``, ``provenance`` (JSON), ``plan`` (JSON, absent
when there is none) and ``digest`` (SHA-256 over all of that and the tensors' bytes, so that a damaged file is told from a
sound one; it is no signature).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import torch
from safetensors.torch import save_file
from torch import fx

from graphprune.artifact.graph_data import decode_graph, encode_graph
from graphprune.artifact.inputs_data import decode_inputs, encode_inputs
from graphprune.artifact.modes import EVAL_ONLY, modes_in
from graphprune.artifact.module_data import decode_modules, encode_modules
from graphprune.artifact.tensors import TensorTable, restore
from graphprune.artifact.values import shorten
from graphprune.errors import ArtifactError, first_line, typed_line
from graphprune.files import atomic_write, check_writable
from graphprune.ir.program import Inputs
from graphprune.ir.reads import depends_on_values

VERSION = "1"
_PARTS = ("graph", "modules", "tensors", "inputs", "provenance")
_REMEDY = "get an undamaged copy or write it again with graphprune"


@dataclass(frozen=True)
class Artifact:
    """What a file holds.

    module: the model, on the CPU, with the train/eval mode of every module as it was.
    plan: the pruning plan as JSON text, if the file has one.
    inputs: example inputs of the recorded shapes and dtypes: zeros, but for the integers that a graph decides by.
    provenance: where the model came from, free text by key.
    """

    module: fx.GraphModule
    plan: str | None
    inputs: Inputs
    provenance: Mapping[str, str]


def write_artifact(
    path: str | os.PathLike[str],
    module: fx.GraphModule,
    *,
    plan: str | None = None,
    inputs: Inputs | None = None,
    provenance: Mapping[str, str] | None = None,
) -> None:
    """Write a graph module as an artifact, atomically.

    plan: JSON text to go with it. inputs: example inputs, of which shapes and dtypes are kept, and
        integers where the graph decides by them. provenance: free text by key.

    What is written has been read back in memory first, so that whatever is saved also loads. Raises
    UsageError where the path cannot be written and ArtifactError where the model has a part that is not plain data;
    an existing file is then as it was.
    """
    check_writable(path)
    table = TensorTable()
    try:
        parts = {"modules": encode_modules(module, table), "graph": encode_graph(module.graph), "tensors": table.facts}
        parts["inputs"] = encode_inputs(inputs or Inputs(), integers=depends_on_values(module.graph))
        parts["provenance"] = dict(provenance or {})
        metadata = {name: json.dumps(part, allow_nan=False) for name, part in parts.items()}
        metadata |= {"format": "pt", "graphprune": VERSION, "torch": str(torch.__version__)} | (
            {} if plan is None else {"plan": plan}
        )
        stored = {name: tensor.cpu().contiguous() for name, tensor in table.tensors.items()}
        _open(metadata, stored)
        metadata["digest"] = digest(metadata, stored)
    except (ArtifactError, TypeError, ValueError) as error:
        remedy = "Write a torch.export program instead (-o slim.pt2)."
        raise ArtifactError(f"Cannot write {path} as an artifact: {error}. {remedy}") from error
    with atomic_write(path, sum(tensor.nbytes for tensor in stored.values())) as temporary:
        mode = temporary.stat().st_mode
        try:
            save_file(_unshared(stored), temporary, metadata)
        except (safetensors.SafetensorError, KeyError, RuntimeError) as error:
            _raise_system_error(str(error))
            raise ArtifactError(f"Cannot write {path}: safetensors failed ({typed_line(error)}).") from error
        temporary.chmod(mode)  # safetensors makes a file of its own, for the owner alone


def _raise_system_error(text: str) -> None:
    """Raise the error of the system that a message of safetensors tells of, if it does: a full disk, for one."""
    number = re.search(r"\(os error (\d+)\)", text)
    if number is not None:
        raise OSError(int(number[1]), os.strerror(int(number[1])))


def _unshared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of the tensors that overlap others in memory (views of one another), which safetensors refuses."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return result


def read_artifact(path: str | os.PathLike[str]) -> Artifact:
    """Read an artifact. It needs no code but torch, torchvision and graphprune, and runs none of the model.

    Raises ArtifactError, naming the file and the remedy, for a file that is missing, damaged, of another kind or version,
    or that asks for something that an artifact may not hold.
    """
    file = Path(path)
    metadata: Mapping[str, str] = {}
    try:
        metadata, tensors = _load(file)
        _check_version(file, metadata)
        if metadata.get("digest") != digest(metadata, tensors):
            raise ArtifactError("its content does not match its own checksum")
        return _open(metadata, tensors)
    except ArtifactError as error:
        if str(error).startswith(str(file)):  # a whole sentence already
            raise
        raise ArtifactError(f"{file} cannot be loaded: {error}; {_REMEDY}{_written_by(metadata)}.") from error
    except Exception as error:  # a hostile file must not choose the exception
        raise ArtifactError(f"{file} cannot be loaded ({typed_line(error)}); {_REMEDY}.") from error


def _written_by(metadata: Mapping[str, str]) -> str:
    writer = metadata.get("torch", str(torch.__version__))
    same = writer.split("+")[0] == str(torch.__version__).split("+")[0]
    return "" if same else f" (it was written with torch {shorten(writer)}, this is {torch.__version__})"


def _load(file: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata and tensors of a safetensors file."""
    if not file.is_file():
        raise ArtifactError(f"{file} is not a file; check the path.")
    try:
        with safetensors.safe_open(file, framework="pt", device="cpu") as handle:
            return dict(handle.metadata() or {}), {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        _explain(file, error)


def _explain(file: Path, error: Exception) -> NoReturn:
    """One sentence for a file that is not safetensors."""
    try:
        with file.open("rb") as stream:
            start = stream.read(8)
    except OSError as reason:
        raise ArtifactError(f"{file} cannot be read ({reason.strerror}); check its permissions.") from reason
    for mark, kind in ((b"PK", "a zip file, such as a PyTorch checkpoint or a .pt2 program,"), (b"\x80", "a pickle")):
        if start.startswith(mark):
            remedy = "give it the extension of its kind, or pass weights with --weights"
            raise ArtifactError(f"{file} is {kind} and not a graphprune artifact; {remedy}.") from error
    raise ArtifactError(f"{file} is not a whole safetensors file ({first_line(error)}); {_REMEDY}.") from error


def _check_version(file: Path, metadata: Mapping[str, str]) -> None:
    version = metadata.get("graphprune")
    if version is None:
        remedy = "if it holds weights, pass it with --weights"
        raise ArtifactError(f"{file} is a safetensors file but not a graphprune artifact; {remedy}.")
    if version != VERSION:
        remedy = "use the graphprune that wrote it"
        raise ArtifactError(f"{file} has artifact version {shorten(version)} and this graphprune reads {VERSION}; {remedy}.")


def digest(metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the metadata (but the digest itself) and of the tensors' names, dtypes, shapes and bytes, in hexadecimal."""
    state = hashlib.sha256(json.dumps(sorted(item for item in metadata.items() if item[0] != "digest")).encode())
    for name, tensor in sorted(tensors.items()):
        state.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        state.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def _open(metadata: Mapping[str, str], stored: Mapping[str, torch.Tensor]) -> Artifact:
    """Everything checked and rebuilt. Raises ArtifactError with a reason."""
    parts = {name: _json(metadata, name) for name in _PARTS}
    plan = metadata.get("plan")
    if plan is not None:
        _json(metadata, "plan")
    provenance = parts["provenance"]
    if type(provenance) is not dict or any(type(value) is not str for value in provenance.values()):
        raise ArtifactError("the provenance is not a table of texts")
    module = decode_modules(parts["modules"], restore(parts["tensors"], stored))
    _set_graph(module, decode_graph(parts["graph"], module))
    module.meta[EVAL_ONLY] = modes_in(provenance)
    return Artifact(module, plan, decode_inputs(parts["inputs"]), provenance)


def _set_graph(module: fx.GraphModule, graph: fx.Graph) -> None:
    try:
        module.graph = graph  # compiles the generated forward, and runs nothing
    except Exception as error:
        raise ArtifactError(f"the graph does not compile ({typed_line(error)})") from error


def _json(metadata: Mapping[str, str], name: str) -> Any:
    if name not in metadata:
        raise ArtifactError(f"the part {name!r} is missing")
    try:
        return json.loads(metadata[name], parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"the part {name!r} is not JSON ({shorten(str(error))})") from error


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")
