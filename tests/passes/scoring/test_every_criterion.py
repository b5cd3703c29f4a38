"""What holds of every criterion: what it may depend on, and what it leaves alone."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphprune.calibration import Calibration
from graphprune.criteria import criteria_names, find_criterion
from graphprune.errors import UsageError
from tests.checking import state_hash
from tests.passes.scoring.scored import chain, images, kill, labelled, permuted, scored, split
from tests.zoo.case import conv, net

OWN = [name for name in criteria_names() if find_criterion(name).function.__module__.startswith("graphprune.")]
FIXED = [name for name in OWN if name != "random"]
MEASURED = [name for name in FIXED if find_criterion(name).needs(**find_criterion(name).options)]
GRADIENT = [name for name in MEASURED if any(s.gradients for s in find_criterion(name).needs(**find_criterion(name).options))]
FORMS = [*FIXED, "attention(p=2)", "attention(statistic=sum)", "attention(statistic=max)", "taylor(form=weight)"]
FORMS += ["activation-similarity(kind=cosine)", "activation-similarity(kind=euclidean,neighbours=nearest)", "taylor(at=produced)"]
FORMS += ["sp-lamp(aggregation=members)", "sp-lamp(member_norm=true,bn_fold=true)", "fpgm(scope=group)", "euclidean(bn_fold=true)"]
DATA_FORMS = [form for form in FORMS if form.partition("(")[0] in MEASURED]


@pytest.mark.parametrize("form", FORMS)
def test_scores_follow_their_channels_when_these_are_permuted(form: str) -> None:
    """Values belong to channels, not to places; and the channels differ, so that standing still would be noticed."""
    order = [3, 1, 4, 0, 2]
    before = scored(chain(), images(2), form, labelled())["a"]
    after = scored(permuted(chain(), order), images(2), form, labelled())["a"]
    assert after == pytest.approx(before[order], rel=1e-9)
    assert form == "class-aware" or not np.allclose(after, before, rtol=1e-6)


@pytest.mark.parametrize("form", [form for form in FORMS if not re.match("cosine|euclidean|fpgm|.*nearest", form)])
def test_a_dead_channel_goes_first(form: str) -> None:
    """Zero in every layer, it is the least important of its group (for filters compared with others, see their own tests)."""
    values = scored(kill(chain(), 2), images(2), form, labelled())["a"]
    assert values.argmin() == 2 and values[2] < np.delete(values, 2).min()


@pytest.mark.parametrize("form", DATA_FORMS)
@pytest.mark.parametrize("sizes", [(2, 4), (1,) * 6])
def test_any_split_of_the_data_gives_the_same(form: str, sizes: tuple[int, ...]) -> None:
    whole = scored(chain(), images(2), form, labelled())["a"]
    assert scored(chain(), images(2), form, split(labelled(), sizes))["a"] == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("form", DATA_FORMS)
def test_any_order_of_the_samples_gives_the_same_and_other_samples_do_not(form: str) -> None:
    ((x, y),) = labelled()
    order = [4, 0, 3, 5, 1, 2]
    whole = scored(chain(), images(2), form, [(x, y)])["a"]
    assert scored(chain(), images(2), form, [(x[order], y[order])])["a"] == pytest.approx(whole, rel=1e-9)
    assert scored(chain(), images(2), form, [(x, y), (x, y)])["a"] == pytest.approx(whole, rel=1e-9), "twice is no more"
    other = scored(chain(), images(2), form, [(5 * x.flip(0).roll(1, 1), y)])["a"]
    assert not np.allclose(other, whole, rtol=1e-3, atol=0) or form in ("class-aware", "rank")


@pytest.mark.parametrize("form", FORMS)
def test_the_model_and_the_data_are_left_as_they_were(form: str) -> None:
    """In train mode, with gradients of its own, normalisations that would learn, and an operator that writes into its input."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.norm(self.a(x.mul_(2.0)))
        return self.head(self.b(F.dropout(F.relu(x, inplace=True), 0.5, self.training)).mean((2, 3)))

    model: Any = net(forward, a=conv(3, 4), norm=nn.BatchNorm2d(4), b=conv(4, 4), head=nn.Linear(4, 3)).train()
    model.b.requires_grad_(False)
    model.a.weight.grad = torch.ones_like(model.a.weight)
    data = labelled()
    x = data[0][0]
    before, given = state_hash(model), x.clone()
    scored(model, images(2), form, data)
    assert state_hash(model) == before and model.training and model.norm.training
    assert torch.equal(model.a.weight.grad, torch.ones_like(model.a.weight)) and model.head.weight.grad is None
    assert torch.equal(x, given) and not x.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_models_in_less_precision(form: str, dtype: torch.dtype) -> None:
    """Scores come close to those in float64, also for gradients, which float16 would lose."""
    exact = chain()
    rounded = chain().to(dtype)
    exact.load_state_dict({name: value.double() for name, value in rounded.state_dict().items()})
    ((x, y),) = labelled(12)
    want = scored(exact, images(2), form, [(x, y)])["a"]
    found = scored(rounded, images(2).to(dtype), form, [(x.to(dtype), y)])["a"]
    loose = {torch.float16: 2e-2, torch.bfloat16: 2e-1}[dtype]
    if form in ("class-aware", "apoz", "rank"):  # they count, so that a value that rounds to zero is a step
        loose = max(loose, 0.1)
    assert np.isfinite(found).all() and found == pytest.approx(want, rel=loose, abs=loose * float(np.abs(want).max()))


@pytest.mark.parametrize("form", FORMS)
def test_integer_inputs(form: str) -> None:
    """Token numbers go in, and there is no gradient with respect to them."""

    def forward(self: Any, ids: Tensor) -> Any:
        return self.head(F.relu(self.norm(self.up(self.embed(ids)))).mean(1))

    parts = {"embed": nn.Embedding(7, 4), "up": nn.Linear(4, 6), "norm": nn.LayerNorm(6), "head": nn.Linear(6, 3)}
    model: Any = net(forward, **parts)
    ids = torch.randint(0, 7, (6, 5))
    if form in ("rank", "bn-taylor"):
        with pytest.raises(UsageError, match="has nothing to say about any channel"):
            scored(model, ids[:2], form, [(ids, torch.arange(6) % 3)])
        return
    values = scored(model, ids[:2], form, [(ids, torch.arange(6) % 3)])
    assert np.isfinite(values["up"]).all() and len(values["up"]) == 6
    assert np.isnan(values["embed"]).all() == (form == "bn-scale")


@pytest.mark.parametrize("form", DATA_FORMS)
def test_without_data_is_an_error(form: str) -> None:
    with pytest.raises(UsageError, match="needs calibration data"):
        scored(chain(), images(2), form)


@pytest.mark.parametrize("name", GRADIENT)
def test_without_targets_is_an_error(name: str) -> None:
    with pytest.raises(UsageError, match=r"have no targets|integer targets"):
        scored(chain(), images(2), name, [images()])


@pytest.mark.parametrize("name", MEASURED)
def test_data_that_do_not_fit_are_errors(name: str) -> None:
    ((x, y),) = labelled()
    for data, text in (
        ([], "There are no samples"),
        ([(x[:, :2], y)], "The model does not run on the calibration data"),
        ([(x * torch.nan, y)], "is nan|is NaN"),
        (["x"], "A calibration batch is str"),
    ):
        with pytest.raises(UsageError, match=text) as raised:
            scored(chain(), images(2), name, Calibration(data))
        assert str(raised.value).count("\n") == 0


@pytest.mark.parametrize("name", GRADIENT)
def test_an_infinite_loss_is_an_error(name: str) -> None:
    with pytest.raises(UsageError, match="The loss on the digits is inf"):
        data = Calibration(labelled(), loss=lambda output, target: output.sum() * torch.inf, name="the digits")
        scored(chain(), images(2), name, data)
