"""Where models come from: the SOURCE, ``--weights`` and ``--input`` of the command line, as plain functions."""

from __future__ import annotations

from graphprune.sources.inputs import example_inputs, parse_input
from graphprune.sources.load import load_source
from graphprune.sources.source import Source
from graphprune.sources.weights import load_weights

__all__ = ["Source", "example_inputs", "load_source", "load_weights", "parse_input"]
