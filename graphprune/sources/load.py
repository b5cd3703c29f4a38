"""From the text of a source to a model: one table of prefixes and file suffixes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch

from graphprune.errors import UsageError
from graphprune.sources.configs import CONFIG, from_config, from_folder, from_transformers
from graphprune.sources.exported import from_exported
from graphprune.sources.factories import from_python, from_timm, from_torchvision
from graphprune.sources.files import from_artifact, from_pickle
from graphprune.sources.source import Source
from graphprune.sources.weights import check_finite, load_weights

_LIBRARIES: dict[str, Callable[[str], Source]] = {
    "torchvision:": from_torchvision,
    "timm:": from_timm,
    "transformers:": from_transformers,
}
_FILES: dict[str, Callable[[Path, bool], Source]] = {
    ".pt2": from_exported,
    ".safetensors": from_artifact,
    ".pt": from_pickle,
    ".pth": from_pickle,
    ".json": from_config,
}
_PYTHON = re.compile(r"([^\W\d]\w*(\.[^\W\d]\w*)*|.+\.py):")
_FORMS = (
    "torchvision:NAME, timm:NAME, transformers:NAME, package.module:factory or FILE.py:factory, a folder of save_pretrained, or a "
    "file (.safetensors artifact, .pt2 program, .pt or .pth module, config.json of transformers)"
)


def load_source(text: str, *, weights: Path | None = None, trust_pickle: bool = False, seed: int | None = 0) -> Source:
    """Build or read the model that ``text`` names.

    text: ``torchvision:NAME``, ``timm:NAME``, ``transformers:NAME``, ``package.module:factory`` or ``path/file.py:factory``,
        each with optional literal arguments (``torchvision:resnet18(num_classes=10)``), or the path of a folder of save_pretrained,
        a config of one, a ``.pt2`` program, a graphprune ``.safetensors`` artifact, or a pickled module. Models of libraries and of
        configs are built without weights and without downloads.
    weights: a file of weights to load into the model; see :func:`load_weights`.
    trust_pickle: allow files whose loading can run code.
    seed: seed of the fresh weights, so that the same text is the same model again; None draws from the global
        generator, which is otherwise left as it was.

    Raises UsageError when the text, the file or the weights are no good, or a weight is NaN or infinite.
    """
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # that of the CPU alone: fork_rng keeps no other here
        source = _loader(text, trust_pickle)()
    if weights is None:
        check_finite(source.model, source.model.state_dict(), text)
    else:
        load_weights(source.model, weights, trust_pickle)
    return source


def names_code(text: str) -> bool:
    """Whether loading this source imports a module that the text names, and calls what is in it.

    >>> names_code("package.module:factory"), names_code("torchvision:resnet18"), names_code("slim.safetensors")
    (True, False, False)
    """
    library = any(text.startswith(prefix) for prefix in _LIBRARIES)
    return not library and Path(text).suffix.lower() not in _FILES and _PYTHON.match(text) is not None


def _loader(text: str, trust_pickle: bool) -> Callable[[], Source]:
    for prefix, library in _LIBRARIES.items():
        if text.startswith(prefix):
            return lambda: library(text)
    path = Path(text)
    read = _FILES.get(path.suffix.lower())
    if read is not None:
        if not path.is_file():
            raise UsageError(f"There is no file {text}. Check the path, or name a model as {_FORMS}.")
        return lambda: read(path, trust_pickle)
    if _PYTHON.match(text):
        return lambda: from_python(text)
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise UsageError(
                f"{text} is a folder without {CONFIG}, which those of save_pretrained have. Other models are {_FORMS}."
            )
        return lambda: from_folder(path)
    if path.suffix.lower() == ".onnx":
        raise UsageError(f"{text} is an ONNX file, which is for other runtimes. Name the model that it was made from.")
    raise UsageError(f"Cannot tell what kind of model source {text!r} is. Use {_FORMS}.")
