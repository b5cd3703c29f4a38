"""Example-guided capture: a model's own Python runs once, on meta tensors, and becomes a graph and a tape of operators."""

from graphprune.tracing.capture import capture
from graphprune.tracing.inputs import normalise_inputs
from graphprune.tracing.parts import joined, put_back

__all__ = ["capture", "joined", "normalise_inputs", "put_back"]
