"""What must hold of every pruning, whatever the model and the plan: the assertions that the larger tests share."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import graphprune
from graphprune.channels.groups import FROZEN, Groups, Kept
from graphprune.channels.tape import tape_of
from graphprune.costs.cost import CostModel
from graphprune.ir.program import Program
from graphprune.ir.twins import named_tensors
from graphprune.passes.analysis.channels import groups_of
from graphprune.plans.plan import Plan, make_plan
from graphprune.tracing import capture, normalise_inputs


@dataclass(frozen=True)
class Analysed:
    """A model with its capture and groups."""

    model: Any
    inputs: Any
    program: Program
    groups: Groups
    policy: Mapping[str, str]

    def plan(self, kept: Kept) -> Plan:
        """The plan that keeps these units."""
        return make_plan(self.program.module, self.groups, kept, policy=dict(self.policy))

    def random_plan(self, seed: int) -> Plan:
        """A plan that keeps a random part of every group, never all and never none of it."""
        return self.plan(random_units(self.groups, seed))

    def frozen_reasons(self, tensor: str, axis: int) -> set[str]:
        """Texts of the reasons that freeze units along an axis of a parameter or buffer."""
        field = self.groups.trace.parameters[tensor].on(axis)
        assert field is not None, f"{tensor} has no labels on axis {axis}"
        units = set(self.groups.unit_of[field.ravel()].tolist())
        return {str(g.reason) for g in self.groups.frozen if units & set(g.units.tolist())}

    def units(self, tensor: str, axis: int) -> list[int]:
        """Unit of each index along an axis; FROZEN (-1) for those that must stay."""
        field = self.groups.trace.parameters[tensor].on(axis)
        assert field is not None, f"{tensor} has no labels on axis {axis}"
        units = self.groups.unit_of[field.ravel()]
        return [FROZEN if self.groups.group_of[unit] == FROZEN else int(unit) for unit in units]


def analyse(model: nn.Module, inputs: Any, *, exclude: tuple[str, ...] = (), policy: Mapping[str, str] | None = None) -> Analysed:
    """Capture a model and form its groups."""
    return grouped(model, inputs, capture(model, inputs), exclude=exclude, policy=policy)


def grouped(
    model: nn.Module, inputs: Any, program: Program, *, exclude: tuple[str, ...] = (), policy: Mapping[str, str] | None = None
) -> Analysed:
    """Form the groups of a model that was captured before."""
    chosen = dict(policy or {})
    return Analysed(model, inputs, program, groups_of(program, chosen, exclude), chosen)


def random_units(groups: Groups, seed: int) -> Kept:
    """Kept units: of each group at least one, and where it has two or more, not all."""
    random = np.random.default_rng(seed)
    kept = np.ones(groups.unit_count, dtype=bool)
    for group in groups.prunable:
        if group.size > 1:
            count = int(random.integers(1, group.size))
            kept[random.choice(group.units, group.size - count, replace=False)] = False
    return Kept(groups, kept)


def state_hash(model: nn.Module) -> str:
    """A digest of every parameter, buffer and mode."""
    digest = hashlib.sha256()
    for name, tensor in sorted(named_tensors(model).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.requires_grad}".encode())
        digest.update(
            tensor.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes() if tensor.dim() else repr(tensor).encode()
        )
    digest.update(repr([(n, m.training, sorted(m.__dict__)) for n, m in model.named_modules()]).encode())
    return digest.hexdigest()


def run(model: nn.Module, inputs: Any) -> Any:
    """The model's output without gradients; inputs are cloned, because a model may write into them."""
    given = normalise_inputs(inputs)
    args, kwargs = tree_map(_cloned, (given.args, dict(given.kwargs)))
    with torch.no_grad():
        return model(*args, **kwargs)


def _cloned(item: Any) -> Any:
    return item.clone() if isinstance(item, Tensor) else item


def max_error(found: Any, wanted: Any) -> float:
    """Largest relative error over all tensors of two outputs of the same structure."""
    worst = 0.0
    for one, other in zip(tree_leaves(found), tree_leaves(wanted), strict=True):
        if not isinstance(one, Tensor) or not one.numel():
            continue
        assert one.shape == other.shape and one.dtype == other.dtype
        scale = float(other.detach().abs().max()) or 1.0
        worst = max(worst, float((one - other).detach().abs().max()) / scale)
    return worst


def counted_macs(model: nn.Module, inputs: Any) -> int:
    """Multiply-accumulates by torch's own counter."""
    with FlopCounterMode(display=False) as counter:
        run(model, inputs)
    return int(counter.get_total_flops()) // 2


def zeroed(model: nn.Module, plan: Plan) -> nn.Module:
    """The original with every removed slice of every tensor set to zero: for many models, what pruning must equal."""
    result = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in named_tensors(result).items():
            for axis, kept in plan.kept.get(name, {}).items():
                gone = [index for index in range(tensor.shape[axis]) if index not in set(kept)]
                tensor.index_fill_(axis, torch.tensor(gone), 0)
    return result


def check_plan(
    subject: Analysed,
    plan: Plan,
    *,
    other: Any = None,
    zeros: bool = True,
    macs: bool = True,
    memory: bool = True,
    again: bool = True,
) -> Any:
    """Carry out a plan and check everything that must hold of the result; returns the slim model.

    other: inputs of another batch size. zeros: the slim model must equal the original with removed slices zeroed.
    macs: recount with torch's counter. memory: recount the peak of activations. again: prune the result a second time.
    """
    model, inputs = subject.model, subject.inputs
    before = state_hash(model)
    result = graphprune.apply_plan(model, inputs, plan, verify=False)
    slim = result.graph
    found = graphprune.verify(model, slim, plan, inputs)
    assert found.passed, found.failure
    assert found.error < 1e-10
    assert found.compared > 0
    _check_costs(subject, result, macs=macs)
    _check_state(subject.program.module, slim, plan)
    _check_life(slim, inputs)
    if other is not None:
        assert graphprune.verify(model, slim, plan, other).check().error < 1e-10
    if zeros:
        masked = zeroed(model, plan).eval()
        for example in [inputs] if other is None else [inputs, other]:
            assert max_error(run(slim.eval(), example), run(masked, example)) < 1e-10
    if again:
        _check_again(slim, subject, result, macs=macs, memory=memory)
    assert state_hash(model) == before, "pruning changed the original model"
    return slim


def _counter_sees_attention() -> bool:
    """Older releases of torch do not count attention on the CPU."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu in flop_registry


def _check_costs(subject: Analysed, result: graphprune.PruneResult, *, macs: bool) -> None:
    after, slim = result.report.after, result.model
    assert after.parameters == sum(p.numel() for p in slim.parameters())
    assert result.report.before.parameters == sum(p.numel() for p in subject.program.module.parameters())
    names = {id(t): n for n, t in reversed(named_tensors(subject.program.module).items())}
    tensors = [t for n, t in [*slim.named_parameters(), *slim.named_buffers()] if n in names.values()]
    assert after.weight_bytes == sum(t.numel() * t.element_size() for t in tensors)
    if macs and _counter_sees_attention():
        assert result.report.before.macs == counted_macs(subject.model.eval(), subject.inputs)
        assert after.macs == counted_macs(slim.eval(), subject.inputs)


def _check_state(model: nn.Module, slim: fx.GraphModule, plan: Plan) -> None:
    """Keys, dtypes, gradients and persistence are the original's, shapes are the plan's."""
    full, small = named_tensors(model), named_tensors(slim)
    for name in plan.kept:
        assert name in small, f"{name} is cut by the plan and missing from the slim model"
    for name, tensor in small.items():
        if name not in full:
            assert name not in slim.state_dict() and not isinstance(tensor, nn.Parameter), f"{name} is new"
            continue
        assert tensor.dtype == full[name].dtype and tensor.requires_grad == full[name].requires_grad
        assert isinstance(tensor, nn.Parameter) == isinstance(full[name], nn.Parameter)
        shape = [len(plan.kept.get(name, {}).get(a, range(n))) for a, n in enumerate(full[name].shape)]
        assert list(tensor.shape) == shape, name
    assert set(slim.state_dict()) <= set(model.state_dict())


def _check_life(slim: fx.GraphModule, inputs: Any) -> None:
    """The slim model can be copied, switched to train and back, and loads its own weights."""
    slim.graph.lint()
    reference = run(slim.eval(), inputs)
    twin = copy.deepcopy(slim)
    assert max_error(run(twin, inputs), reference) == 0.0
    twin.load_state_dict(slim.state_dict())
    twin.train()
    assert all(module.training for module in twin.modules())
    run(twin, inputs)
    twin.eval()
    assert not any(module.training for module in twin.modules())


def _check_again(slim: fx.GraphModule, subject: Analysed, first: graphprune.PruneResult, *, macs: bool, memory: bool) -> None:
    """The slim model is a model: captured again it costs what was reported, and it can be cut again, and again."""
    inputs = subject.inputs
    for seed in range(2):
        found = analyse(slim, inputs)
        plan = found.random_plan(seed)
        result = graphprune.apply_plan(slim, inputs, plan, verify=False)
        assert result.report.before.parameters == first.report.after.parameters
        assert not macs or result.report.before.macs == first.report.after.macs
        if memory:
            _check_memory(found, subject, first)
        verdict = graphprune.verify(slim, result.model, plan, inputs)
        assert verdict.passed, f"pruning {seed + 2}: {verdict.failure}"
        assert result.report.after.parameters == sum(p.numel() for p in result.model.parameters())
        slim, subject, first = result.graph, found, result


def _check_memory(found: Analysed, subject: Analysed, first: graphprune.PruneResult) -> None:
    """What the formulas said of memory is what the slim model has; less, where with one channel left a copy is needless."""
    kept = np.array([after for _, after in first.report.widths.values()], dtype=np.int64)
    # Of groups of one channel torch gives the operand itself back, which a shape that was cached does not tell.
    trivial = any(operation.operator is torch.ops.aten.channel_shuffle.default for step in tape_of(subject.program).steps
                  for operation in step.operations)  # fmt: skip
    said = CostModel(subject.program, subject.groups).memory(kept)
    counted = CostModel(found.program, found.groups).memory(found.groups.widths)
    assert said == counted or (said > counted and 1 in kept) or trivial, (kept, said, counted)


def slim_model(subject: Analysed, seed: int = 0) -> tuple[fx.GraphModule, Plan]:
    """A slim model of a random plan, not verified."""
    plan = subject.random_plan(seed)
    return graphprune.apply_plan(subject.model, subject.inputs, plan, verify=False).graph, plan
