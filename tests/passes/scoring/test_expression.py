"""Criteria as text: names, options of their types, weighted sums; and what is refused, in one clear sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphprune.errors import UsageError
from graphprune.passes.scoring.expression import parse_criterion
from graphprune.passes.scoring.score import ScorePass
from graphprune.pipeline.pass_base import Pass
from graphprune.pipeline.text import format_pipeline, parse_pipeline
from tests.passes.scoring.scored import chain, images, labelled, scored


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("l2", [("l2", 1.0)]),
        ("  sp-lamp ", [("sp-lamp", 1.0)]),
        ("l2()", [("l2", 1.0)]),
        ("0.5*l2+0.5*taylor", [("l2", 0.5), ("taylor", 0.5)]),
        (" .25 * l1 + 2e-1*l2 + random", [("l1", 0.25), ("l2", 0.2), ("random", 1.0)]),
        ("3.*attention(p=2)+1E2*apoz", [("attention", 3.0), ("apoz", 100.0)]),
    ],
)
def test_terms_and_weights(text: str, terms: list[tuple[str, float]]) -> None:
    assert [(term.criterion.name, term.weight) for term in parse_criterion(text)] == terms


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("attention", {"p": 1, "statistic": "mean", "at": "consumed"}),
        ("attention( p = 4 , statistic = max )", {"p": 4, "statistic": "max", "at": "consumed"}),
        ("rank(samples=20,tolerance=1e-3)", {"samples": 20, "tolerance": 1e-3, "at": "consumed"}),
        ("class-aware(relative=true,tau=.5)", {"samples": 10, "tau": 0.5, "relative": True, "at": "produced"}),
    ],
)
def test_options_have_their_types(text: str, options: dict[str, Any]) -> None:
    (term,) = parse_criterion(text)
    assert term.options == options and [type(v) for v in term.options.values()] == [type(v) for v in options.values()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read at 'its end'"),
        ("l2+", "cannot be read at 'its end'"),
        ("l2-l1", r"no criterion 'l2-l1'|'l2-l1'"),
        ("l2 l1", "cannot be read at 'l1'"),
        ("-1*l2", "cannot be read at '-1"),
        ("l2*0.5", r"cannot be read at '\*0.5'"),
        ("attention(p=2", r"cannot be read at '\(p=2'"),
        ("attention(p=(2))", r"cannot be read at '\(p="),
        ("0*l2+l1", "has the weight 0"),
        ("l3", "l2"),
        ("attention(q=2)", "'q'.*p"),
        ("attention(p=3)", r"attention\(p=3\) does not fit: Input should be 1, 2 or 4"),
        ("attention(p=two)", r"attention\(p=two\) does not fit"),
        ("rank(samples=many)", r"rank\(samples=many\) does not fit: Input should be a valid integer"),
        ("attention(p)", r"'p' in 'attention\(p\)' has no '='"),
        ("attention(p=1,p=2)", "gives p twice"),
    ],
)
def test_what_cannot_be_read_is_an_error(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        parse_criterion(text)
    assert "\n" not in str(raised.value)


def test_a_sum_adds_normalised_terms() -> None:
    model, data = chain(), labelled()
    one, two = (scored(model, images(2), name, data, normalise="max")["a"] for name in ("l2", "attention(p=2)"))
    found = scored(model, images(2), "0.25*l2+3*attention(p=2)", data, normalise="max")["a"]
    assert found == pytest.approx(0.25 * one + 3 * two, rel=1e-12)
    assert not np.allclose(found, scored(model, images(2), "0.25*l2+3*attention", data, normalise="max")["a"])


def test_each_term_has_its_own_reduction_unless_one_is_asked_for() -> None:
    """``l2`` combines the members of a unit by its square root of squares, ``bn-scale`` by their mean."""
    model = chain()
    parts = {how: [scored(model, images(2), name, reduction=how)["a"] for name in ("l2", "bn-scale")] for how in ("default", "max")}
    for how, (one, two) in parts.items():
        assert scored(model, images(2), "l2+bn-scale", reduction=how)["a"] == pytest.approx(one + two, rel=1e-12)
    assert not np.allclose(parts["default"][0], parts["max"][0])


def test_one_measurement_serves_all_terms_that_need_it() -> None:
    """Each statistic once, whatever the number of terms: the data are read once."""
    reads = []

    class Counted(list):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            reads.append(1)
            return super().__iter__()

    scored(chain(), images(2), "attention+apoz+variance+rank+taylor+fisher", Counted(labelled()))
    assert len(reads) == 1


@pytest.mark.parametrize("text", ["attention(p=2,statistic=max)", "0.5*l2+0.5*taylor", "l2"])
def test_pipelines_carry_criteria_as_text(text: str) -> None:
    passes: list[Pass] = [ScorePass(criterion=text)]
    assert parse_pipeline(format_pipeline(passes)) == passes
