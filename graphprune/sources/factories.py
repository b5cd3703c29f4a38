"""Models built by code: torchvision, timm, and any importable factory."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphprune.errors import UsageError, did_you_mean, typed_line
from graphprune.ir.program import Inputs
from graphprune.sources.source import Source

_CALL = re.compile(r"(?P<library>[\w.]+|.+\.py):(?P<name>[^()\s]+)(?P<call>\(.*\))?", re.DOTALL)

# Usual input of torchvision's models: by builder where it is special, else by the folder that it is in.
_NAMED_INPUTS: dict[str, tuple[int, ...]] = {
    "inception_v3": (1, 3, 299, 299),
    "quantized_inception_v3": (1, 3, 299, 299),
    "r3d_18": (1, 3, 16, 112, 112),
    "mc3_18": (1, 3, 16, 112, 112),
    "r2plus1d_18": (1, 3, 16, 112, 112),
}
_FOLDER_INPUTS: dict[str, tuple[int, ...]] = {
    "video": (1, 3, 16, 224, 224),
    "detection": (1, 3, 320, 320),
}
_IMAGE = (1, 3, 224, 224)
_FRAME = (1, 3, 128, 128)

# Builders whose default initialisation samples from scipy's truncated normal, which takes many seconds.
_SLOW_INIT = ("googlenet", "inception_v3", "quantized_googlenet", "quantized_inception_v3")


@dataclass(frozen=True)
class Call:
    """``library:name(args)`` taken apart; the arguments are literals."""

    library: str
    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


def from_torchvision(text: str) -> Source:
    """A model of ``torchvision.models.list_models()``, freshly initialised. Raises UsageError for an unknown name."""
    from torchvision import models

    call = parse_call(text)
    if call.name not in (names := models.list_models()):
        raise UsageError(f"torchvision has no model {call.name!r}{did_you_mean(call.name, names)}")
    builder = models.get_model_builder(call.name)
    kwargs = {"weights": None, **call.kwargs}
    if "weights_backbone" in inspect.signature(builder).parameters:
        kwargs.setdefault("weights_backbone", None)
    if call.name in _SLOW_INIT:
        kwargs.setdefault("init_weights", False)
    _refuse_downloads(text, kwargs, ("weights", "weights_backbone"))
    model = _build(text, builder, *call.args, **kwargs)
    folder = builder.__module__.split(".")[2]
    if folder == "optical_flow":
        return Source(model, text, None, Inputs((torch.zeros(_FRAME), torch.zeros(_FRAME))))
    return Source(model, text, _NAMED_INPUTS.get(call.name) or _FOLDER_INPUTS.get(folder, _IMAGE))


def from_timm(text: str) -> Source:
    """A timm model, freshly initialised. Raises UsageError when timm is not installed or has no such model."""
    try:
        import timm
    except ModuleNotFoundError as error:
        raise UsageError(f'{text} needs timm, which is not installed. Install it with: pip install "graphprune[timm]".') from error
    call = parse_call(text)
    if not timm.is_model(call.name):
        raise UsageError(f"timm has no model {call.name!r}{did_you_mean(call.name, timm.list_models())}")
    kwargs = {"pretrained": False, **call.kwargs}
    _refuse_downloads(text, kwargs, ("pretrained",))
    model = _build(text, timm.create_model, call.name, *call.args, **kwargs)
    size = getattr(model, "default_cfg", {}).get("input_size")
    return Source(model, text, (1, *size) if size else None)


def from_python(text: str) -> Source:
    """``package.module:attribute`` or ``path/file.py:attribute``: a callable that returns a module, or a module.

    The current folder is on the path, and the folder of the file, or of the package that it is in.
    """
    call = parse_call(text)
    with _current_folder_on_path():
        state = torch.random.get_rng_state()
        found = _attribute(call)
        torch.random.set_rng_state(state)  # what the import drew, it draws only the first time
        model = _model(text, found, call)
    if not isinstance(model, nn.Module):
        raise UsageError(f"{text} gives a {type(model).__name__}, not a torch.nn.Module. Name a factory that returns the model.")
    return Source(model, text)


def is_named(text: str) -> bool:
    """Whether a text has the form ``package.module:attribute``."""
    return _CALL.fullmatch(text) is not None


def call_named(text: str) -> Any:
    """What the callable ``package.module:attribute`` returns, or the attribute itself where it is none; the current folder is on
    the path. Raises UsageError where it cannot be found or fails."""
    call = parse_call(text)
    with _current_folder_on_path():
        found = _attribute(call)
        return _build(text, found, *call.args, **call.kwargs) if callable(found) else found


def _model(text: str, found: Any, call: Call) -> Any:
    if not isinstance(found, nn.Module):
        return _build(text, found, *call.args, **call.kwargs) if callable(found) else found
    if call.args or call.kwargs:
        raise UsageError(f"{call.library}:{call.name} is a module already and takes no arguments. Leave out the parentheses.")
    return found


def parse_call(text: str) -> Call:
    """Take ``library:name(arguments)`` apart. Raises UsageError where it has another form, or arguments that are no literals."""
    match = _CALL.fullmatch(text)
    if match is None:
        raise UsageError(f"Cannot read the model source {text!r}. Write it as module:name or module:name(argument=value).")
    library, name, arguments = match.group("library"), match.group("name"), match.group("call")
    if arguments is None:
        return Call(library, name)
    try:
        tree = ast.parse(f"f{arguments}", mode="eval").body
        if (
            not isinstance(tree, ast.Call)
            or not isinstance(tree.func, ast.Name)
            or any(keyword.arg is None for keyword in tree.keywords)
        ):
            raise ValueError("not a plain argument list")
        args = tuple(ast.literal_eval(item) for item in tree.args)
        kwargs = {str(item.arg): ast.literal_eval(item.value) for item in tree.keywords}
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise UsageError(
            f"The arguments {arguments} in {text!r} are not literals. Use numbers, strings, tuples, True, False or None."
        ) from error
    return Call(library, name, args, kwargs)


def _attribute(call: Call) -> Any:
    found: Any = _import(call.library)
    for part in call.name.split("."):
        if not hasattr(found, part):
            public = [name for name in vars(found) if not name.startswith("_")] if hasattr(found, "__dict__") else []
            raise UsageError(f"{call.library} has no {call.name!r}{did_you_mean(part, public)}")
        found = getattr(found, part)
    return found


def _import(name: str) -> Any:
    if name.endswith(".py"):
        return _import_file(Path(name).resolve())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UsageError(
                f"There is no Python module {name!r} in the current folder or among the installed packages. "
                f"Run from the folder that holds it, or install it{did_you_mean(name, ('torchvision', 'timm'), '.')}"
            ) from error
        raise UsageError(f"Importing {name} failed: {typed_line(error)}.") from error
    except Exception as error:  # user code: whatever it raises is a bad input, with its own traceback attached
        raise UsageError(f"Importing {name} failed: {typed_line(error)}.") from error


def _import_file(path: Path) -> Any:
    """The module in a file, by the name that it has in the packages around it."""
    if not path.is_file():
        raise UsageError(f"There is no file {path}. Check the path.")
    folder, name = path.parent, path.stem
    while (folder / "__init__.py").is_file():
        folder, name = folder.parent, f"{folder.name}.{name}"
    sys.path.insert(0, str(folder))
    module = _import(name)
    if module.__file__ is None or not path.samefile(module.__file__):
        raise UsageError(f"Importing {path} gives {module.__file__} instead: another module is named {name}. Rename the file.")
    return module


def _build(text: str, factory: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return factory(*args, **kwargs)
    except Exception as error:  # user code, as above
        raise UsageError(f"Building {text} failed: {typed_line(error)}.") from error


def _refuse_downloads(text: str, kwargs: dict[str, Any], names: Iterable[str]) -> None:
    for name in names:
        if kwargs.get(name):
            raise UsageError(f"{text} asks for {name}, which would download a file. Leave it out and pass the file with --weights.")


@contextmanager
def _current_folder_on_path() -> Iterator[None]:
    """The current folder first on the import path, as ``python -m`` has it, and the path restored afterwards."""
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before
