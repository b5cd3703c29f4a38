"""Logs of a run for TensorBoard."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from graphprune.runs.history import Round, Silent


class TensorBoard(Silent):
    """A point of every curve for each round: accuracies, costs, latency, and what the method went by."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def round(self, row: Round, *, repeated: bool) -> None:
        """Log a round, unless it was logged when it was made."""
        if repeated:
            return
        if self._writer is None:
            self._writer = SummaryWriter(str(self._folder))
        curves = {"accuracy": row.accuracy, "best epoch": row.best, "latency": row.latency, "params": row.params, "macs": row.macs}
        curves |= {f"values/{name}": value for name, value in row.values.items()}
        for name, value in curves.items():
            if value is not None:
                self._writer.add_scalar(name, value, row.number)
        self._writer.add_text("status", f"{row.status} {row.note}".strip(), row.number)
        self._writer.flush()
