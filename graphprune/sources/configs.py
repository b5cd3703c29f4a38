"""Models of transformers: folders of save_pretrained, configs, and models by the name of their class or type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from torch import nn

from graphprune.errors import UsageError, did_you_mean, typed_line
from graphprune.quiet import quiet
from graphprune.sources.factories import parse_call
from graphprune.sources.source import Source

CONFIG: Final = "config.json"
_MOST: Final = 10_000  # parameters, in number


def from_folder(path: Path) -> Source:
    """The model of a folder with ``config.json`` and ``.safetensors`` files, with its weights; code in the folder is not run.

    Raises UsageError where they do not belong together, or the config names no architecture of transformers.
    """
    from graphprune.streaming import build_for, open_checkpoint, read_config
    from graphprune.streaming.weights import match

    config, checkpoint = read_config(path), open_checkpoint(path)
    model: Any = build_for(config, checkpoint)
    matched = match(model, checkpoint)
    model.load_state_dict({name: matched.load(name) for name in model.state_dict()}, assign=True)
    model.tie_weights()  # each name was given a tensor of its own
    return _source(model, str(path))


def from_config(path: Path, trust_pickle: bool) -> Source:
    """The model of a ``config.json`` alone, freshly initialised; no pickle plays a part.

    Raises UsageError where it names no architecture of transformers, or does not suit it.
    """
    from graphprune.streaming import read_config
    from graphprune.streaming.folder import architecture, build

    config = read_config(path.parent, path.name)
    build(config, _MOST)  # without values: a config may ask for a billion layers
    cls = architecture(config["architectures"][0])
    return _source(_fresh(str(path), lambda: cls(cls.config_class.from_dict(config))), str(path))


def from_transformers(text: str) -> Source:
    """``transformers:bert``, a type of models, or ``transformers:BertForMaskedLM(num_hidden_layers=2)``, a class: a model without
    downloads, freshly initialised, of the config's own values but for those that are given.

    Raises UsageError where transformers is not installed or has no such model, or the config does not suit it.
    """
    try:
        from transformers import CONFIG_MAPPING, AutoConfig, AutoModel
    except ModuleNotFoundError as error:
        raise UsageError(
            f'{text} needs transformers, which is not installed. Install it with: pip install "graphprune[transformers]".'
        ) from error
    from graphprune.streaming.folder import architecture

    call = parse_call(text)
    if call.args:
        raise UsageError(f"The arguments of {text} are those of a config, by their names: {call.name}(name=value).")
    if call.name in CONFIG_MAPPING:
        build: Any = AutoModel.from_config
        return _source(_fresh(text, lambda: build(AutoConfig.for_model(call.name, **call.kwargs))), text)
    if not call.name[:1].isupper():
        raise UsageError(f"transformers has no type of models {call.name!r}{did_you_mean(call.name, CONFIG_MAPPING.keys())}")
    cls = architecture(call.name)
    return _source(_fresh(text, lambda: cls(cls.config_class(**call.kwargs))), text)


def _fresh(text: str, build: Callable[[], Any]) -> nn.Module:
    try:
        with quiet():
            model: nn.Module = build()
    except Exception as error:  # whatever a class of models says of numbers that do not go together; the cause says which
        raise UsageError(f"Building {text} failed: {typed_line(error.__cause__ or error)}.") from error
    return model


def _source(model: Any, text: str) -> Source:
    """The model in eval mode, with the example inputs of its kind where they are known; caches are no results to be had."""
    from graphprune.streaming import usual_inputs

    model.eval().config.use_cache = False
    try:
        return Source(model, text, None, usual_inputs(model))
    except UsageError:  # --input has to say
        return Source(model, text)
