"""What the search of LAASP costs on ResNet-56: images that run through the network, and the published procedure's count.

    pip install graphprune
    python run.py --data cifar10.npz --weights resnet56.th

The data and weights are those of ``../criteria/run.py``. The pass ``loss-aware`` removes :data:`DELTA` percent of the
multiply-accumulates, which is one delta of the paper (two steps of about 1 %), on so many training images. ``--noise`` multiplies
each weight of the convolutions by 1 + noise * N(0, 1): the paper prunes a network in the middle of its training, whose loss is much
higher than that of a trained one, and then fewer cuts can be dropped early. The noise stands in for that.

One row for each call goes to ``results.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parent / "criteria")]  # a clone that is not installed, and the loaders

import run as criteria  # noqa: E402

import graphprune  # noqa: E402
from graphprune.calibration import Calibration  # noqa: E402
from graphprune.pass_manager import PassManager  # noqa: E402
from graphprune.pipeline_text import parse_pipeline  # noqa: E402

RESULTS = HERE / "results.jsonl"
DELTA = 2
PUBLISHED = {"layers": 57, "criteria": 4, "images": 10_000}  # the paper's ResNet-56 has two projections more


def noisy(model: nn.Module, noise: float) -> nn.Module:
    """The model with noise on the weights of its convolutions."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.Conv2d):
                part.weight *= 1 + noise * torch.randn(part.weight.shape, generator=generator)
    return model


def measure(data: Path, weights: Path, images: int, batch: int, noise: float) -> dict[str, Any]:
    """The work of one delta."""
    criteria.SAMPLES = images
    x, y = criteria.images(data, "train")
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
    published = PUBLISHED["layers"] * PUBLISHED["criteria"]
    return {
        "images": images,
        "batch": batch,
        "noise": noise,
        "loss": steps[0]["before"],
        "steps": steps,
        **work,
        "forwards_per_step_and_image": work["forwards"] / len(steps) / images,
        "fewer_with_the_same_images": published * len(steps) * images / work["forwards"],
        "seconds": seconds,
    }


def main() -> None:
    """Measure, and print the row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="npz file of CIFAR-10")
    parser.add_argument("--weights", type=Path, required=True, help="trained ResNet-56")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--noise", type=float, default=0.0)
    options = parser.parse_args()
    row = measure(options.data, options.weights, options.images, options.batch, options.noise)
    with RESULTS.open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
