"""What a random network is: plain data that can be saved, shrunk and built again, and the module that it builds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from tests.fuzz.block import BLOCKS, Block, Shape
from tests.zoo.case import ready

#: Shapes of the inputs without the batch axis; ``ids`` are integers below VOCABULARY.
INPUTS: dict[str, Shape] = {"image": (3, 8, 8), "tokens": (4, 5), "vector": (6,), "ids": (4,)}
VOCABULARY = 7
LARGEST = 4096  # elements of a value, at two examples in a batch


class Step(BaseModel):
    """One block: the values that it reads, and its own numbers. share: the step whose layers it uses again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    block: str
    reads: tuple[int, ...]
    options: dict[str, Any] = {}
    share: int | None = None


class Spec(BaseModel):
    """A network, and how it is pruned.

    Values are numbered: the inputs first, then what each step makes. outputs: values that the network returns.
    seed: of weights, inputs and random plans. policy, prune: options of the analysis and of ``graphprune.prune``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Spec:
        """Itself, as nothing changes it: a network that is copied has one."""
        return self

    seed: int
    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    policy: dict[str, str] = {}
    prune: dict[str, Any] = {}
    why: str = ""


class Network(nn.Module):
    """Runs the steps of a spec in their order. Raises ValueError where a step does not suit what it reads."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.steps = nn.ModuleList()
        values: list[Any] = list(inputs_of(spec, 2))
        for step in spec.steps:
            reads = [values[index] for index in step.reads]
            self.steps.append(self._block(step, [tuple(value.shape[1:]) for value in reads]))
            values += made(self.steps[-1], reads)
        if any(tensor.numel() > LARGEST for tensor in values):
            raise ValueError("too large")

    def _block(self, step: Step, shapes: Sequence[Shape]) -> nn.Module:
        block = BLOCKS[step.block](shapes, **step.options)
        if step.share is None:
            return block
        shared = self.steps[step.share]
        assert isinstance(shared, Block)
        if step.block != self.spec.steps[step.share].block or shared.shapes != block.shapes or shared.options != step.options:
            raise ValueError("the shared step is another one")
        return shared

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        values: list[Any] = list(inputs)
        for step, block in zip(self.spec.steps, self.steps, strict=True):
            values += made(block, [values[index] for index in step.reads])
        return tuple(values[index] for index in self.spec.outputs)


def made(block: nn.Module, reads: Sequence[Tensor]) -> list[Tensor]:
    """What a block makes of these values, as a list."""
    result = block(*reads)
    return list(result) if isinstance(result, (tuple, list)) else [result]


def inputs_of(spec: Spec, batch: int) -> tuple[Tensor, ...]:
    """Random inputs for a batch of this size, of double precision or of indices."""
    generator = torch.Generator().manual_seed(spec.seed * 16 + batch)
    return tuple(
        torch.randint(VOCABULARY, (batch, *INPUTS[kind]), generator=generator)
        if kind == "ids"
        else torch.randn(batch, *INPUTS[kind], generator=generator, dtype=torch.float64)
        for kind in spec.inputs
    )


def build(spec: Spec) -> Network:
    """The network in float64 and eval mode, its weights drawn from its seed so that values keep their size.

    Raises ValueError, RuntimeError, IndexError or KeyError for a spec that is no network.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            network = Network(spec)
            for name, parameter in network.named_parameters():
                inner = parameter[0].numel() if parameter.dim() > 1 else 4
                nn.init.normal_(parameter, std=max(inner, 1) ** -0.5)
                if name.endswith(("norm.weight", "norm.scale")):
                    nn.init.uniform_(parameter, 0.5, 1.5)
    finally:
        torch.set_default_dtype(default)
    ready(network)
    return network
