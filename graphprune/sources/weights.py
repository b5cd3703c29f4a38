"""Loading a file of weights into a model: all of it or nothing."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from graphprune.errors import UsageError, first_line
from graphprune.files import check_archive

_NESTED = ("state_dict", "model_state_dict", "model", "net", "module", "ema")
_COUNTER = "num_batches_tracked"
_SHOWN = 3
_LEVELS = 8


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a file of weights into a model, in place.

    path: ``.safetensors``, or ``.pt``, ``.pth``, ``.th`` or ``.bin`` of ``torch.save``, read without running code. A
        state dict inside a checkpoint (under ``state_dict``, ``model``, ...) is found, and the prefixes that wrappers
        add (``module.``, ``_orig_mod.``) are taken off. Batch counters and names of tied tensors may be missing.

    Raises UsageError, with the model unchanged, when the file cannot be read, names or shapes differ, or a value is
    NaN or infinite.
    """
    own = model.state_dict(keep_vars=True)
    found = _rename(_state_dict(_read(path), path), own)
    _check_names(own, found, path, model)
    _check_dense(found, path)
    _check_shapes(own, found, path, model)
    check_finite(model, found, str(path))
    model.load_state_dict(found, strict=False)


def holds_weights(path: Path) -> bool:
    """Whether a file of ``torch.save`` holds weights by name, found out without running code."""
    try:
        return bool(_state_dict(_read_torch(path), path))
    except UsageError:
        return False


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


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"There is no weights file {path}. Check the path.")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"Cannot tell the format of the weights file {path}. Use one of {', '.join(_READERS)}.")
    return reader(path)


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError) as error:
        raise UsageError(
            f"{path} is not a safetensors file, or is truncated ({first_line(error)}). Get or write it again."
        ) from error


def _read_torch(path: Path) -> Any:
    try:
        check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except UsageError:
        raise
    except pickle.UnpicklingError as error:
        if "Weights only load failed" in str(error) and "GLOBAL" in str(error):
            raise UsageError(
                f"{path} holds Python objects beside tensors, and loading those can run any code. "
                "Where you trust it, load it and save only model.state_dict()."
            ) from error
        raise _damaged(path) from error
    except Exception as error:  # the reader raises whatever the damaged bytes lead to
        if "TorchScript" in str(error):
            raise UsageError(
                f"{path} is a scripted (TorchScript) model, not a file of weights. Save its state_dict() instead."
            ) from error
        raise _damaged(path) from error


def _damaged(path: Path) -> UsageError:
    return UsageError(f"{path} is no file of weights saved by torch, or is truncated. Get or write it again.")


_READERS: dict[str, Callable[[Path], Any]] = {
    ".safetensors": _read_safetensors,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".th": _read_torch,
    ".bin": _read_torch,
}


def _state_dict(content: Any, path: Path) -> dict[str, Any]:
    """The state dict in a file's content, however deep a training script has wrapped it."""
    level = content
    for _ in range(_LEVELS):  # a dict may hold itself
        if not isinstance(level, Mapping) or not level:
            break
        if all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in level.items()):
            return dict(level)
        inner = next((level[name] for name in _NESTED if isinstance(level.get(name), Mapping)), None)
        if inner is None:
            break
        level = inner
    keys = f" with the keys {_some(map(str, level))}" if isinstance(level, Mapping) and level else ""
    raise UsageError(f"{path} holds a {type(level).__name__}{keys}, not weights by name. Save model.state_dict().")


def _rename(found: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Names as the model has them: without what torch.compile, DataParallel and the like put in front."""
    if found.keys() <= own.keys():
        return found
    found = {name.replace("_orig_mod.", ""): value for name, value in found.items()}
    while not found.keys() <= own.keys() and all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): value for name, value in found.items()}
    return found


def _check_names(own: Mapping[str, Any], found: Mapping[str, Any], path: Path, model: nn.Module) -> None:
    given = {id(own[name]) for name in found.keys() & own.keys()}  # two names of one tensor share its identity
    missing = [name for name in own if name not in found and not name.endswith(_COUNTER) and id(own[name]) not in given]
    extra = [name for name in found if name not in own]
    parts = [f"{len(names)} {kind} ({_some(names)})" for kind, names in (("missing", missing), ("extra", extra)) if names]
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
            f"{path} does not fit {type(model).__name__}: {len(wrong)} wrong shapes ({_some(wrong)}). "
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


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_SHOWN]) + (", ..." if len(listed) > _SHOWN else "")
