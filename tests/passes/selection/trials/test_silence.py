"""A trial has the loss of the model that a rewrite would make: for every structure of the zoo, and for random networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, note
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from graphprune.calibration import Batch, Calibration
from graphprune.channels.filters import find_filters
from graphprune.channels.groups import Kept
from graphprune.passes.rewrite.rewrite import rewrite
from graphprune.passes.selection.trials import silence
from graphprune.passes.selection.trials.silence import Silence, read_by_weights
from graphprune.passes.selection.trials.sweep import Sweep, Work
from graphprune.tracing import normalise_inputs
from tests.checking import Analysed, analyse, run, state_hash
from tests.random_nets import RandomNet, networks
from tests.test_properties import POLICIES, images, profile
from tests.zoo import test_zoo
from tests.zoo.case import CASES, conv, net, pooled


def loss(output: Any, target: Any) -> Tensor:
    """Reads every number of the output."""
    leaves = [leaf.flatten() for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    flat = torch.cat(leaves)
    return (flat * torch.linspace(0.5, 1.5, flat.numel(), dtype=flat.dtype)).sin().mean() + flat.square().mean()


def check_trials(found: Analysed, inputs: Any, cuts: list[list[int]], tolerance: float = 1e-10) -> None:
    """All cuts in one sweep, against the rewritten models, which run each for itself."""
    program, groups = found.program, found.groups
    filters = find_filters(program, groups)
    finder = Silence(program, groups, filters)
    given = normalise_inputs(inputs)
    before = state_hash(program.module)
    sweep = Sweep(program, groups, Calibration([given], loss=loss), Work())
    losses, own = sweep.run(Batch(given), [finder.of(cut) for cut in cuts], whole=True)
    assert state_hash(program.module) == before
    assert own == pytest.approx(float(loss(run(program.module.eval(), inputs), None)), rel=tolerance)
    for cut, value in zip(cuts, losses, strict=True):
        stays = np.ones(groups.unit_count, dtype=bool)
        stays[cut] = False
        slim = rewrite(program.module, groups, Kept(groups, stays)).eval()
        assert value == pytest.approx(float(loss(run(slim, inputs), None)), rel=tolerance, abs=tolerance), cut


def some_cuts(found: Analysed, seed: int = 0) -> list[list[int]]:
    """Some units of each group, and then of all groups together."""
    random = np.random.default_rng(seed)
    cuts = [
        random.choice(group.units, int(random.integers(1, group.size)), replace=False).tolist()
        for group in found.groups.prunable
        if group.size > 1
    ]
    return [*cuts, [unit for cut in cuts for unit in cut]] if cuts else []


@pytest.mark.parametrize("name", CASES)
def test_a_trial_has_the_loss_of_the_rewritten_model(name: str) -> None:
    case, found = test_zoo.subject(name)
    torch.manual_seed(3)
    check_trials(found, case.inputs(3 if case.batch else 2), some_cuts(found))


@profile(30)
@given(networks(), st.integers(0, 1000), POLICIES)
def test_random_networks_too(model: RandomNet, seed: int, policy: dict[str, str]) -> None:
    note(str(model))
    found = analyse(model, images(2), policy=policy)
    check_trials(found, images(3), some_cuts(found, seed))


def _attention(self: Any, x: Tensor) -> Any:
    q, k, v = (part.unflatten(-1, (4, 3)).transpose(1, 2) for part in (self.q(x), self.k(x), self.v(x)))
    mixed = F.scaled_dot_product_attention(q, k, v)
    return self.out(mixed.transpose(1, 2).flatten(2)).mean(1)


def attention() -> nn.Module:
    """Four heads of three positions: heads are read by the output layer, positions are summed over by queries and keys."""
    return net(_attention, q=nn.Linear(6, 12), k=nn.Linear(6, 12), v=nn.Linear(6, 12), out=nn.Linear(12, 2))


TOKENS, IMAGE = torch.zeros(2, 5, 6, dtype=torch.float64), torch.zeros(2, 3, 8, 8, dtype=torch.float64)
STRUCTURES: dict[str, tuple[Any, Any, dict[str, str], bool]] = {
    "an activation that is not zero at zero": (
        lambda: net(lambda s, x: pooled(s.head, s.b(torch.sigmoid(s.a(x)))), a=conv(3, 4), b=conv(4, 3), head=nn.Linear(3, 2)),
        IMAGE, {}, True,
    ),
    "a layer norm": (
        lambda: net(lambda s, x: s.b(s.norm(s.a(x))), a=nn.Linear(6, 4), norm=nn.LayerNorm(4), b=nn.Linear(4, 2)),
        TOKENS, {}, False,
    ),
    "a sum over channels": (
        lambda: net(lambda s, x: s.b(s.a(x).sum(-1, keepdim=True)), a=nn.Linear(6, 4), b=nn.Linear(1, 2)),
        TOKENS, {}, False,
    ),
    "weights that are computed": (
        lambda: net(lambda s, x: F.linear(s.a(x), s.w.sigmoid()), a=nn.Linear(6, 4), w=nn.Parameter(torch.randn(2, 4))),
        TOKENS, {}, False,
    ),
    "whole heads": (attention, TOKENS, {"heads": "whole"}, True),
    "positions of heads": (attention, TOKENS, {"heads": "head_dim"}, False),
}  # fmt: skip


@pytest.mark.parametrize("what", STRUCTURES)
def test_zeros_in_weights_are_used_where_they_are_exact_and_only_there(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, inputs, policy, zeros = STRUCTURES[what]
    found = analyse(build(), inputs, policy=policy)
    prunable = np.concatenate([group.units for group in found.groups.prunable])
    exact = read_by_weights(found.groups, find_filters(found.program, found.groups))
    assert exact[prunable].all() == zeros
    given = torch.randn(inputs.shape, dtype=torch.float64)
    check_trials(found, given, some_cuts(found))
    if not zeros:
        monkeypatch.setattr(silence, "read_by_weights", lambda groups, filters: np.ones(groups.unit_count, dtype=bool))
        with pytest.raises(AssertionError):
            check_trials(found, given, some_cuts(found))


def test_a_trial_starts_where_its_units_are_read() -> None:
    """The convolution that makes the channels, and the activation behind it, are not run again."""
    build, inputs, policy, _ = STRUCTURES["an activation that is not zero at zero"]
    found = analyse(build(), inputs, policy=policy)
    finder = Silence(found.program, found.groups, find_filters(found.program, found.groups))
    nodes = [node.name for node in found.program.module.graph.nodes]
    starts = {group.name: nodes[finder.of(group.units[:1].tolist()).start] for group in found.groups.prunable}
    assert starts == {"a": "b", "b": "head"}


def test_work_is_counted_by_the_part_that_runs() -> None:
    """A trial of group a runs b and the head again, which are 108 / 216 of 8 x 8 products and 6 more."""
    build, inputs, policy, _ = STRUCTURES["an activation that is not zero at zero"]
    found = analyse(build(), inputs, policy=policy)
    finder = Silence(found.program, found.groups, find_filters(found.program, found.groups))
    work = Work()
    sweep = Sweep(found.program, found.groups, Calibration([inputs], loss=loss), work)
    cuts = [finder.of(group.units[:1].tolist()) for group in found.groups.prunable]
    sweep.run(Batch(normalise_inputs(inputs)), cuts, whole=True)
    first, second, head = 64 * 4 * 27, 64 * 3 * 36, 6
    whole = first + second + head
    assert work.forwards == pytest.approx(2 * (1 + (second + head) / whole + head / whole))
    before = work.forwards
    sweep.run(Batch(normalise_inputs(inputs)), cuts[:1], whole=False)
    assert work.forwards - before == pytest.approx(2 * 1.0), "what comes before, and what is run again"


def test_values_that_are_written_into_are_copied_for_each_trial() -> None:
    """A view of a tensor that a later layer adds to in place: the second trial and the program itself see it as it was."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        part = y[:, :2]
        part += self.gate(x)
        return pooled(self.head, self.b(F.relu_(y)))

    torch.manual_seed(0)
    model = net(forward, a=conv(3, 6), gate=conv(3, 2), b=conv(6, 5), head=nn.Linear(5, 2))
    found = analyse(model, IMAGE)
    check_trials(found, torch.randn(2, 3, 8, 8, dtype=torch.float64), some_cuts(found) * 2)
