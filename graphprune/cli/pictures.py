"""Pictures of what commands find: whether one can be drawn, and drawing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from graphprune.errors import UsageError
from graphprune.files import atomic_write

FORMATS: Final = (".png", ".svg", ".pdf")


def check_plot(path: Path, option: str = "--plot") -> None:
    """Raise UsageError where a picture cannot be drawn, before anything is computed."""
    if path.suffix not in FORMATS:
        raise UsageError(f"Cannot draw {path}: its name ends in none of {', '.join(FORMATS)}. Choose another name.")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(f'{option} needs matplotlib. Install it with: pip install "graphprune[plot]".') from error


@contextmanager
def picture(path: Path, rows: int, columns: int, size: tuple[float, float], dpi: int = 130) -> Iterator[tuple[Any, Any]]:
    """A figure with panels to draw on, which becomes the file when the block ends well.

    size: width and height in inches. Gives matplotlib's figure and its axes, of shape (rows, columns).
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    try:
        yield figure, axes
        with atomic_write(path) as temporary, temporary.open("wb") as stream:
            figure.savefig(stream, format=path.suffix[1:], dpi=dpi)
    finally:
        pyplot.close(figure)
