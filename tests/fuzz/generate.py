"""Random specs: a seed gives a network, its policy, and the options that it is pruned with."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor

from tests.fuzz import images, tokens, wiring
from tests.fuzz.block import BLOCKS, Block, Options
from tests.fuzz.spec import INPUTS, LARGEST, VOCABULARY, Spec, Step, inputs_of, made

assert all((images, tokens, wiring))

STARTS = {"image": "Conv", "tokens": "Linear", "vector": "Linear", "ids": "Embed"}
CRITERIA = ("l1", "l2", "random", "fpgm", "l2")
INVALID = (ValueError, RuntimeError, IndexError, KeyError)  # what torch and the blocks raise for shapes that do not suit


class Draft:
    """A network in the making: its steps, and what they made of example inputs."""

    def __init__(self, random: Random, seed: int) -> None:
        self.random = random
        kinds = random.choices(list(INPUTS), [5, 3, 1, 2], k=random.choice([1, 1, 1, 2]))
        self.inputs = tuple(kinds)
        self.values: list[Tensor] = list(inputs_of(Spec(seed=seed, inputs=self.inputs, steps=(), outputs=()), 2))
        self.steps: list[Step] = []
        self.blocks: list[Block] = []

    def add(self, name: str, reads: tuple[int, ...], options: Options, share: int | None = None) -> None:
        """Add a step. Raises one of INVALID where it does not suit."""
        inputs = [self.values[index] for index in reads]
        found = BLOCKS[name]([tuple(value.shape[1:]) for value in inputs], **options) if share is None else self.blocks[share]
        results = made(found, inputs)
        if any(not 0 < tensor.numel() <= LARGEST for tensor in results):
            raise ValueError("too large")
        self.steps.append(Step(block=name, reads=reads, options=options, share=share))
        self.blocks.append(found)
        self.values += results

    def read(self) -> int:
        """A value that is no input; later ones are more likely."""
        first = len(self.inputs)
        return max(self.random.randrange(first, len(self.values)), self.random.randrange(first, len(self.values)))

    def shape(self, index: int) -> tuple[int, ...]:
        """Shape of a value without its batch axis."""
        return tuple(self.values[index].shape[1:])

    def try_step(self) -> None:
        """Add a random step, if one that is drawn suits."""
        if self.random.random() < 0.06 and self._again():
            return
        name = self.random.choices(list(BLOCKS), [found.weight for found in BLOCKS.values()])[0]
        kind = BLOCKS[name]
        for _ in range(8):
            reads = tuple(self.read() for _ in range(kind.arity))
            shapes = [self.shape(index) for index in reads]
            if kind.rank is not None and any(len(shape) != kind.rank for shape in shapes):
                continue
            options = kind.draw(self.random, *shapes)
            if options is not None:
                self._attempt(name, reads, options)
                return

    def _attempt(self, name: str, reads: tuple[int, ...], options: Options, share: int | None = None) -> None:
        try:
            self.add(name, reads, options, share)
        except INVALID:
            return

    def _again(self) -> bool:
        """Use the layers of an earlier step once more, on another value of the same shape."""
        layered = [i for i, found in enumerate(self.blocks) if next(found.parameters(), None) is not None]
        share = self.random.choice(layered)
        reads = [i for i in range(len(self.inputs), len(self.values)) if (self.shape(i),) == self.blocks[share].shapes]
        if reads:
            step = self.steps[share]
            self._attempt(step.block, (self.random.choice(reads),), step.options, share)
        return bool(reads)

    def finish(self) -> tuple[int, ...]:
        """Heads on values that nothing reads, and the outputs."""
        used = {index for step in self.steps for index in step.reads}
        ends = [index for index in range(len(self.inputs), len(self.values)) if index not in used]
        outputs = []
        for end in ends[-3:]:
            if self.random.random() < 0.9:
                options: Options = {"out": 2, "bias": True}
                options |= {"kernel": 1, "kind": "plain"} if len(self.shape(end)) == 3 else {}
                self.add("Conv" if len(self.shape(end)) == 3 else "Linear", (end,), options)
                end = len(self.values) - 1
            outputs.append(end)
        return tuple(outputs)


def generate(seed: int) -> Spec:
    """The random spec of a seed."""
    random = Random(seed)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            draft = Draft(random, seed)
            for index, kind in enumerate(draft.inputs):
                options: Options = {"out": random.choice([4, 6, 8])}
                options |= {"vocabulary": VOCABULARY} if kind == "ids" else {"bias": True}
                options |= {"kernel": 3, "kind": "plain"} if kind == "image" else {}
                draft.add(STARTS[kind], (index,), options)
            for _ in range(random.randint(3, 24)):
                draft.try_step()
            outputs = draft.finish()
    finally:
        torch.set_default_dtype(default)
    policy, prune = _policy(random, draft.steps), _prune(random)
    return Spec(seed=seed, inputs=draft.inputs, steps=tuple(draft.steps), outputs=outputs, policy=policy, prune=prune)


def _policy(random: Random, steps: list[Step]) -> dict[str, str]:
    choices = {"heads": "head_dim", "conv_groups": "whole", "norm_groups": "whole", "statistics": "freeze"}
    chances = {"heads": 0.4, "conv_groups": 0.4, "norm_groups": 0.4, "statistics": 0.1}
    chosen = {name: choice for name, choice in choices.items() if random.random() < chances[name]}
    if any(step.options.get("norm") for step in steps):
        chosen.pop("heads", None)  # or else positions are normalised and then contracted
    return chosen


def _prune(random: Random) -> dict[str, Any]:
    """Options of ``graphprune.prune``."""
    return {
        "target": {random.choice(["channels", "params", "macs"]): round(random.uniform(0.3, 0.9), 2)},
        "criterion": random.choice(CRITERIA),
        "ranking": random.choice(["global", "local", "isomorphic"]),
        "round_to": random.choice([1, 1, 1, 2, 4]),
        "min_channels": random.choice([1, 1, 2]),
        "max_ratio": random.choice([1.0, 1.0, 0.75]),
    }
