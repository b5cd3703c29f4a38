"""The page of the benchmark, and its picture, made from its rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Final

from protocols import PROTOCOLS

from graphprune.files import atomic_write

HERE = Path(__file__).resolve().parent
Found = Mapping[str, Any]

_HEAD: Final = """# The methods on CIFAR-10

Made by `run.py` beside this page, which says how. Sizes are counted on the slim models. The test images were used once for each
row, after the last epoch of its last training; all decisions on the way were made on images set apart from the training set.
"""
_FULL: Final = """## Full protocol

The dense model and every method train here, 200 epochs each after the last cut.
"""
_SHORT: Final = """## Short protocol

**A shortened protocol, not comparable with published figures**: a checkpoint that others trained (and chose on the test images),
and a schedule of {epochs} epochs of {images:,} training images, which methods train for after their last cut (growing
regularisation has no more than that in all); the column of epochs counts every one. It shows that the methods run to their end and
meet their targets, and what they keep with next to no training. The checkpoint has seen the images that decisions are made on, and
was trained with other image statistics than those that are used here, which costs it a quarter of a point. "distilled" alone learns
from the dense model.
"""
_ABOUT: Final = {"full": _FULL, "short": _SHORT}


def publish(rows: Sequence[Found]) -> None:
    """Write README.md and the pictures."""
    parts = [_HEAD, "; ".join(dict.fromkeys(f"{row['made_with']}, {row['device']}" for row in rows)) + ".\n"]
    for name, protocol in PROTOCOLS.items():
        chosen = [row for row in rows if row["protocol"] == name]
        if not chosen:
            continue
        parts.append(_ABOUT[name].format(epochs=protocol.epochs, images=protocol.images or 45_000))
        for model in dict.fromkeys(row["model"] for row in chosen):
            own = [row for row in chosen if row["model"] == model]
            picture = HERE / f"{name}-{model}.png"
            draw(own, f"{model}, {name} protocol", picture)
            parts += [f"### {model}\n", _table(own), f"![accuracy against MACs]({picture.name})\n"]
    with atomic_write(HERE / "README.md") as temporary:
        temporary.write_text("\n".join(parts).rstrip() + "\n")


def _grouped(rows: Sequence[Found]) -> dict[tuple[str, str], list[Found]]:
    found: dict[tuple[str, str], list[Found]] = defaultdict(list)
    for row in rows:
        found[row["target"], row["method"]].append(row)
    return found


def _table(rows: Sequence[Found]) -> str:
    lines = [
        "| target | method | MACs left | parameters left | dense, test | slim, test | change | epochs | seeds | proved |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for (target, method), own in _grouped(rows).items():
        dense, slim = ([100 * row[name] for row in own] for name in ("dense_test", "test"))
        change = [after - before for before, after in zip(dense, slim, strict=True)]
        figures = [
            *(f"{mean(100 * row[name] for row in own):.1f} %" for name in ("macs", "params")),
            *map(_spread, (dense, slim, change)),
            f"{mean(row['epochs'] for row in own):.0f}",
            str(len(own)),
            "yes" if all(row["proved"] for row in own) else "NO",
        ]
        lines.append(f"| {target} | {method} | " + " | ".join(figures) + " |")
    return "\n".join([*lines, ""])


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def draw(rows: Sequence[Found], title: str, path: Path) -> None:
    """Test accuracy against what is left of the MACs, a point for each run."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for index, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        own = [row for row in rows if row["method"] == method]
        marker = "osD^vP*Xh"[index % 9]
        axes.plot([100 * row["macs"] for row in own], [100 * row["test"] for row in own], marker, label=method, alpha=0.8)
    axes.axhline(100 * mean(row["dense_test"] for row in rows), color="grey", linestyle="--", linewidth=1, label="dense")
    axes.set(xlabel="MACs left, %", ylabel="test accuracy, %", title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)
