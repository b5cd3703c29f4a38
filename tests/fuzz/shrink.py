"""From a failing spec to a small one that fails in the same check with the same kind of error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import takewhile

from tests.fuzz.check import Outcome, check, runs
from tests.fuzz.spec import Spec, Step, build, inputs_of, made

SECONDS = 60.0  # that shrinking takes at most, and one network


def shrink(spec: Spec, outcome: Outcome, *, seconds: float = SECONDS) -> Spec:
    """The smallest spec that was found in this time; ``why`` says how it fails."""
    wanted = _kind(outcome.failure)
    spec = spec.model_copy(update={"why": outcome.failure[:500]})
    return reduce(spec, lambda found: _kind(check(found).failure) == wanted, time.monotonic() + seconds)


def _kind(failure: str) -> str:
    """The check and the class of the error."""
    return ":".join(failure.split(":")[:2])


def reduce(spec: Spec, fails: Callable[[Spec], bool], deadline: float) -> Spec:
    """Take the first simpler spec that still fails, again and again until none does or the time is over."""
    while True:
        candidates = takewhile(lambda _: time.monotonic() < deadline, simpler(spec))
        smaller = next((found for found in candidates if runs(found) and fails(found)), None)
        if smaller is None:
            return spec
        spec = smaller


def simpler(spec: Spec) -> Iterator[Spec]:
    """Specs with a step, an output, a policy, an option of pruning or some width less, the boldest first."""
    if len(spec.outputs) > 1:
        for drop in range(len(spec.outputs)):
            outputs = tuple(value for index, value in enumerate(spec.outputs) if index != drop)
            yield without_unread(spec.model_copy(update={"outputs": outputs}))
    for index in reversed(range(len(spec.steps))):
        yield from _without_step(spec, index)
    for name in spec.policy:
        yield spec.model_copy(update={"policy": {key: value for key, value in spec.policy.items() if key != name}})
    for name in [name for name in spec.prune if name != "target"]:
        yield spec.model_copy(update={"prune": {key: value for key, value in spec.prune.items() if key != name}})
    for index, step in enumerate(spec.steps):
        width = step.options.get("out", 0)
        for less in {2, width // 2, width - 1} - {0, 1, width, -1}:
            if less < width:
                yield _with_step(spec, index, step.model_copy(update={"options": {**step.options, "out": less}}))


def _with_step(spec: Spec, index: int, step: Step) -> Spec:
    steps = list(spec.steps)
    steps[index] = step
    return spec.model_copy(update={"steps": tuple(steps)})


def _counts(spec: Spec) -> list[int]:
    """How many values each step makes."""
    network = build(spec)
    values = list(inputs_of(spec, 2))
    counts = []
    for step, block in zip(spec.steps, network.steps, strict=True):
        results = made(block, [values[index] for index in step.reads])
        counts.append(len(results))
        values += results
    return counts


def _without_step(spec: Spec, index: int) -> Iterator[Spec]:
    """Whoever read what the step makes reads one of its own sources instead."""
    if any(step.share == index for step in spec.steps):
        return
    counts = _counts(spec)
    first = len(spec.inputs) + sum(counts[:index])
    gone = range(first, first + counts[index])
    for source in sorted(set(spec.steps[index].reads), reverse=True):
        moved = {value: source for value in gone}

        def place(value: int, moved: dict[int, int] = moved) -> int:
            return moved.get(value, value - len(gone) if value >= gone.stop else value)

        steps = []
        for number, step in enumerate(spec.steps):
            if number == index:
                continue
            share = step.share - (step.share > index) if step.share is not None else None
            steps.append(step.model_copy(update={"reads": tuple(place(value) for value in step.reads), "share": share}))
        outputs = tuple(dict.fromkeys(place(value) for value in spec.outputs))
        if all(value >= len(spec.inputs) for value in outputs):
            yield spec.model_copy(update={"steps": tuple(steps), "outputs": outputs})


def without_unread(spec: Spec) -> Spec:
    """A spec without the steps at its end that nothing reads."""
    while spec.steps:
        counts = _counts(spec)
        first = len(spec.inputs) + sum(counts[:-1])
        if any(value >= first for value in spec.outputs):
            break
        spec = spec.model_copy(update={"steps": spec.steps[:-1]})
    return spec
