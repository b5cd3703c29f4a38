"""What is measured does not depend on how an activation is laid out: channels first or last, tokens first, windows, heads."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from graphprune.calibration import Batch, Calibration
from graphprune.channels.filters import find_filters, taps_of
from graphprune.ir.program import placeholder_values
from graphprune.passes.calibration.collect import collect
from graphprune.passes.calibration.saliency import Saliency
from graphprune.statistic import Place, Tap
from graphprune.tracing import normalise_inputs
from tests.passes.scoring.scored import Floats, images, labelled, scored
from tests.zoo.case import conv, net
from tests.zoo.test_zoo import subject


def channels_first(a: Any, x: Tensor) -> Tensor:
    """Each of these is a linear layer, a nonlinearity and a mean over tokens, for x of shape (samples, tokens, 5)."""
    return F.relu(F.conv1d(x.transpose(1, 2), a.weight[:, :, None], a.bias)).mean(2)


def channels_last(a: Any, x: Tensor) -> Tensor:
    return F.relu(a(x)).mean(1)


def tokens_first(a: Any, x: Tensor) -> Tensor:
    return F.relu(a(x.transpose(0, 1))).mean(0)


def windows(a: Any, x: Tensor) -> Tensor:
    """Windows of a sample lie together along the first axis."""
    return F.relu(a(x.reshape(x.shape[0] * 3, x.shape[1] // 3, 5))).reshape(x.shape[0], x.shape[1], 6).mean(1)


def rows(a: Any, x: Tensor) -> Tensor:
    """Tokens of all samples along one axis, sample by sample."""
    return F.relu(a(x.reshape(-1, 5))).reshape(x.shape[0], x.shape[1], 6).mean(1)


def interleaved(a: Any, x: Tensor) -> Tensor:
    """Tokens of all samples along one axis, token by token, as the output projection of ``nn.MultiheadAttention`` sees them."""
    return F.relu(a(x.transpose(0, 1).reshape(-1, 5))).reshape(x.shape[1], x.shape[0], 6).mean(0)


LAYOUTS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "channels first": channels_first,
    "tokens first": tokens_first,
    "windows": windows,
    "rows": rows,
    "interleaved": interleaved,
}
FORMS = ["attention(p=2)", "attention(statistic=sum)", "attention(statistic=max)", "apoz", "variance", "mean-activation"]
FORMS += [
    "activation-similarity",
    "activation-similarity(kind=euclidean)",
    "taylor",
    "fisher",
    "taylor(form=weight)",
    "class-aware(tau=0.01)",
]


@cache
def measured(layout: Callable[[Any, Tensor], Tensor], form: str, traced: int, sizes: tuple[int, ...]) -> Floats:
    """Scores of one function, spelled in a layout, traced at a batch size and calibrated in batches of some sizes."""
    torch.manual_seed(0)
    model = net(lambda self, x: self.b(layout(self.a, x)), a=nn.Linear(5, 6), b=nn.Linear(6, 3))
    x, y = torch.randn(6, 6, 5, dtype=torch.float64), torch.arange(6) % 3
    found = scored(model, x[:traced], form, list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True)))
    return next(iter(found.values()))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_agree(layout: str, form: str) -> None:
    """Also for batches of one, and for batches as long as there are tokens, where lengths alone say nothing."""
    wanted = measured(channels_last, form, 2, (6,))
    for traced, sizes in ((2, (6,)), (1, (1,) * 6), (3, (3, 3))):
        assert measured(LAYOUTS[layout], form, traced, sizes) == pytest.approx(wanted, rel=1e-9), (traced, sizes)


# -- every structure of the zoo: the derivative with respect to a factor, against automatic differentiation -----------------

ATTENTION = ["torch_multi_head_attention", "torch_transformer_layer", "shifted_windows", "windows", "local_attention_by_unfolding"]
OTHERS = ["residual_addition_in_place", "long_short_term_memory", "tied_weights", "module_called_twice_in_a_row", "fused_qkv"]
OTHERS += ["patch_merging", "shuffle_unit_with_halves", "dense_block", "convolution_from_a_bank", "weight_norm", "mixer"]


def loss(output: Any, target: Any) -> Tensor:
    """Of every floating-point result, without targets."""
    found = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return torch.stack([(leaf - 0.3).square().flatten(1).sum(1).mean() for leaf in found]).sum()


class Masked(torch.fx.Interpreter):
    """Runs a graph with a factor on the channels of every tap."""

    def __init__(self, module: Any, taps: tuple[Tap, ...], mask: Tensor) -> None:
        super().__init__(module)
        self._taps, self._mask = taps, mask

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        for tap in self._taps:
            if tap.node == n.name:
                shape = [1] * result.dim()
                shape[tap.axis] = -1
                result = result * self._mask[torch.from_numpy(tap.units)].reshape(shape)
        return result


@pytest.mark.parametrize("at", ["consumed", "produced"])
@pytest.mark.parametrize("name", [*ATTENTION, *OTHERS])
def test_saliency_is_the_derivative_of_a_factor(name: str, at: Place) -> None:
    case, found = subject(name)
    program, groups = found.program, found.groups
    filters = find_filters(program, groups)
    batch = Batch(normalise_inputs(case.inputs(3)))
    sums = collect(program, groups, filters, Calibration([batch], loss=loss), [Saliency(at)])[Saliency(at)].sums
    wanted = torch.zeros(2, groups.unit_count, dtype=torch.float64)
    for sample in range(3):
        mask = torch.ones(groups.unit_count, dtype=torch.float64, requires_grad=True)
        one = batch.pick(slice(sample, sample + 1))
        values = [v.clone() if isinstance(v, Tensor) else v for v in placeholder_values(program.module.graph, one.inputs)]
        output = Masked(program.module.eval(), taps_of(filters, at), mask).run(*values)
        (slope,) = torch.autograd.grad(loss(output, None), mask)
        wanted += torch.stack([slope.abs(), slope.square()])
    scale = float(wanted.max())
    assert scale > 0 and float(sums["count"]) == 3
    assert torch.allclose(sums["abs"], wanted[0], rtol=1e-8, atol=1e-10 * scale)
    assert torch.allclose(sums["square"], wanted[1], rtol=1e-8, atol=1e-10 * scale)


# -- tensors that are written after they are made ------------------------------------------------------------------------------


def concatenated(self: Any, x: Tensor) -> Any:
    return self.c(torch.cat([self.a(x), F.relu(self.b(x))], 1)).mean((2, 3))


def written(self: Any, x: Tensor) -> Any:
    out = x.new_zeros(x.shape[0], 10, *x.shape[2:])
    out[:, :6] = self.a(x)
    out[:, 6:] = F.relu(self.b(x))
    return self.c(out).mean((2, 3))


@pytest.mark.parametrize("form", [*FORMS, "rank"])
def test_what_a_layer_reads_is_seen_as_it_reads_it(form: str) -> None:
    """A tensor of zeros that is filled in place is no dead activation."""

    def found(forward: Callable[[Any, Tensor], Any]) -> dict[str, Floats]:
        torch.manual_seed(0)
        model = net(forward, a=conv(3, 6), b=conv(3, 4), c=conv(10, 3))
        return scored(model, images(2), form, labelled())

    wanted, values = found(concatenated), found(written)
    for name in ("a", "b"):
        assert values[name] == pytest.approx(wanted[name], rel=1e-9) and (values[name] > 0).any()
