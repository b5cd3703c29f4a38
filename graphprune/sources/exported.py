"""Exported programs: ``.pt2`` files of torch.export, which torch reads only after everything that it would evaluate is checked."""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, Final

import torch
from torch.export.pt2_archive import PT2ArchiveReader

from graphprune.errors import ArtifactError, UsageError
from graphprune.files import check_archive
from graphprune.ir.program import Inputs
from graphprune.quiet import quiet
from graphprune.sources.program_checks import check_program, check_text
from graphprune.sources.source import Source

_MODEL: Final = "models/model.json"
_PARTS: Final = re.compile(
    rf"{_MODEL}|data/(weights|constants|sample_inputs)/\w+\.(pt|json)|data/weights/weight_\d+|data/constants/tensor_\d+|extra/.*"
    r"|\.data/\w+|archive_format|archive_version|byteorder|\.format_version",
    re.ASCII,
)
"""Members of an archive. Others are compiled code, or objects that torch unpickles."""

_CONFIG: Final = "_config.json"
_TOO_LARGE: Final = "parts that are larger than the file"
_TRUST: Final = "or use --trust-pickle if you trust who made it"


def from_exported(path: Path, trust_pickle: bool) -> Source:
    """A ``.pt2`` file of ``torch.export.save``, with the example inputs that it was exported with.

    ``torch.export.load`` was not made for hostile files: it unpickles, evaluates expressions and loads libraries. So a file is
    refused, unless ``trust_pickle``, where it holds anything but plain tensors, and a program of known operators whose texts are
    plain (:mod:`graphprune.sources.program_checks`). Raises UsageError for such parts, and when torch cannot read the file.
    """
    if not zipfile.is_zipfile(path):
        raise UsageError(f"{path} is no exported program, or is truncated. Write it again with torch.export.save.")
    check_archive(path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any("/aotinductor/" in name for name in names) and not any("/models/" in name for name in names):
        raise UsageError(f"{path} is machine code of AOTInductor, which has no layers. Name the model that it was made from.")
    try:
        if not trust_pickle:
            _check(path)
        with quiet():
            program = torch.export.load(path)
            module = program.module()  # with its checks of sizes in Python, which capture takes over
    except ArtifactError as error:
        raise UsageError(f"{path} holds {error}, with which loading can run any code. Export it anew without, {_TRUST}.") from error
    except Exception as error:  # torch's readers raise whatever the damaged part leads to
        raise UsageError(
            f"{path} cannot be read as an exported program: it is damaged, truncated, or made by another version of torch."
        ) from error
    args, kwargs = program.example_inputs or ((), {})
    return Source(module, str(path), None, Inputs(tuple(args), dict(kwargs)) if args or kwargs else None)


def _check(path: Path) -> None:
    """Check an archive, as torch's own reader sees it. Raises ArtifactError for a part that can run code."""
    with zipfile.ZipFile(path) as archive:
        if "version" in archive.namelist():
            raise ArtifactError("a program in the format of torch 2.7")
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise ArtifactError(_TOO_LARGE)
    with quiet(), PT2ArchiveReader(str(path)) as reader:
        names = reader.get_file_names()
        unknown = next((name for name in names if not _PARTS.fullmatch(name)), None)
        twice = next((name for name, count in Counter(map(str.lower, names)).items() if count > 1), None)
        if unknown is not None or twice is not None:
            raise ArtifactError(f"the part {unknown or twice}")
        if sum(_size(reader, name) for name in names) > path.stat().st_size:
            raise ArtifactError(_TOO_LARGE)
        check_program(json.loads(reader.read_bytes(_MODEL)))
        for name in names:
            if name.endswith(_CONFIG):
                _check_payloads(reader, name)
            elif name.endswith(".pt"):
                _check_pickle(reader, name)


def _check_payloads(reader: PT2ArchiveReader, config: str) -> None:
    folder = config.rpartition("/")[0]
    for part, entry in _payloads(json.loads(reader.read_bytes(config))):
        check_text(part)
        if folder == "data/constants" and not part.startswith("tensor_"):
            raise ArtifactError(f"the object {part}")
        if entry.get("use_pickle"):
            _check_pickle(reader, f"{folder}/{part}")
        else:
            shape = [size["as_int"] for size in entry["tensor_meta"]["sizes"]]
            if not _size(reader, f"{folder}/{part}") and prod(shape):
                raise ValueError(f"{part} has no data")  # torch would make it up, however large it is


def _size(reader: PT2ArchiveReader, name: str) -> int:
    """The bytes of a part, which older torch says only of what it has read."""
    ask = getattr(reader.archive_file, "get_record_size", None)
    return len(reader.read_bytes(name)) if ask is None else int(ask(name))


def _payloads(config: Any) -> Iterator[tuple[str, Any]]:
    for entry in config.get("config", {}).values():
        yield entry["path_name"], entry


def _check_pickle(reader: PT2ArchiveReader, name: str) -> None:
    """torch falls back to full unpickling for what its safe loader refuses. Raises ArtifactError where it would."""
    try:
        torch.load(io.BytesIO(reader.read_bytes(name)), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ArtifactError(f"a pickle ({name})") from error
