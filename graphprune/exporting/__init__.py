"""Models for other runtimes: one file a format, and a check of each file that is written."""

from graphprune.exporting.checking import Exported
from graphprune.exporting.export import FORMATS, export_model, format_of

__all__ = ["FORMATS", "Exported", "export_model", "format_of"]
