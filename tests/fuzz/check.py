"""Everything that must hold of one random network: what ``python -m tests.fuzz`` and the tests run."""

from __future__ import annotations

import copy
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

import graphprune
from graphprune.channels.groups import FROZEN
from graphprune.ir.twins import named_tensors
from graphprune.passes.verification.verify import compare
from graphprune.plans.plan import Plan
from graphprune.quiet import quiet
from graphprune.tracing import normalise_inputs
from tests.checking import analyse, run, state_hash
from tests.fuzz.spec import Spec, build, inputs_of
from tests.fuzz.subject import Subject, unless_refused

ROOT = Path(__file__).resolve().parents[2]  # which no saved failure names
TOLERANCE = 1e-10
NOISE = 1e-3


@dataclass
class Outcome:
    """What the checks of one network found.

    failure: the check that failed, with the error, or "". counts: of networks, groups, parameters and checks, to be added up.
    """

    seed: int
    failure: str = ""
    trace: str = ""
    counts: Counter[str] = field(default_factory=Counter)


def _close(found: Any, wanted: Any, what: str, among: float = 1.0) -> None:
    """Equal to rounding: relative to the largest element, or to NOISE where all are as small (a mean of what has mean zero).

    among: the size of what the values are sums of, where that is larger than 1.
    """
    for one, other in zip(tree_leaves(found), tree_leaves(wanted), strict=True):
        assert one.shape == other.shape, f"{what} has the shape {list(one.shape)} and not {list(other.shape)}"
        size = max(float(other.detach().abs().max()), NOISE * max(among, 1.0))
        error = float((one - other).detach().abs().max()) / size
        assert error < TOLERANCE, f"{what} differs by {error:.1e}"


def verified(subject: Subject) -> None:
    """Any plan is proved by the oracle, at another batch size than that of the capture."""
    slim = subject.random
    found = compare(subject.program.module, slim.model, slim.plan, normalise_inputs(subject.other))
    assert found.passed, found.failure
    subject.counts["plans proved"] += 1


def equals_silenced(subject: Subject) -> None:
    """The slim model computes what the original's own Python does under weights that silence what is removed."""
    for inputs in (subject.inputs, subject.other):
        _close(run(subject.chosen.model, inputs), run(subject.silenced, inputs), "output")
    subject.counts["silenced originals equalled"] += 1
    subject.counts["of these with twins"] += bool(subject.twins)


def trains_as_silenced(subject: Subject) -> None:
    """The same in train mode, and what it leaves in the buffers, which both models have changed from then on."""
    full, slim = subject.silenced.train(), subject.chosen.model.train()
    _close(run(slim, subject.inputs), run(full, subject.inputs), "output in train mode")
    _same_state(slim, full, subject.chosen.plan)
    subject.counts["equalled in train mode"] += 1


def _same_state(slim: nn.Module, full: nn.Module, plan: Plan) -> None:
    tensors = named_tensors(full)
    for name, buffer in slim.named_buffers():
        if name in tensors and buffer.is_floating_point():
            _close(buffer, plan.slice(name, tensors[name]), f"buffer {name} after a step of training")


def equal_gradients(subject: Subject) -> None:
    """Gradients of what stays are those of the silenced original, where nothing has a twin that shares them."""
    if subject.twins:
        return
    plan, slim, full = subject.chosen.plan, subject.chosen.model, subject.silenced
    for model in (full, slim):
        sum((output * output).sum() for output in tree_leaves(model(*subject.inputs)) if output.requires_grad).backward()
    wanted = {name: _gradient(parameter) for name, parameter in full.named_parameters()}
    # That of a bias before a normalisation is zero: a sum of large terms.
    largest = max((float(gradient.abs().max()) for gradient in wanted.values() if gradient.numel()), default=0.0)
    for name, parameter in slim.named_parameters():
        _close(_gradient(parameter), plan.slice(name, wanted[name]), f"gradient of {name}", largest)
    subject.counts["gradients equalled"] += 1


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def same_units(subject: Subject) -> None:
    """The groups of the slim model are what is left of those of the original.

    Where two prunable axes merge, the wider one may shrink, which widths decide: there others may be left.
    """
    if _merging(subject.groups):
        return
    plan = subject.chosen.plan
    old, new = subject.groups, analyse(subject.chosen.model, subject.inputs, policy=subject.spec.policy).groups
    if _merging(new):  # as wide as one another now
        return
    pairs: set[tuple[int, int]] = set()
    for name, value in new.trace.parameters.items():
        if name not in old.trace.parameters:
            continue
        before = dict(old.units_along(item) for item in old.trace.parameters[name].fields)
        for axis, units in (new.units_along(item) for item in value.fields):
            assert axis in before, f"{name}[{axis}] has units in the slim model alone"
            stays = plan.kept.get(name, {}).get(axis, range(before[axis].size))
            pairs |= set(zip(_or_frozen(old, before[axis][list(stays)]), _or_frozen(new, units), strict=True))
    for side in (0, 1):
        repeated = [unit for unit, count in Counter(pair[side] for pair in pairs).items() if count > 1]
        assert not repeated, f"units differ: {sorted(pair for pair in pairs if pair[side] in repeated)[:6]}"
    subject.counts["slim models analysed again"] += 1


def _merging(groups: Any) -> bool:
    return any("merged into one axis" in str(group.reason) for group in groups.frozen if group.name != "(none)")


def _or_frozen(groups: Any, units: Any) -> list[int]:
    return [int(unit) if groups.group_of[unit] != FROZEN else FROZEN for unit in units]


def pruned_by_score(subject: Subject) -> None:
    """A target is met with a proof, or it is said why not."""
    subject.counts["targets met" if subject.scored else "targets refused"] += 1


def pruned_alike(subject: Subject) -> None:
    """``prune``, which captures and analyses anew, chooses the same and leaves the same bits, or refuses too."""
    spec, first = subject.spec, subject.scored
    second = unless_refused(lambda: graphprune.prune(subject.model, subject.inputs, policy=spec.policy, **spec.prune))
    assert (first is None) == (second is None), "one run of two met its target"
    if first is not None and second is not None:
        assert first.plan == second.plan, "two runs chose differently"
        _same_bits(first.graph, second.graph)
    subject.counts["pruned alike"] += 1


def _same_bits(model: fx.GraphModule, other: fx.GraphModule) -> None:
    assert model.code == other.code, "two runs left other code"
    one, two = model.state_dict(), other.state_dict()
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one), "two runs left other bits"


def applied(subject: Subject) -> None:
    """A plan that was written and read leaves the same bits, with a proof; a capture at another batch size proves them too."""
    plan = Plan.model_validate_json(subject.random.plan.model_dump_json())
    again = graphprune.apply_plan(subject.model, subject.inputs, plan)
    _same_bits(again.graph, subject.random.model)
    graphprune.verify(subject.model, again.model, plan, subject.other).check()
    subject.counts["plans applied from JSON"] += 1


def reloaded(subject: Subject) -> None:
    """A slim model that was saved and loaded computes the same bits, and so does a copy of it."""
    if subject.scored is None:
        return
    wanted = tree_leaves(run(subject.scored.graph, subject.other))
    with TemporaryDirectory() as folder:
        graphprune.save(subject.scored, Path(folder) / "slim.safetensors")
        loaded = graphprune.load(Path(folder) / "slim.safetensors")
    for model in (loaded, copy.deepcopy(subject.scored.graph)):
        assert all(map(torch.equal, tree_leaves(run(model, subject.other)), wanted)), "other bits"
    subject.counts["saved and loaded"] += 1


def exported(subject: Subject) -> None:
    """An exported slim model computes the same."""
    slim = subject.chosen.model
    with quiet():
        program = torch.export.export(slim, subject.inputs)
    _close(run(program.module(), subject.inputs), run(slim, subject.inputs), "exported output")
    subject.counts["exported"] += 1


def untouched(subject: Subject) -> None:
    """None of the above changed the model."""
    assert state_hash(subject.model) == subject.before, "the original was changed"


@dataclass(frozen=True)
class Check:
    """A check of one network, in which an error is a finding. every: one network in so many is checked, by its seed."""

    run: Callable[[Subject], None]
    every: int = 1

    def takes(self, seed: int) -> bool:
        """Whether the network of a seed is checked; the checks that take a share draw theirs one by one."""
        return Random(f"{self.run.__name__} {seed}").randrange(self.every) == 0


#: In this order: training changes what the others compare.
CHECKS = (
    Check(verified),
    Check(equals_silenced),
    Check(equal_gradients),
    Check(same_units),
    Check(pruned_by_score),
    Check(pruned_alike, every=16),
    Check(applied, every=16),
    Check(reloaded, every=16),
    Check(exported, every=64),
    Check(trains_as_silenced),
    Check(untouched),
)


def reach(subject: Subject) -> None:
    """Count what could be pruned and what was, so that nothing passes by freezing everything."""
    counts, groups = subject.counts, subject.groups
    tensors = dict(subject.model.named_parameters())
    whole, left = sum(p.numel() for p in tensors.values()), 0
    plan = subject.random.plan
    for name, parameter in tensors.items():
        left += plan.slice(name, parameter).numel()
        value = groups.trace.parameters.get(name)
        units = [groups.units_along(item)[1] for item in value.fields] if value else []
        free = [np.mean(groups.group_of[found] != FROZEN) for found in units]
        counts["parameters in reach"] += round(parameter.numel() * float(1 - np.prod([1 - share for share in free])))
    counts["networks"] += 1
    counts["networks with prunable groups"] += bool(groups.prunable)
    counts["prunable groups"] += len(groups.prunable)
    counts["prunable groups with statistics"] += sum(group.statistics is not None for group in groups.prunable)
    counts["prunable groups cut by the silencing oracle"] += sum(
        bool((~subject.kept.units[g.units]).any()) for g in groups.prunable
    )
    counts["parameters"] += whole
    counts["parameters removed by random plans"] += whole - left
    counts["operators"] += groups.trace.operators


def check(spec: Spec, *, everything: bool = False) -> Outcome:
    """Run the checks that take this network, or everything; the first that fails is told."""
    outcome = Outcome(spec.seed)
    name = "analysis"
    try:
        subject = Subject(spec, outcome.counts)
        reach(subject)
        for step in CHECKS:
            if everything or step.takes(spec.seed):
                name = step.run.__name__
                step.run(subject)
    except Exception as error:  # of whatever kind: each is a finding
        outcome.failure = f"{name}: {type(error).__name__}: {error}".replace(f"{ROOT}/", "")
        outcome.trace = traceback.format_exc()
    return outcome


def runs(spec: Spec) -> bool:
    """Whether a spec is a network that runs: what the generator and the shrinker ask."""
    try:
        outputs = run(build(spec), inputs_of(spec, 2))
    except (ValueError, RuntimeError, IndexError, KeyError):
        return False
    return all(isinstance(output, Tensor) for output in outputs)
