"""What the Python code of a model cannot follow: widths that it states itself, and layers that only its train mode reads.

Found by trying. All groups are cut at random, on the meta device; what the rewriter has to change besides layers and tensors is
what the model's own code would get wrong. Then that code runs on the slim layers: it must run the same operators as the slim graph,
and go on to run in train mode where it does. A group that this fails for stays as wide as it is, with the reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from networkx.utils import UnionFind
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from graphprune.channels.borrowed import borrowed, given_shape
from graphprune.channels.groups import Group, Groups, Kept
from graphprune.channels.labels import Value
from graphprune.channels.tape import stand_in
from graphprune.errors import CaptureError, RewriteError, UsageError, typed_line
from graphprune.ir.program import Inputs, Program
from graphprune.ir.twins import named_tensors, twin
from graphprune.own_class.attributes import Stated, computes, in_words, is_changed, reads_one_of, stated, stated_in, tied_at
from graphprune.own_class.calls import first_difference
from graphprune.own_class.seat import seated
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.passes.rewrite.rewrite import rewrite
from graphprune.pipeline.analysis_manager import AnalysisManager
from graphprune.randomness import own_randomness
from graphprune.tracing.source import error_line, in_brackets

_CUTS: Final = 8  # random cuts that are looked at: widths that have to be equal may be so by chance
_RUNS: Final = 2  # of these, as many as the model's code is run on
_WRITES: Final = frozenset({torch.ops.aten.index_put, torch.ops.aten.index_put_})
_WHY: Final = "the model keeps its class, and its own code"


_Place: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class _Conflict:
    """Groups that have to stay, and why; or choices of policies that may do instead."""

    groups: Sequence[Group]
    reason: str
    choices: Mapping[str, str] = field(default_factory=dict)


def within_own_code(model: nn.Module, inputs: Inputs, program: Program, analyses: AnalysisManager) -> Program:
    """The program under constraints with which the model's own code runs on slim layers.

    What is split into parts of one size stays so (the policy ``parts``, at that site), and channels whose number the code takes
    from others are tied to these (the policy ``sizes``). Where this does not do, groups stay whole, with the reason.

    model, inputs: what the program was captured from. analyses: has the groups of the result afterwards. Raises UsageError where
    the weights are elsewhere, and RewriteError where the model cannot be copied, or its copy does not run.
    """
    if program.weights is not None:
        raise UsageError(
            f"The weights of {type(model).__name__} are not in memory, and a model that keeps its class needs them there. "
            "Load the whole model, or leave out keep_class."
        )
    trials = _Trials(model, inputs, program)
    while True:
        groups = analyses.get(program, ChannelGroups)
        conflict = trials.conflict(groups, program.policy)
        if conflict is None:
            return program
        if conflict.choices:
            program = program.with_(policy={**conflict.choices, **program.policy})
        else:
            program = program.with_(whole={**program.whole, **{_axis_of(group): conflict.reason for group in conflict.groups}})


def _axis_of(group: Group) -> str:
    """The axis of a parameter on which the group is; the one with the fewest other units on it, as far as can be seen."""
    member = min(group.members, key=lambda member: (member.axis, member.tensor.count(".")))
    return f"{member.tensor}[{member.axis}]"


class _Trials:
    """Random cuts of some groups of a program, on the meta device."""

    def __init__(self, model: nn.Module, inputs: Inputs, program: Program) -> None:
        self._program = program
        self._model = model
        self._inputs = inputs
        self._policy: Mapping[str, str] = program.policy
        own = set(named_tensors(model))
        names = {id(tensor): name for name, tensor in named_tensors(program.module).items()}
        # Constants that the code makes keep their data, which the code on other widths may make otherwise; so do indices.
        self._module: Any = twin(
            program.module,
            lambda tensor: stand_in(tensor) if names.get(id(tensor), "") in own and tensor.is_floating_point() else tensor,
        )
        self._fine: dict[tuple[int, str], int] = {}  # how many first groups a check is known not to fail for, by seed
        self._own_names = own
        self._device = next((tensor.device for tensor in program.tensors.values()), torch.device("cpu"))

    def conflict(self, groups: Groups, policy: Mapping[str, str]) -> _Conflict | None:
        """The first thing that the model's code cannot follow; None where it follows everything.

        policy: that the groups are made under.
        """
        self._policy = policy
        for seed in range(_CUTS):
            slim = self._cut(groups, len(groups.prunable), seed)
            found = self._stated(slim, groups) or self._contradicted(slim, groups, seed)
            if found is not None:
                return found
        for seed in range(_RUNS):
            slim = self._cut(groups, len(groups.prunable), seed)
            for check in (self._fails_in_train_mode, self._fails):
                if check(slim):
                    return self._culprit(groups, seed, check)
        return None

    def _cut(self, groups: Groups, count: int, seed: int) -> fx.GraphModule:
        """The slim graph without a random part of each of the first groups, at most half of it."""
        kept = np.ones(groups.unit_count, dtype=bool)
        random = np.random.default_rng(seed)
        for group in groups.prunable[:count]:
            kept[random.permutation(group.units)[: random.integers(0, group.size // 2 + 1)]] = False
        return rewrite(self._module, groups, Kept(groups, kept))

    def _stated(self, slim: fx.GraphModule, groups: Groups) -> _Conflict | None:
        """What the calls, and constants, that had to be changed ask for: choices there, or else the groups at the first to stay."""
        old = {node.name: node for node in self._module.graph.nodes}
        linked: UnionFind[int] = UnionFind()
        reads = {node: stated_in(self._model, node, self._policy) for node in filter(is_changed, slim.graph.nodes)}
        stuck = [(old.get(name, node), node, what) for name, node, what in self._stuck(slim, reads)]
        follow: dict[Any, set[str]] = defaultdict(set)  # attributes that calls are known to read their widths from, by module
        for node, found in reads.items():
            follow[node.meta.get("module")].update(found or ())
        choices: dict[str, str] = {}
        for before, node, _ in stuck:
            choices |= _choices(before, node, groups, linked, follow[node.meta.get("module")])
        if choices.keys() - self._policy.keys():
            return _Conflict((), "", choices)
        for before, _, what in stuck:
            touched = _groups_at(groups, [before])
            if touched:
                return _Conflict(touched, f"{_WHY} {what}")
        return None

    def _stuck(self, slim: fx.GraphModule, reads: Mapping[fx.Node, Any]) -> Iterator[tuple[str, fx.Node, str]]:
        """Nodes of a slim graph whose widths the code may state, by the names of the original's, and in words.

        reads: the attributes that each changed call reads its widths from; None where it reads some elsewhere.
        """
        for node in slim.graph.nodes:
            if node in reads and reads[node] is None:
                yield node.meta["graphprune"].source, node, f"states this width in {in_words(node)}"
            elif node.op == "get_attr" and node.target not in self._own_names and _grew(slim, self._module, str(node.target)):
                yield node.name, node, f"has this width in a tensor that is no parameter or buffer ({node.target})"

    def _contradicted(self, slim: fx.GraphModule, groups: Groups, seed: int) -> _Conflict | None:
        """The groups at calls that read several widths from one attribute; or a group behind a number from anywhere else."""
        try:
            stated(self._model, slim, self._policy)
        except Stated as error:
            old = {node.name: node for node in self._module.graph.nodes}
            touched = _groups_at(groups, [old[node.meta["graphprune"].source] for node in error.calls])
            return (
                _Conflict(touched, f"{_WHY} does not follow it: {error}") if touched else self._culprit(groups, seed, self._states)
            )
        return None

    def _states(self, slim: fx.GraphModule) -> str:
        """A width that the code states, wherever it comes from."""
        try:
            stated(self._model, slim, self._policy)
        except Stated as error:
            return str(error)
        return ""

    def _fails(self, slim: fx.GraphModule) -> str:
        """How the model's code fails on the layers of a slim graph; empty where it runs what the graph runs."""
        try:
            placed: Any = twin(slim, self._unset)
            program = self._program
            return first_difference(self._seated(placed), self._inputs, placed, program.inputs, program.scopes)
        except Stated as error:
            return str(error)
        except CaptureError as error:
            return _told(error.__cause__ or error)

    def _seated(self, slim: fx.GraphModule) -> nn.Module:
        return seated(self._model, slim, stated(self._model, slim, self._policy))

    def _unset(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor on the model's device, where its code makes constants; memory that nothing touches costs nothing."""
        if not tensor.is_meta:
            return tensor
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self._device)

    @cached_property
    def _trains_on(self) -> _Place | None:
        """Where the original runs in train mode: on the meta device, or, if it looks at data, on its own; None for nowhere."""
        return next((place for place in (_on_meta, self._zeros) if not self._failure_in_train_mode(self._module, place)), None)

    def _zeros(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor on the model's device that has no data yet gets zeros."""
        return torch.zeros_like(tensor, device=self._device) if tensor.is_meta else tensor.detach().clone()

    def _fails_in_train_mode(self, slim: fx.GraphModule) -> str:
        """How the model's code fails in train mode on the layers of a slim graph; empty where it runs, or the original does not."""
        return "" if self._trains_on is None else self._failure_in_train_mode(slim, self._trains_on)

    def _failure_in_train_mode(self, slim: fx.GraphModule, place: _Place) -> str:
        try:
            model = twin(self._seated(slim), place).train()
            inputs = self._inputs.map(lambda item: place(item) if isinstance(item, torch.Tensor) else item)
            with torch.no_grad(), own_randomness(), _Masks():  # type: ignore[no-untyped-call]
                model(*inputs.args, **inputs.kwargs)
        except RewriteError as error:
            return str(error)
        except Exception as error:
            return f"in train mode, {_told(error)}"
        return ""

    def _culprit(self, groups: Groups, seed: int, check: Callable[[fx.GraphModule], str]) -> _Conflict:
        """One group that the code cannot follow: the last of the fewest first ones that a check fails for."""
        reason = check(self._module)
        if reason:
            raise RewriteError(
                f"A copy of {type(self._model).__name__} does not do what the model does: {reason}. Leave out keep_class."
            )
        works, fails = self._fine.get((seed, check.__name__), 0), len(groups.prunable)  # how many first groups
        while fails - works > 1:
            middle = (works + fails) // 2
            failure = check(self._cut(groups, middle, seed))
            if failure:
                fails, reason = middle, failure
            else:
                works = middle
        self._fine[seed, check.__name__] = works  # the group behind them is out of the way now
        reason = reason or check(self._cut(groups, fails, seed))
        return _Conflict([groups.prunable[fails - 1]], f"{_WHY} does not follow it: {reason}")


class _Masks(TorchDispatchMode):
    """Refuses to write through masks without data: on the meta device anything would fit."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in _WRITES and any(
            index is not None and index.dtype is torch.bool and index.is_meta for index in args[1]
        ):
            raise CaptureError("it writes through a mask")
        return func(*args, **(kwargs or {}))


def _on_meta(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_meta else stand_in(tensor)


def _told(error: BaseException) -> str:
    return f"{typed_line(error)}{in_brackets(error_line(error))}"


def _grew(slim: fx.GraphModule, module: nn.Module, name: str) -> bool:
    """Whether a tensor has another shape in the slim graph, or is only there."""
    before = named_tensors(module).get(name)
    return before is None or before.shape != named_tensors(slim)[name].shape


def _groups_at(groups: Groups, calls: Sequence[fx.Node]) -> list[Group]:
    """The prunable groups that some calls, or what they are given, have channels of."""
    near = {node for call in calls for node in (call, *call.all_input_nodes)}
    found = {index for node in near for index in _groups_of(groups, groups.trace.values.get(node.name))}
    return [groups.prunable[index] for index in sorted(found)]


def _groups_of(groups: Groups, value: Any) -> set[int]:
    """Indices of the prunable groups that a node's value has channels of."""
    found = [leaf for leaf in tree_leaves(value, is_leaf=lambda item: isinstance(item, Value)) if isinstance(leaf, Value)]
    known = [field for leaf in found for field in leaf.fields if field in groups.vectors]
    return {index for field in known for index in groups.linear(field)[1]}


def _choices(before: fx.Node, node: fx.Node, groups: Groups, linked: UnionFind[int], follow: Iterable[str]) -> dict[str, str]:
    """Choices at a call, as it was and as it is, with which its code may follow.

    linked: groups that are, or will be, tied. follow: attributes of its module that will follow.
    """
    values = groups.trace.values
    found = {f"parts@{before.name}": "equal"} if _are_alike(values.get(before.name)) else {}
    if is_changed(node) and computes(node) and given_shape(before, values):
        fields = chain(*borrowed(before, values))
        ends = {linked[group] for field in fields for group in np.unique(groups.group_of[groups.unit_of[field]]).tolist()}
        linked.union(*ends)
        # Ties at a second view of the same channels could be of other positions. Whether there are as many, the run will show.
        if ends or reads_one_of(node, follow):
            found[tied_at(node)] = "tied" if len(ends) > 1 else "free"
    elif is_changed(node) and computes(node) and reads_one_of(node, follow):
        found[tied_at(node)] = "free"  # a number, such as a batch of all heads by the number of heads, that may come out the same
    return found


def _are_alike(value: Any) -> bool:
    """Whether a node's value is several tensors of one shape."""
    return isinstance(value, (tuple, list)) and len(value) > 1 and len({getattr(part, "shape", None) for part in value}) == 1
