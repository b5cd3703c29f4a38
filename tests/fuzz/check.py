"""Everything that must hold of one random network: what ``python -m tests.fuzz`` and the tests run."""

from __future__ import annotations

import copy
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

import graphprune
from graphprune.channels.groups import FROZEN
from graphprune.errors import CaptureError, PlanError, TargetError, UsageError
from graphprune.ir.twins import named_tensors
from graphprune.plans.plan import Plan
from graphprune.quiet import quiet
from tests.checking import Analysed, analyse, run, state_hash
from tests.fuzz.silence import choose, silenced
from tests.fuzz.spec import Network, Spec, build, inputs_of

TOLERANCE = 1e-10
NOISE = 1e-3
EXPORTED = 4  # one network in so many is exported, which takes longer than all other checks together


@dataclass
class Outcome:
    """What the checks of one network found.

    failure: the check that failed, with the error, or "". counts: of networks, groups, parameters and checks, to be added up.
    """

    seed: int
    failure: str = ""
    trace: str = ""
    counts: Counter[str] = field(default_factory=Counter)


class Subject:
    """One network on its way through the checks."""

    def __init__(self, spec: Spec, counts: Counter[str]) -> None:
        self.spec, self.counts = spec, counts
        self.model: Network = build(spec)
        self.inputs, self.other = inputs_of(spec, 2), inputs_of(spec, 3)
        self.before = state_hash(self.model)
        self.found: Analysed = analyse(self.model, self.inputs, policy=spec.policy)
        self.kept, self.twins = choose(self.found.groups, spec.seed)

    def apply(self, plan: Plan) -> fx.GraphModule:
        """The slim model of a plan, not verified."""
        return graphprune.apply_plan(self.model, self.inputs, plan, verify=False).graph

    def slim(self) -> tuple[Plan, fx.GraphModule]:
        """The plan of the silencing oracle, and its slim model."""
        plan = self.found.plan(self.kept)
        return plan, self.apply(plan)


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
    """Any plan is proved by the oracle, at other batch sizes too."""
    plan = subject.found.random_plan(subject.spec.seed)
    slim = subject.apply(plan)
    for inputs in (subject.inputs, subject.other):
        found = graphprune.verify(subject.model, slim, plan, inputs)
        assert found.passed, found.failure
    subject.counts["plans proved"] += 1


def equals_silenced(subject: Subject) -> None:
    """The slim model is the original's own Python under weights that silence what is removed: outputs, in both modes."""
    plan, slim = subject.slim()
    wanted = silenced(subject.model, subject.found.groups, plan, subject.twins)
    for inputs in (subject.inputs, subject.other):
        _close(run(slim.eval(), inputs), run(wanted.eval(), inputs), "output")
    full, small = copy.deepcopy(wanted).train(), copy.deepcopy(slim).train()
    _close(run(small, subject.inputs), run(full, subject.inputs), "output in train mode")
    _same_state(small, full, plan)
    subject.counts["silenced originals equalled"] += 1
    subject.counts["of these with twins"] += bool(subject.twins)


def _same_state(slim: nn.Module, full: nn.Module, plan: Plan) -> None:
    tensors = named_tensors(full)
    for name, buffer in slim.named_buffers():
        if name in tensors and buffer.is_floating_point():
            _close(buffer, plan.slice(name, tensors[name]), f"buffer {name} after a step of training")


def equal_gradients(subject: Subject) -> None:
    """Gradients of what stays are those of the silenced original, where nothing has a twin that shares them."""
    if subject.twins:
        return
    plan, slim = subject.slim()
    full = silenced(subject.model, subject.found.groups, plan, {})
    for model in (full, slim):
        sum((output * output).sum() for output in tree_leaves(model(*subject.inputs)) if output.requires_grad).backward()
    wanted = {name: p.grad for name, p in full.named_parameters()}
    # That of a bias before a normalisation is zero: a sum of large terms.
    largest = max((float(grad.abs().max()) for grad in wanted.values() if grad is not None and grad.numel()), default=0.0)
    for name, parameter in slim.named_parameters():
        gradient = wanted[name]
        if parameter.grad is not None and gradient is not None:
            _close(parameter.grad, plan.slice(name, gradient), f"gradient of {name}", largest)
    subject.counts["gradients equalled"] += 1


def same_units(subject: Subject) -> None:
    """The groups of the slim model are what is left of those of the original.

    Where two prunable axes merge, the wider one may shrink, which widths decide: there others may be left.
    """
    if _merging(subject.found.groups):
        return
    plan, slim = subject.slim()
    again = analyse(slim, subject.inputs, policy=subject.spec.policy)
    old, new = subject.found.groups, again.groups
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
    """``prune`` meets its target with a proof, or says why not; and a second run gives the same bits."""
    results = []
    for _ in range(2):
        try:
            results.append(graphprune.prune(subject.model, subject.inputs, policy=subject.spec.policy, **subject.spec.prune))
        except (TargetError, UsageError) as error:
            assert not isinstance(error, (CaptureError, PlanError)), error
    assert len(results) != 1, "one run of two met its target"
    subject.counts["targets met" if results else "targets refused"] += 1
    if results:
        first, second = results
        assert first.plan == second.plan and first.graph.code == second.graph.code, "two runs chose differently"
        one, two = first.graph.state_dict(), second.graph.state_dict()
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one), "two runs left other bits"


def exported(subject: Subject) -> None:
    """An exported slim model computes the same."""
    if subject.spec.seed % EXPORTED:
        return
    _, slim = subject.slim()
    with quiet():
        program = torch.export.export(slim.eval(), subject.inputs)
    _close(run(program.module(), subject.inputs), run(slim, subject.inputs), "exported output")
    subject.counts["exported"] += 1


def untouched(subject: Subject) -> None:
    """None of the above changed the model."""
    assert state_hash(subject.model) == subject.before, "the original was changed"


CHECKS: tuple[Callable[[Subject], None], ...] = (
    verified,
    equals_silenced,
    equal_gradients,
    same_units,
    pruned_by_score,
    exported,
    untouched,
)


def reach(subject: Subject) -> None:
    """Count what could be pruned and what was, so that nothing passes by freezing everything."""
    counts, groups = subject.counts, subject.found.groups
    tensors = dict(subject.model.named_parameters())
    whole, left = sum(p.numel() for p in tensors.values()), 0
    plan = subject.found.random_plan(subject.spec.seed)
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


def check(spec: Spec) -> Outcome:
    """Run all checks on a network; the first that fails is told."""
    outcome = Outcome(spec.seed)
    name = "analysis"
    try:
        subject = Subject(spec, outcome.counts)
        reach(subject)
        for step in CHECKS:
            name = step.__name__
            step(subject)
    except Exception as error:  # of whatever kind: each is a finding
        outcome.failure = f"{name}: {type(error).__name__}: {error}"
        outcome.trace = traceback.format_exc()
    return outcome


def runs(spec: Spec) -> bool:
    """Whether a spec is a network that runs: what the generator and the shrinker ask."""
    try:
        outputs = run(build(spec), inputs_of(spec, 2))
    except (ValueError, RuntimeError, IndexError, KeyError):
        return False
    return all(isinstance(output, Tensor) for output in outputs)
