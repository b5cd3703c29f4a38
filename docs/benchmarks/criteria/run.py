"""Accuracy against MACs left for every criterion: a trained ResNet-56 on CIFAR-10, one-shot, without fine-tuning.

    pip install graphprune matplotlib
    python run.py --data cifar10.npz --weights resnet56.th [--device cuda]

``--data`` is an npz file with ``x_train, y_train, x_test, y_test`` (uint8 images [N, 3, 32, 32]); the weights are those of the
public repository akamaster/pytorch_resnet_cifar10. The model is ``../resnet56_cifar10/cifar_resnet.py``.

Each criterion of :data:`CRITERIA` scores the model once, on the same :data:`SAMPLES` training images (fixed seed) where it needs
data. The model is then pruned to each of :data:`TARGETS` by the global ranking, and evaluated on all test images as it is
(``plain``), with batch-norm statistics estimated anew (``recalibrated``) and with its weights compensated by least squares
(``compensated``), both on the same training images. ``random`` (three seeds) and ``uniform`` (l2, the same share of every group)
are the controls. Nothing is chosen by looking at these accuracies.

Rows go to ``results.jsonl`` as they are measured, so that a run that was stopped goes on. ``README.md`` and ``criteria.png`` are
made from them.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parent / "resnet56_cifar10")]  # a clone that is not installed, and the model

import graphprune  # noqa: E402
from graphprune.calibration import Calibration  # noqa: E402
from graphprune.ir.program import Program  # noqa: E402
from graphprune.pipeline.pass_manager import PassManager  # noqa: E402
from graphprune.pipeline.text import parse_pipeline  # noqa: E402

RESULTS = HERE / "results.jsonl"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TARGETS = (90, 80, 70, 60, 50, 40)
SAMPLES, BATCH = 2048, 256
EXAMPLE = (2, 3, 32, 32)

#: name of the row, options of the score pass, options of the select pass
CRITERIA: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "random (seed 0)": ({"criterion": "random", "seed": "0"}, {}),
    "random (seed 1)": ({"criterion": "random", "seed": "1"}, {}),
    "random (seed 2)": ({"criterion": "random", "seed": "2"}, {}),
    "uniform l2": ({"criterion": "l2"}, {"ranking": "local"}),
    **{
        name: ({"criterion": name}, {})
        for name in (
            "l1",
            "l2",
            "bn-scale",
            "lamp",
            "sp-lamp",
            "fpgm",
            "euclidean",
            "cosine",
            "attention",
            "attention(p=2)",
            "attention(p=4)",
            "attention(statistic=max)",
            "apoz",
            "mean-activation",
            "variance",
            "rank",
            "activation-similarity(kind=cosine)",
            "activation-similarity(kind=cka)",
            "activation-similarity(kind=euclidean)",
            "taylor",
            "taylor(form=weight)",
            "bn-taylor",
            "fisher",
            "class-aware",
            "obs",
            "0.5*l2+0.5*taylor",
        )
    },
    "l2, not normalised": ({"criterion": "l2", "normalise": "none"}, {}),
    "taylor, not normalised": ({"criterion": "taylor", "normalise": "none"}, {}),
    "fisher, not normalised": ({"criterion": "fisher", "normalise": "none"}, {}),
    "obs, not normalised": ({"criterion": "obs", "normalise": "none"}, {}),
}
VARIANTS = {"plain": "", "recalibrated": "recalibrate", "compensated": "compensate"}


def images(data: Path, part: str) -> tuple[Tensor, Tensor]:
    """Scaled images and labels of one part of the data set."""
    with np.load(data) as arrays:
        x, y = torch.from_numpy(arrays[f"x_{part}"]), torch.from_numpy(arrays[f"y_{part}"]).long()
    if part == "train" and len(y) > SAMPLES:
        chosen = torch.from_numpy(np.sort(np.random.default_rng(0).permutation(len(y))[:SAMPLES]))
        x, y = x[chosen], y[chosen]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    return (x / 255 - mean) / std, y


def build(weights: Path) -> nn.Module:
    """The trained model in eval mode."""
    import cifar_resnet

    model: nn.Module = cifar_resnet.resnet56()
    state = torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return model.eval()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of the images that a model classifies rightly."""
    model.eval()
    with torch.inference_mode():
        right = sum((model(a).argmax(1) == b).sum() for a, b in zip(x.split(1024), y.split(1024), strict=True))
    return int(right) / len(y)


def text(name: str, options: dict[str, str]) -> str:
    """A pass as text."""
    return f"{name}{{{','.join(f'{key}={json.dumps(value)}' for key, value in options.items())}}}"


def measure(
    program: Program, x: Tensor, y: Tensor, score: dict[str, str], select: dict[str, str], missing: list[tuple[int, str]]
) -> Iterator[dict[str, Any]]:
    """Rows of one criterion, for the targets and variants that were not measured yet."""
    start = time.perf_counter()
    scored = PassManager(parse_pipeline(text("score", score))).run(program)
    seconds = time.perf_counter() - start
    for target in dict.fromkeys(target for target, _ in missing):
        cut = PassManager(parse_pipeline(f"{text('select', {'macs': f'{target}%', **select})},rewrite")).run(scored)
        assert cut.record is not None
        left = cut.record.after.macs / cut.record.before.macs
        for variant in (variant for other, variant in missing if other == target):
            start = time.perf_counter()
            slim = PassManager(parse_pipeline(VARIANTS[variant])).run(cut) if VARIANTS[variant] else cut
            row = {"macs": target, "variant": variant, "left": left, "accuracy": accuracy(slim.module, x, y)}
            yield {**row, "scoring_seconds": seconds, "variant_seconds": time.perf_counter() - start}


def run(data: Path, weights: Path, device: str, results: Path, only: Sequence[str], variants: Sequence[str]) -> None:
    """Measure what is missing."""
    x, y = (part.to(device) for part in images(data, "test"))
    batches = images(data, "train")
    model = build(weights).to(device)
    calibration = Calibration(list(zip(*(part.split(BATCH) for part in batches), strict=True)), name=f"{SAMPLES} training images")
    program = graphprune.capture(model, x[: EXAMPLE[0]]).with_(calibration=calibration)
    known = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    with results.open("a", buffering=1) as stream:
        if not known:
            about = {"original": accuracy(model, x, y), "images": len(y), "samples": SAMPLES, "machine": machine(device)}
            stream.write(json.dumps(about) + "\n")
        for name in only:
            done = {(row["macs"], row["variant"]) for row in known if row.get("criterion") == name}
            missing = [(target, variant) for target in TARGETS for variant in variants if (target, variant) not in done]
            if not missing:
                continue
            start = time.perf_counter()
            try:
                for row in measure(program, x, y, *CRITERIA[name], missing):
                    stream.write(json.dumps({"criterion": name, **row}) + "\n")
            except (graphprune.GraphpruneError, RuntimeError) as error:
                print(f"{name}: {error}", file=sys.stderr, flush=True)
                continue
            print(name, f"{time.perf_counter() - start:.1f} s", flush=True)


def machine(device: str) -> str:
    """What it was measured on."""
    where = torch.cuda.get_device_name() if device.startswith("cuda") else f"CPU ({platform.machine()})"
    return f"torch {torch.__version__}, Python {platform.python_version()}, {where}"


#: Controls, with the colours that they are drawn in.
CONTROLS = {"random": "0.4", "uniform l2": "0.6", "l2": "black"}


def mean(by_target: dict[int, float]) -> float:
    """Mean accuracy over the targets."""
    return sum(by_target.values()) / len(by_target)


def averaged(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[int, float]]]:
    """Accuracy by criterion, variant and target; the seeds of random as their mean."""
    found: dict[str, dict[str, dict[int, list[float]]]] = {}
    for row in rows:
        name = row["criterion"].partition(" (seed")[0]
        found.setdefault(name, {}).setdefault(row["variant"], {}).setdefault(row["macs"], []).append(row["accuracy"])
    return {
        name: {variant: {m: float(np.mean(v)) for m, v in by.items()} for variant, by in variants.items()}
        for name, variants in found.items()
    }


def page(about: dict[str, Any], found: dict[str, dict[str, dict[int, float]]], rows: list[dict[str, Any]]) -> str:
    """The page, with a table for each variant."""
    deviation = max(abs(row["left"] - row["macs"] / 100) for row in rows)
    lines = [
        "# Criteria: accuracy against MACs, before any fine-tuning",
        "",
        f"Made by `run.py` beside this page, which says how. {about['machine']}.",
        "",
        f"ResNet-56 on CIFAR-10: {about['original']:.2%} on {about['images']:,} test images before pruning. Calibrated on "
        f"{about['samples']:,} training images. MACs left are within {deviation:.2%} of the target. "
        "`random` is the mean of its seeds; `uniform l2` takes the same share of every group; all others are ranked globally.",
        "",
        "![accuracy against MACs](criteria.png)",
    ]
    titles = {
        "plain": "As pruned",
        "recalibrated": "With batch-norm statistics estimated anew",
        "compensated": "With weights compensated by least squares",
    }
    for variant, title in titles.items():
        table = {name: by[variant] for name, by in found.items() if variant in by}
        if not table:
            continue
        lines += ["", f"## {title}", "", "| criterion | " + " | ".join(f"{t} %" for t in TARGETS) + " |"]
        lines.append("| --- |" + " ---: |" * len(TARGETS))
        # Those that were not measured at every target come last.
        for name, by_target in sorted(table.items(), key=lambda item: (-len(item[1]), -mean(item[1]))):
            cells = (f"{100 * by_target[t]:.2f}" if t in by_target else "" for t in TARGETS)
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(about: dict[str, Any], found: dict[str, dict[str, dict[int, float]]]) -> None:
    """One panel for each variant; the best criteria of each in colour, the controls dashed, all others grey."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    variants = [variant for variant in VARIANTS if any(variant in by for by in found.values())]
    figure, axes = pyplot.subplots(1, len(variants), figsize=(4.6 * len(variants), 4.8), squeeze=False)
    complete = {v: {n: by[v] for n, by in found.items() if len(by.get(v, ())) == len(TARGETS)} for v in variants}
    best = {name for table in complete.values() for name in sorted(table, key=lambda name: -mean(table[name]))[:4]}
    colours = {name: f"C{number}" for number, name in enumerate(sorted(best - CONTROLS.keys()))}
    for variant, panel in zip(variants, axes[0], strict=True):
        for name, by_target in complete[variant].items():
            x, y = list(by_target), [100 * value for value in by_target.values()]
            if name in CONTROLS:
                panel.plot(x, y, "--", color=CONTROLS[name], label=name, lw=1.6)
            elif name in colours:
                panel.plot(x, y, marker="o", ms=4, color=colours[name], label=name, lw=1.6)
            else:
                panel.plot(x, y, color="0.85", lw=1, zorder=0)
        panel.axhline(100 * about["original"], color="0.5", lw=0.8)
        panel.set_title(variant)
        panel.set_xlabel("MACs left, %")
        panel.invert_xaxis()
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7, loc="lower left")
    axes[0][0].set_ylabel(f"accuracy on {about['images']:,} test images, %")
    figure.tight_layout()
    figure.savefig(HERE / "criteria.png", dpi=100)


def main() -> None:
    """Measure, then write the page and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="npz file of CIFAR-10; without it only the page is made")
    parser.add_argument("--weights", type=Path, help="trained ResNet-56")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", action="append", choices=list(CRITERIA), metavar="NAME", help="a row; repeatable; all by default")
    parser.add_argument("--variant", action="append", choices=list(VARIANTS), help="repeatable; all by default")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where rows go; a page is made of the default file only")
    options = parser.parse_args()
    if options.data is not None:
        names, variants = options.only or list(CRITERIA), options.variant or list(VARIANTS)
        run(options.data, options.weights, options.device, options.results, names, variants)
    if options.results != RESULTS:
        return
    about, *rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    found = averaged(rows)
    (HERE / "README.md").write_text(page(about, found, rows))
    draw(about, found)


if __name__ == "__main__":
    main()
