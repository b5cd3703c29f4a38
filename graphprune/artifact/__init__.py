"""The artifact: a slim model in one plain safetensors file that loads without its code and without pickle."""

from __future__ import annotations

from graphprune.artifact.file import VERSION, Artifact, read_artifact, write_artifact

__all__ = ["VERSION", "Artifact", "read_artifact", "write_artifact"]
