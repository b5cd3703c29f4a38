"""Reading files of weights: formats, and what training scripts wrap around a state dict."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from graphprune.errors import UsageError, first_line
from graphprune.files import check_archive

_NESTED: Final = ("state_dict", "model_state_dict", "model", "net", "module", "ema")  # in this order, where there are several
_PLAIN_OBJECTS: Final[list[Any]] = [argparse.Namespace]  # which scripts keep beside weights; they hold values and run nothing
_ZIP, _PICKLE = b"PK", b"\x80"
_SHOWN = 3
_LEVELS = 8


def read_state_dict(path: Path, trust_pickle: bool = False) -> dict[str, Any]:
    """The tensors by name in a file of weights, however deep a training script has wrapped them.

    path: ``.safetensors``, or what ``torch.save`` has written, under any name (``.pt``, ``.pth``, ``.ckpt``, ``.pth.tar``).
    trust_pickle: also read what loading can run code; the state dict of a whole module then, too.

    Raises UsageError when the file cannot be read or holds no weights.
    """
    if not path.is_file():
        raise UsageError(f"There is no weights file {path}. Check the path.")
    return _state_dict(_reader(path)(path, trust_pickle), path)


def holds_weights(path: Path) -> bool:
    """Whether a file of ``torch.save`` holds weights by name, found out without running code."""
    try:
        return bool(_state_dict(_read_torch(path), path))
    except UsageError:
        return False


def some(names: Iterable[str]) -> str:
    """The first of many names, for a message."""
    listed = list(names)
    return ", ".join(listed[:_SHOWN]) + (", ..." if len(listed) > _SHOWN else "")


def _reader(path: Path) -> Callable[[Path, bool], Any]:
    found = _READERS.get(path.suffix.lower())
    if found is not None:
        return found
    with path.open("rb") as file:
        if file.read(2).startswith((_ZIP, _PICKLE)):
            return _read_torch
    raise UsageError(f"Cannot tell the format of the weights file {path}. Use one of {', '.join(_READERS)}.")


def _read_safetensors(path: Path, trust_pickle: bool = False) -> Any:
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError) as error:
        raise UsageError(
            f"{path} is not a safetensors file, or is truncated ({first_line(error)}). Get or write it again."
        ) from error


def _read_torch(path: Path, trust_pickle: bool = False) -> Any:
    try:
        check_archive(path)
        with torch.serialization.safe_globals(_PLAIN_OBJECTS):
            return torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except UsageError:
        raise
    except pickle.UnpicklingError as error:
        if "Weights only load failed" in str(error) and "GLOBAL" in str(error):
            raise UsageError(
                f"{path} holds Python objects beside tensors, and loading those can run any code. Use --trust-pickle if you trust "
                "who made it, or save only model.state_dict()."
            ) from error
        raise _damaged(path) from error
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{path} needs code that is not here: {first_line(error)}. Run where it can be imported.") from error
    except Exception as error:  # the reader raises whatever the damaged bytes, or the code that they run, lead to
        if "TorchScript" in str(error):
            raise UsageError(
                f"{path} is a scripted (TorchScript) model, not a file of weights. Save its state_dict() instead."
            ) from error
        raise _damaged(path) from error


def _damaged(path: Path) -> UsageError:
    return UsageError(f"{path} is no file of weights saved by torch, or is truncated. Get or write it again.")


_READERS: Final[dict[str, Callable[[Path, bool], Any]]] = {
    ".safetensors": _read_safetensors,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".th": _read_torch,
    ".bin": _read_torch,
    ".ckpt": _read_torch,
    ".tar": _read_torch,
}


def _state_dict(content: Any, path: Path) -> dict[str, Any]:
    level = content
    for _ in range(_LEVELS):  # a dict may hold itself
        level = level.state_dict() if isinstance(level, nn.Module) else level
        if not isinstance(level, Mapping) or not level:
            break
        if _is_state_dict(level):
            return dict(level)
        inner = _inner(level)
        if inner is None:
            break
        level = inner
    keys = f" with the keys {some(map(str, level))}" if isinstance(level, Mapping) and level else ""
    raise UsageError(f"{path} holds a {type(level).__name__}{keys}, not weights by name. Save model.state_dict().")


def _inner(level: Mapping[Any, Any]) -> Any:
    """What may hold the weights: an entry of a usual name, or the only one that is a state dict."""
    for name in _NESTED:
        if isinstance(level.get(name), Mapping | nn.Module):
            return level[name]
    others = [value for value in level.values() if isinstance(value, Mapping | nn.Module) and _is_state_dict(value)]
    return others[0] if len(others) == 1 else None


def _is_state_dict(value: Mapping[Any, Any] | nn.Module) -> bool:
    if isinstance(value, nn.Module):
        return True
    return bool(value) and all(isinstance(name, str) and isinstance(item, torch.Tensor) for name, item in value.items())
