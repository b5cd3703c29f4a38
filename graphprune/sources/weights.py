"""Loading a file of weights into a model: all of it or nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphprune.errors import UsageError
from graphprune.sources.checkpoints import read_state_dict, some

_COUNTER = "num_batches_tracked"


def load_weights(model: nn.Module, path: Path, trust_pickle: bool = False) -> None:
    """Load a file of weights into a model, in place.

    path: ``.safetensors``, or a file of ``torch.save``, read without running code. A state dict inside a checkpoint (under
        ``state_dict``, ``model``, ...) is found, and what wrappers put in front of all names (``module.``, ``_orig_mod.``,
        ``model.`` of a LightningModule) is taken off. Batch counters and names of tied tensors may be missing.
    trust_pickle: also read files whose loading can run code, as those with other Python objects.

    Raises UsageError, with the model unchanged, when the file cannot be read, names or shapes differ, or a value is
    NaN or infinite.
    """
    own = model.state_dict(keep_vars=True)
    found = _rename(read_state_dict(path, trust_pickle), own)
    _check_names(own, found, path, model)
    _check_dense(found, path)
    _check_shapes(own, found, path, model)
    check_finite(model, found, str(path))
    model.load_state_dict(found, strict=False)


def check_finite(model: nn.Module, tensors: Mapping[str, Any], origin: str) -> None:
    """Raise UsageError for the first NaN or infinite value; a buffer may hold minus infinity, as attention masks do."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor) or not tensor.dtype.is_floating_point:
            continue
        if tensor.is_meta:
            raise UsageError(f"{name} of {origin} has no data (it is on the meta device). Build the model on a real device.")
        values = _wide(tensor.detach(), f"{name} of {origin}")
        good = torch.isfinite(values)
        if name not in parameters:
            good |= torch.isneginf(values)
        if not good.all():
            count = int((~good).sum())
            raise UsageError(
                f"{name} of {origin} holds {count} NaN or infinite values of {values.numel()}. Use weights that are finite."
            )


def _wide(values: torch.Tensor, what: str) -> torch.Tensor:
    """Values of eight bits and fewer in a dtype that can be compared. Raises UsageError where there is no way to one."""
    try:
        return values.float() if values.dtype.itemsize == 1 else values
    except (NotImplementedError, RuntimeError) as error:
        raise UsageError(f"{what} is {values.dtype}, which cannot be computed with. Convert it to float32 or bfloat16.") from error


def _rename(found: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Names as the model has them: without what torch.compile, DataParallel, a LightningModule and the like put in front.

    What else is in the file, such as the weights of a loss, is left out where all of the model is behind one prefix.
    """
    if found.keys() <= own.keys():
        return found
    found = {name.replace("_orig_mod.", ""): value for name, value in found.items()}
    prefix = _prefix(found, own)
    bare = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
    return bare if len(bare) == len(found) or not _missing(own, bare) else found


def _prefix(found: Iterable[str], own: Container[str]) -> str:
    """What stands before most names of the model in the file; nothing where two prefixes are as likely."""
    counts = Counter(
        name[:end]
        for name in found
        for end in (0, *(place + 1 for place, letter in enumerate(name) if letter == "."))
        if name[end:] in own
    )
    likely = counts.most_common(2)
    return "" if not likely or (likely[0][1] == likely[-1][1] and len(likely) > 1) else likely[0][0]


def _missing(own: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    given = {id(own[name]) for name in found.keys() & own.keys()}  # two names of one tensor share its identity
    return [name for name in own if name not in found and not name.endswith(_COUNTER) and id(own[name]) not in given]


def _check_names(own: Mapping[str, Any], found: Mapping[str, Any], path: Path, model: nn.Module) -> None:
    kinds = (("missing", _missing(own, found)), ("extra", [name for name in found if name not in own]))
    parts = [f"{len(names)} {kind} ({some(names)})" for kind, names in kinds if names]
    if parts:
        raise UsageError(
            f"{path} does not fit {type(model).__name__}: of {len(own)} tensors, {' and '.join(parts)}. Use this model's weights."
        )


def _check_shapes(own: Mapping[str, Any], found: Mapping[str, Any], path: Path, model: nn.Module) -> None:
    wrong = [
        f"{name} is {_shape(value)} but should be {_shape(own[name])}"
        for name, value in found.items()
        if isinstance(own[name], torch.Tensor) and value.shape != own[name].shape
    ]
    if wrong:
        raise UsageError(
            f"{path} does not fit {type(model).__name__}: {len(wrong)} wrong shapes ({some(wrong)}). "
            "Use this model's weights, or build it as it was trained, as in 'torchvision:resnet18(num_classes=10)'."
        )


def _check_dense(found: Mapping[str, Any], path: Path) -> None:
    """What is not plain numbers in memory would fail when it is copied, or copy something else."""
    for name, value in found.items():
        if value.layout != torch.strided or value.is_quantized or value.is_nested or value.is_meta:
            raise UsageError(
                f"{name} of {path} is no dense tensor with its values in the file. Save model.state_dict() of such ones."
            )


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
