"""A digits CNN as it is, pruned, quantised to int8, and both: accuracy and latency on the CPU, compiled by Inductor.

Run it with ``python docs/examples/quantised_digits.py``; it needs scikit-learn, torchao and a C++ compiler.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import process_time
from timeit import timeit
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch._inductor import config
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

import graphprune
from graphprune.cli.digits import small_cnn

TRAIN = 1400  # of 1797 images


def digits() -> tuple[Tensor, Tensor]:
    """Images of shape (n, 1, 8, 8) from 0 to 1, channels last as int8 convolutions want them, and their classes."""
    found = load_digits()
    images = torch.tensor(found.images[:, None] / 16, dtype=torch.float32)
    return images.to(memory_format=torch.channels_last), torch.tensor(found.target)


def train(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> nn.Module:
    """Train in place on the first images; returns the model in eval mode."""
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    model.train()
    for _ in range(steps):
        batch = torch.randint(0, TRAIN, (128,))
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimiser.step()
    return model.eval()


def quantised(model: nn.Module, x: Tensor) -> Any:
    """The model with weights and activations of 8 bits, calibrated on some images (PT2E)."""
    sizes = ({0: torch.export.Dim.DYNAMIC},)
    # strict: what torch 2.11 exports otherwise names no layers, and the quantiser finds none.
    program = torch.export.export(model, (x[:2],), dynamic_shapes=sizes, strict=True)
    quantiser = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(program.module(), quantiser)
    prepared(x[:256])
    return convert_pt2e(prepared)


def models(x: Tensor, y: Tensor, steps: int = 150) -> dict[str, Any]:
    """The four models by name."""
    torch.manual_seed(0)
    whole = train(small_cnn().to(memory_format=torch.channels_last), x, y, steps)
    slim = train(graphprune.prune(whole, x[:2], target="macs=50%").model, x, y, steps)
    with torch.no_grad():
        return {
            "as it is": whole,
            "pruned": slim,
            "quantised": quantised(whole, x),
            "pruned and quantised": quantised(slim, x),
        }


def compiled(model: Any, x: Tensor) -> Any:
    """The model compiled for this batch, its weights packed: freezing is what makes int8 kernels of a quantised model."""
    run = torch.compile(model, dynamic=False)
    with torch.no_grad(), config.patch(freezing=True):
        run(x)
    return run


def accuracy(model: Any, x: Tensor, y: Tensor) -> float:
    """The share of images that the model tells right."""
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def milliseconds(runs: Mapping[str, Any], x: Tensor, turns: int = 200) -> dict[str, float]:
    """The shortest processor time of a call, each model called in turn: what else the machine does counts little."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.no_grad():
        for _ in range(turns):
            for name, run in runs.items():
                times[name].append(timeit(lambda run=run: run(x), timer=process_time, number=1))
    return {name: 1000 * min(taken) for name, taken in times.items()}


def main() -> None:
    """Print a row for each model: accuracy on the other images, and the time of a call with all of them, on one thread."""
    torch.set_num_threads(1)
    x, y = digits()
    rest, classes = x[TRAIN:], y[TRAIN:]
    runs = {name: compiled(model, rest) for name, model in models(x, y).items()}
    for name, ms in milliseconds(runs, rest).items():
        print(f"| {name} | {accuracy(runs[name], rest, classes):.1%} | {ms:.2f} |")


if __name__ == "__main__":
    main()
