"""A digits CNN as it is, pruned, quantised to int8, and both: accuracy and latency on the CPU, uncompiled.

Run it with ``python docs/examples/quantised_digits.py``; it needs scikit-learn and torchao.
"""

from __future__ import annotations

from timeit import repeat
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.export import Dim
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

import graphprune
from graphprune.cli.digits import small_cnn

TRAIN = 1400  # of 1797 images


def digits() -> tuple[Tensor, Tensor]:
    """Images of shape (n, 1, 8, 8) from 0 to 1, and their classes."""
    found = load_digits()
    return torch.tensor(found.images[:, None] / 16, dtype=torch.float32), torch.tensor(found.target)


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
    program = torch.export.export(model, (x[:2],), dynamic_shapes=({0: Dim.DYNAMIC},))
    quantiser = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(program.module(), quantiser)
    prepared(x[:256])
    return convert_pt2e(prepared)


def models(x: Tensor, y: Tensor, steps: int = 150) -> dict[str, Any]:
    """The four models by name."""
    torch.manual_seed(0)
    whole = train(small_cnn(), x, y, steps)
    slim = train(graphprune.prune(whole, x[:2], target="macs=50%").model, x, y, steps)
    with torch.no_grad():
        return {
            "as it is": whole,
            "pruned": slim,
            "quantised": quantised(whole, x),
            "pruned and quantised": quantised(slim, x),
        }


def accuracy(model: Any, x: Tensor, y: Tensor) -> float:
    """The share of the other images that the model tells right."""
    with torch.no_grad():
        return float((model(x[TRAIN:]).argmax(1) == y[TRAIN:]).float().mean())


def main() -> None:
    """Print a row for each model."""
    x, y = digits()
    batch = x[:256]
    for name, model in models(x, y).items():
        with torch.no_grad():
            ms = 1000 * min(repeat(lambda run=model: run(batch), number=5, repeat=9)) / 5
        print(f"| {name} | {accuracy(model, x, y):.1%} | {ms:.2f} |")


if __name__ == "__main__":
    main()
