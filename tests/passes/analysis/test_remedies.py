"""Remedies: every reason to freeze channels that a rule gives comes with what would free them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import graphprune.passes.analysis.rules as rules
from graphprune.channels.labels import Reason
from graphprune.passes.analysis.remedies import REMEDIES, remedy


def reasons_in_sources() -> Iterator[str]:
    """The text of every ``call.reason(...)`` in the rules; what is filled in is an X."""
    for path in sorted(Path(rules.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "reason":
                yield from texts(node.args[0])


def texts(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant):
        yield str(node.value)
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)


@pytest.mark.parametrize(
    "text",
    sorted(
        {
            *reasons_in_sources(),
            "the extent of a convolution kernel",
            "it reaches the model's output",
            "operator mylib::op has no rule",
            "no rule resizes modules of class Odd",
            "module odd does not trace: a branch",
            "excluded by 'layer1.*'",
            "the only index left of an axis",
        }
    ),
)
def test_every_reason_has_a_remedy(text: str) -> None:
    assert remedy(Reason(text)).endswith((".", ")."))


def test_the_rules_give_reasons_at_all() -> None:
    assert len(set(reasons_in_sources())) > 15


def test_a_softmax_has_a_policy_and_a_cumulative_sum_has_none() -> None:
    text = "normalised or accumulated along its axis"
    assert "softmax=allow" in remedy(Reason(text, "aten::_softmax")) and "policy" not in remedy(Reason(text, "aten::cumsum"))


def test_an_unknown_reason_promises_nothing() -> None:
    assert remedy(Reason("of its own")) == ""
    assert all(REMEDIES.values())
