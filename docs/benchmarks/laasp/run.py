"""What the search of LAASP costs on ResNet-56: images that run through the network, and the published procedure's count.

    pip install graphprune
    python run.py --data cifar10.npz --weights resnet56.th

The data and weights are those of ``../criteria/run.py``. The pass ``loss-aware`` removes :data:`DELTA` percent of the
multiply-accumulates, which is one delta of the paper (steps of about 1 % each), on so many training images.

The paper prunes a network in the middle of its training, whose loss is far higher than that of a trained one. Two things stand in
for that: ``--noise`` multiplies each weight of the convolutions by 1 + noise * N(0, 1), and ``--relabel`` gives a share of the
images random labels. With a single batch (``--batch`` of all images) no cut can be dropped early: that is the worst case.

One row for each call goes to ``results.jsonl``, and all of them into ``README.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parent / "criteria")]  # a clone that is not installed, and the loaders

import run as criteria  # noqa: E402

import graphprune  # noqa: E402
from graphprune.calibration import Calibration  # noqa: E402
from graphprune.pipeline.pass_manager import PassManager  # noqa: E402
from graphprune.pipeline.text import parse_pipeline  # noqa: E402

RESULTS = HERE / "results.jsonl"
DELTA, STEPS = 2, 55
PUBLISHED = {"layers": 57, "criteria": 4, "images": 10_000}  # the paper's ResNet-56 has two projections more


def noisy(model: nn.Module, noise: float) -> nn.Module:
    """The model with noise on the weights of its convolutions."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.Conv2d):
                part.weight *= 1 + noise * torch.randn(part.weight.shape, generator=generator)
    return model


def relabelled(y: Tensor, share: float) -> Tensor:
    """Labels of which a share is random."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.rand(len(y), generator=generator) < share
    return torch.where(chosen, torch.randint(0, 10, y.shape, generator=generator), y)


def measure(data: Path, weights: Path, images: int, batch: int, noise: float, relabel: float) -> dict[str, Any]:
    """The work of one delta."""
    criteria.SAMPLES = images
    x, y = criteria.images(data, "train")
    y = relabelled(y, relabel)
    model = noisy(criteria.build(weights), noise)
    calibration = Calibration(list(zip(x.split(batch), y.split(batch), strict=True)), name=f"{images} training images")
    program = graphprune.capture(model, x[:2]).with_(calibration=calibration)
    start = time.perf_counter()
    found = PassManager(parse_pipeline(f"channels,loss-aware{{macs={100 - DELTA}%}}")).run(program)
    seconds = time.perf_counter() - start
    assert found.plan is not None
    record = found.plan.scores["loss-aware"]
    steps = [json.loads(text) for name, text in record.items() if name.startswith("step ")]
    work = json.loads(record["work"])
    return {
        "images": images,
        "batch": batch,
        "noise": noise,
        "relabel": relabel,
        "loss": steps[0]["before"],
        "steps": steps,
        **work,
        "forwards_per_step_and_image": work["forwards"] / len(steps) / images,
        "seconds": seconds,
    }


def page(rows: list[dict[str, Any]]) -> str:
    """The page."""
    per_step = PUBLISHED["layers"] * PUBLISHED["criteria"]
    published = per_step * STEPS * PUBLISHED["images"] / 1e6
    columns = [
        "network and data",
        "loss before",
        "images, batch",
        "steps",
        "cuts compared",
        "different",
        "dropped early",
        "images through the network, for each image and step",
        "fewer, on as many images",
        "fewer, with 2,048 images for 10,000",
        f"millions for {STEPS} steps on 2,048 images (extrapolated)",
    ]
    lines = [
        "# The search of LAASP on ResNet-56",
        "",
        f"Made by `run.py` beside this page, which says how. torch {torch.__version__}, CPU. Only counts are measured.",
        "",
        f"The published procedure runs {PUBLISHED['layers']} layers x {PUBLISHED['criteria']} criteria on {PUBLISHED['images']:,} "
        f"images in each step: {per_step} images through the network for each image of the subset, {published:.0f} million for "
        f"{STEPS} steps, to 55 % of the MACs removed. The pass `loss-aware` makes the choices of the plain algorithm "
        "(`tests/passes/selection/test_loss_aware.py`). An image that runs through a part of the network counts by its share of "
        f"the MACs. Each row is one delta of {DELTA} %.",
        "",
        "| " + " | ".join(columns) + " |",
        "| --- |" + " ---: |" * (len(columns) - 1),
    ]
    for row in rows:
        each = row["forwards_per_step_and_image"]
        fewer = per_step / each
        cells = [
            described(row),
            f"{row['loss']:.4f}",
            f"{row['images']}, {row['batch']}",
            str(len(row["steps"])),
            str(row["candidates"]),
            str(row["trials"]),
            str(row["abandoned"]),
            f"{each:.1f}",
            f"{fewer:.1f}x",
            f"{fewer * PUBLISHED['images'] / 2048:.0f}x",
            f"{each * STEPS * 2048 / 1e6:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "This network has shortcuts without parameters. Its later stages make channels of several groups, each of which is ranked "
        "for itself, so that more cuts are compared than in the paper's. The extrapolation takes all steps to be as much "
        "work as these.",
    ]
    return "\n".join(lines) + "\n"


def described(row: dict[str, Any]) -> str:
    """The network and the data of a row in words."""
    parts = ["trained"]
    if row["noise"]:
        parts.append(f"weights times 1 + {row['noise']} N(0, 1)")
    if row["relabel"]:
        parts.append(f"{row['relabel']:.0%} of the labels random")
    if row["batch"] >= row["images"]:
        parts.append("one batch: nothing can be dropped")
    return "; ".join(parts)


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="npz file of CIFAR-10; without it only the page is made")
    parser.add_argument("--weights", type=Path, help="trained ResNet-56")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--relabel", type=float, default=0.0)
    options = parser.parse_args()
    if options.data is not None:
        row = measure(options.data, options.weights, options.images, options.batch, options.noise, options.relabel)
        with RESULTS.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    (HERE / "README.md").write_text(page(rows))


if __name__ == "__main__":
    main()
