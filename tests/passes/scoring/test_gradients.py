"""Criteria of gradients, against automatic differentiation of an explicit mask, one sample at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphprune.calibration import Calibration
from graphprune.errors import UsageError
from tests.passes.scoring.scored import Floats, Labelled, chain, images, kill, labelled, residual, scored
from tests.zoo.case import conv, net


def masked_chain(model: Any, x: Tensor, mask: Tensor, at: str) -> Tensor:
    """A chain with a factor on every channel of group ``a``."""
    y = model.a(x) * mask if at == "produced" else model.a(x)
    y = F.relu(model.norm(y))
    y = y * mask if at == "consumed" else y
    out: Tensor = model.head(F.relu(model.last(model.b(y))).mean((2, 3)))
    return out


def masked_residual(model: Any, x: Tensor, mask: Tensor, at: str) -> Tensor:
    """The same for a stream that two layers make, and two layers read."""
    made, read = (mask, torch.ones_like(mask)) if at == "produced" else (torch.ones_like(mask), mask)
    y = F.relu(model.a(x) * made) * read
    out: Tensor = model.head((F.relu(y + model.b(y) * made).mean((2, 3), keepdim=True) * read).flatten(1))
    return out


def derivatives(model: Any, masked: Any, data: Labelled, at: str, channels: int = 5) -> Floats:
    """The derivative of every sample's loss with respect to every channel's factor."""
    found = []
    for x, y in data:
        for sample in range(len(x)):
            mask = torch.ones(1, channels, 1, 1, dtype=torch.float64, requires_grad=True)
            loss = F.cross_entropy(masked(model, x[sample : sample + 1], mask, at), y[sample : sample + 1])
            found.append(torch.autograd.grad(loss, mask)[0].flatten().numpy())
    return np.array(found)


def fourier() -> nn.Module:
    """A layer in the space of frequencies, whose weights are complex numbers."""

    def forward(self: Any, x: Tensor, mask: Any = 1.0) -> Any:
        spectrum = torch.einsum("bixy,io->boxy", torch.fft.rfft2(self.a(x) * mask), self.mix)
        return self.head(F.relu(torch.fft.irfft2(spectrum, s=x.shape[2:])).mean((2, 3)))

    return net(forward, a=conv(3, 5), mix=nn.Parameter(torch.randn(5, 4, dtype=torch.complex128)), head=nn.Linear(4, 3))


def masked_fourier(model: Any, x: Tensor, mask: Tensor, at: str) -> Tensor:
    """The same factor on what is made and on what is read: all between is linear."""
    out: Tensor = model(x, mask)
    return out


@pytest.mark.parametrize("at", ["consumed", "produced"])
@pytest.mark.parametrize(("build", "masked"), [(chain, masked_chain), (residual, masked_residual), (fourier, masked_fourier)])
def test_taylor_and_fisher_by_hand(build: Any, masked: Any, at: str) -> None:
    model, data = build(), labelled()
    slopes = derivatives(model, masked, data, at)
    assert scored(model, images(2), f"taylor(at={at})", data)["a"] == pytest.approx(np.abs(slopes).mean(0), rel=1e-9)
    assert scored(model, images(2), f"fisher(at={at})", data)["a"] == pytest.approx(0.5 * (slopes**2).mean(0), rel=1e-9)


def test_taylor_is_the_slope_of_the_loss() -> None:
    """Finite differences: a channel made smaller by a little changes the loss by as much, times its score."""
    model, (x, y) = chain(), labelled()[0]
    step = 1e-5
    for sample in range(2):
        one = [(x[sample : sample + 1], y[sample : sample + 1])]
        found = scored(model, images(2), "taylor", one)["a"]
        for channel in range(5):
            mask = torch.ones(1, 5, 1, 1, dtype=torch.float64)
            losses = []
            for sign in (-1, 1):
                mask[0, channel] = 1 + sign * step
                losses.append(float(F.cross_entropy(masked_chain(model, one[0][0], mask, "consumed"), one[0][1]).detach()))
            assert found[channel] == pytest.approx(abs(losses[1] - losses[0]) / (2 * step), rel=1e-4, abs=1e-9)


def test_taylor_of_weights_by_hand() -> None:
    model, data = chain(), labelled()
    ((x, y),) = data
    parts = {"a.weight": 0, "a.bias": 0, "norm.weight": 0, "norm.bias": 0, "b.weight": 1}
    tensors = dict(model.named_parameters())
    gradients = torch.autograd.grad(F.cross_entropy(model(x), y), [tensors[name] for name in parts])
    changes = []
    for (name, axis), gradient in zip(parts.items(), gradients, strict=True):
        product = (tensors[name] * gradient).detach()
        changes.append([float(product.select(axis, channel).sum()) for channel in range(5)])
    wanted = (np.array(changes) ** 2).sum(0) ** 0.5
    assert scored(model, images(2), "taylor(form=weight)", data)["a"] == pytest.approx(wanted, rel=1e-9)


def test_bn_taylor_by_hand() -> None:
    model, data = chain(), labelled()
    ((x, y),) = data
    scale, shift = torch.autograd.grad(F.cross_entropy(model(x), y), [model.norm.weight, model.norm.bias])
    wanted = (model.norm.weight * scale + model.norm.bias * shift).detach().abs().numpy()
    assert scored(model, images(2), "bn-taylor", data)["a"] == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("form", ["taylor", "fisher", "taylor(form=weight)", "bn-taylor"])
def test_scores_have_the_units_of_the_loss(form: str) -> None:
    """Twice the loss is twice the score, four times for fisher; and rescaling between two layers, which keeps the function,
    changes nothing."""
    model, data = chain(), labelled()
    before = scored(model, images(2), form, data)["a"]
    double = Calibration(data, loss=lambda output, target: 2 * F.cross_entropy(output, target))
    assert scored(model, images(2), form, double)["a"] == pytest.approx((4 if form == "fisher" else 2) * before, rel=1e-9)
    with torch.no_grad():
        model.norm.weight *= 3.0
        model.norm.bias *= 3.0
        model.b.weight /= 3.0
    assert scored(model, images(2), form, data)["a"] == pytest.approx(before, rel=1e-9)
    with torch.no_grad():
        model.b.weight *= 2.0
    assert not np.allclose(scored(model, images(2), form, data)["a"], before, rtol=1e-3)


def in_place() -> Any:
    """The residual model with operators that write into their inputs."""

    def forward(self: Any, x: Tensor) -> Any:
        x = F.relu(self.a(x), inplace=True)
        y = self.b(x)
        y += x
        return self.head(y.relu_().mean((2, 3)))

    model: Any = residual()
    return net(forward, a=model.a, b=model.b, head=model.head)


@pytest.mark.parametrize("at", ["consumed", "produced"])
@pytest.mark.parametrize("name", ["taylor", "fisher", "class-aware"])
def test_operators_that_write_into_their_inputs_change_nothing(name: str, at: str) -> None:
    data = labelled()
    wanted = scored(residual(), images(2), f"{name}(at={at})", data)["a"]
    assert scored(in_place(), images(2), f"{name}(at={at})", data)["a"] == pytest.approx(wanted, rel=1e-12)


def test_a_model_that_gradients_do_not_pass_is_an_error() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        x = self.a(x)
        y = x.exp()
        y.mul_(2.0)
        return self.b(y).mean((2, 3))

    model: Any = net(forward, a=conv(3, 4), b=conv(4, 3))
    with pytest.raises(UsageError, match="The loss does not go back through the model") as raised:
        scored(model, images(2), "taylor(form=weight)", labelled())
    assert "\n" not in str(raised.value)
    assert scored(model, images(2), "attention", labelled())["a"].shape == (4,)


# -- class-aware -----------------------------------------------------------------------------------------------------------


def by_class(model: Any, data: Labelled, per_class: int = 10, tau: float = 0.0, relative: bool = False) -> Floats:
    """``max_yx sum_c mean_n [|a dL/da| > tau]`` at the output of layer a, class by class, position by position."""
    x, y = (torch.cat([batch[part] for batch in data]) for part in (0, 1))
    total = torch.zeros(5, 4, 4)
    for label in y.unique():
        chosen = (y == label).nonzero().flatten()[:per_class]
        changes = []
        for sample in chosen.tolist():
            a = model.a(x[sample : sample + 1]).detach().requires_grad_()
            out = model.head(F.relu(model.last(model.b(F.relu(model.norm(a))))).mean((2, 3)))
            (gradient,) = torch.autograd.grad(F.cross_entropy(out, y[sample : sample + 1]), a)
            changes.append((a * gradient)[0].abs().detach())
        limit = tau * float(torch.stack(changes).median()) if relative else tau
        for change in changes:
            total += (change > limit).float() / len(changes)
    found: Floats = total.flatten(1).amax(1).numpy().astype(np.float64)
    return found


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ("", {}),
        ("(samples=2)", {"per_class": 2}),
        ("(tau=0.001)", {"tau": 0.001}),
        ("(tau=1,relative=true)", {"tau": 1.0, "relative": True}),
    ],
)
def test_class_aware_by_hand(options: str, given: dict[str, Any]) -> None:
    """Up to what tells equal counts apart."""
    model, data = chain(), labelled(12)
    found = scored(model, images(2), f"class-aware{options}", data)["a"]
    assert found == pytest.approx(by_class(model, data, **given), abs=2e-6)


def one_class_channel() -> tuple[Any, Labelled]:
    """Images of class k have the value k - 1. Channels 0 and 2 are alive for one class each, 1 and 3 for all, and 4 for none."""
    model: Any = net(lambda self, x: self.head(F.relu(self.a(x)).mean((2, 3))), a=nn.Conv2d(1, 5, 1), head=nn.Linear(5, 3))
    with torch.no_grad():
        model.a.weight.copy_(torch.tensor([-1.0, 0.0, 1.0, 0.0, 0.0]).view(5, 1, 1, 1))
        model.a.bias.copy_(torch.tensor([-0.5, 1.0, -0.5, 1.0, -1.0]))
    labels = torch.arange(9) % 3
    return model, [((labels - 1.0).double().view(9, 1, 1, 1).expand(9, 1, 2, 2).contiguous(), labels)]


def test_channels_of_one_class_go_before_channels_of_all() -> None:
    model, data = one_class_channel()
    found = scored(model, data[0][0][:2], "class-aware", data)["a"]
    assert found == pytest.approx([1, 3, 1, 3, 0], abs=2e-6)


def test_numbers_of_classes_and_of_samples_do_not_matter() -> None:
    model, data = chain(), labelled(12)
    ((x, y),) = data
    before = scored(model, images(2), "class-aware(tau=0.001)", data)["a"]
    order = torch.tensor([7, 2, 11, 0, 4, 9, 1, 3, 10, 5, 8, 6])
    assert scored(model, images(2), "class-aware(tau=0.001)", [(x[order], y[order])])["a"] == pytest.approx(before, rel=1e-9)
    renamed = torch.tensor([2, 0, 1])
    with torch.no_grad():
        swapped = chain()
        swapped.head.weight[renamed], swapped.head.bias[renamed] = model.head.weight.clone(), model.head.bias.clone()
    assert scored(swapped, images(2), "class-aware(tau=0.001)", [(x, renamed[y])])["a"] == pytest.approx(before, rel=1e-9)
    assert not np.allclose(scored(model, images(2), "class-aware(tau=0.001)", [(x, y.roll(1))])["a"], before)


def test_a_dead_channel_is_of_no_class() -> None:
    assert scored(kill(chain(), 1), images(2), "class-aware", labelled())["a"][1] == 0.0


def test_targets_that_are_no_classes_are_an_error() -> None:
    ((x, y),) = labelled()
    for target in (y.double(), y[:, None].expand(6, 2)):
        with pytest.raises(UsageError, match="Classes need integer targets, one for each sample"):
            scored(chain(), images(2), "class-aware", [(x, target)])
