"""Folders of transformers: the model that a config names, without values."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from math import prod
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from graphprune.errors import UsageError, typed_line
from graphprune.files import parse_text, read_text
from graphprune.ir.program import Inputs
from graphprune.quiet import quiet
from graphprune.streaming.checkpoint import Checkpoint
from graphprune.streaming.configs import Config
from graphprune.streaming.layout import layout

CONFIG: Final = "config.json"
_MOST: Final = 1_000_000
_LARGE: Final = 2**20  # elements
_TEXT: Final = (2, 16)  # batch and tokens of the default example


def read_config(folder: str | Path, name: str = CONFIG) -> Config:
    """The config of a folder. Raises UsageError where there is none, or it names no architecture of transformers."""
    path = Path(folder) / name
    config = parse_text(read_text(path, "config", UsageError), str(path), "config", "Get it again with its weights.", UsageError)
    try:
        cls = config["architectures"][0]
    except (LookupError, TypeError) as error:
        raise UsageError(f"{path} is no config that names an architecture. Give the model as package.module:factory.") from error
    architecture(cls)
    return dict(config)


def config_of(model: nn.Module) -> Config:
    """The config of a model in memory, as a folder of it would have it. Raises UsageError where no config makes its class."""
    cls = type(model)
    known: Any = getattr(sys.modules.get("transformers"), cls.__name__, None)
    if known is not cls:
        raise UsageError(f"{cls.__name__} is no model of transformers, which would have a config that states widths.")
    config: Any = model.config
    found: Config = json.loads(config.to_json_string(use_diff=False))
    return {**found, "architectures": [cls.__name__], "attn_implementation": config._attn_implementation}


def architecture(name: Any) -> Any:
    """The class of transformers of this name. Raises UsageError where there is none, or it cannot be imported."""
    try:
        import accelerate  # noqa: F401  (builds models without values)
        import transformers
    except ModuleNotFoundError as error:
        raise UsageError(
            f"Building {name} needs {error.name}, which is not installed. "
            'Install it with: pip install "graphprune[transformers]", or give the model as package.module:factory.'
        ) from error
    found = getattr(transformers, str(name), None)
    if not (inspect.isclass(found) and issubclass(found, transformers.PreTrainedModel)):
        raise UsageError(
            f"transformers has no architecture {str(name)[:80]}, and code of checkpoints is not run. Give module:factory."
        )
    return found


@contextmanager
def _at_most(parameters: int) -> Iterator[None]:
    """Raise UsageError where a model gets more parameters: a config may ask for a billion layers."""
    left = count(parameters, -1)

    def watch(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        if next(left) <= 0:
            raise UsageError(f"it has more than {parameters} parameters, and the checkpoint does not")

    handle = register_module_parameter_registration_hook(watch)
    try:
        yield
    finally:
        handle.remove()


class _Unallocated(TorchFunctionMode):
    """Large tensors of ``torch.empty`` are made on the meta device: they are parameters which get there once they are registered,
    and until then even memory that nobody writes to counts against limits."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and args and kwargs.get("device") is None:
            sizes = args if isinstance(args[0], int) else args[0]
            kwargs = {**kwargs, "device": "meta"} if prod(sizes) >= _LARGE else kwargs
        return func(*args, **kwargs)


def build(
    config: Config, most: int = _MOST, watch: Callable[[Any], Any] = lambda made: made, *, cached: bool = False, bare: bool = False
) -> nn.Module:
    """The model of a config in eval mode: parameters on the meta device, buffers with their values.

    most: parameters, in number. watch: gives back the object of the config that its class gets, or another for it. cached: whether
    the model returns caches where its config says so; they are no results that a slim model must have. bare: buffers have no values
    either, which takes half the time; some classes cannot be built so.
    Raises UsageError where the config does not suit its architecture.
    """
    from accelerate import init_empty_weights

    cls = architecture(config["architectures"][0])
    try:
        empty = torch.device("meta") if bare else init_empty_weights(include_buffers=False)
        with quiet(), empty, _Unallocated(), _at_most(most):
            model = cls(watch(cls.config_class.from_dict(config))).eval()
        model.tie_weights()  # each registration made a tensor of its own
    except Exception as error:  # whatever a class of models says of numbers that do not go together
        reason = typed_line(error)
        raise UsageError(
            f"{cls.__name__} cannot be built from its {CONFIG} ({reason}). Get the one that belongs to the weights."
        ) from error
    if not cached:
        model.config.use_cache = False
    return cast(nn.Module, model)


def asked_of(config: Config) -> list[str]:
    """Names that the code of a config's model asks the config for, and that it does not have: the class has a value for them.

    Raises UsageError as :func:`build` does.
    """
    names: dict[str, None] = {}

    def missing(_: Any, name: str) -> Any:
        names[name] = None
        raise AttributeError(name)

    def watch(made: Any) -> Any:
        made.__class__ = type(type(made).__name__, (type(made),), {"__getattr__": missing})
        names.clear()
        return made

    build(config, watch=watch)
    return [name for name in names if not name.startswith("_")]


def build_for(config: Config, checkpoint: Checkpoint) -> nn.Module:
    """The model of a config, with the dtypes that a checkpoint has. Raises UsageError as :func:`build` does."""
    model = build(config, 4 * len(checkpoint.entries) + 1_000)
    return with_dtypes(model, {name: block.dtype for name, block in layout(model, checkpoint.entries).items()})


def with_dtypes(model: nn.Module, wanted: Mapping[str, torch.dtype]) -> nn.Module:
    """The model, whose parameters without values get these dtypes, in place."""
    dtypes = {id(tensor): wanted[name] for name, tensor in model.state_dict(keep_vars=True).items() if name in wanted}
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            dtype = dtypes.get(id(parameter))
            if parameter is not None and dtype not in (None, parameter.dtype):
                if id(parameter) not in made:
                    made[id(parameter)] = nn.Parameter(parameter.detach().to(dtype), dtype is not None and dtype.is_floating_point)
                module._parameters[name] = made[id(parameter)]
    return model


def usual_inputs(model: nn.Module) -> Inputs:
    """Example inputs of a model of text, and of its decoder where it has one, or of images of the size that its config states.

    Raises UsageError where the model takes neither ``input_ids`` nor ``pixel_values`` of a size that is known.
    """
    taken = inspect.signature(model.forward).parameters
    if "input_ids" in taken:
        texts = [name for name in ("input_ids", "decoder_input_ids") if name in taken]
        return Inputs((), {name: torch.zeros(_TEXT, dtype=torch.int64) for name in texts})
    channels, size = (getattr(getattr(model, "config", None), name, None) for name in ("num_channels", "image_size"))
    sides = (size, size) if isinstance(size, int) else size
    if "pixel_values" not in taken or not isinstance(channels, int) or not sides:
        raise UsageError(
            f"The inputs of {type(model).__name__} are not known. Give them, as with --input pixel_values=1x3x224x224."
        )
    return Inputs((), {"pixel_values": torch.zeros(1, channels, *sides)})
