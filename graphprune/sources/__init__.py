"""Where models and data come from: the SOURCE, ``--weights``, ``--input`` and ``--calibrate`` of the command line, as functions."""

from __future__ import annotations

from graphprune.sources.data import load_calibration
from graphprune.sources.inputs import example_inputs, parse_input
from graphprune.sources.load import load_source
from graphprune.sources.source import Source
from graphprune.sources.weights import load_weights

__all__ = ["Source", "example_inputs", "load_calibration", "load_source", "load_weights", "parse_input"]
