"""The mutants are what they say: one change each, in every kind, that compiles."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from graphprune.channels import labels
from graphprune.channels.propagate import propagate
from graphprune.tracing import capture
from tests.mutants.mutate import KINDS, ROOT, TARGETS, Mutation, mutated, mutations, sample
from tests.mutants.run import STAGES, Fork, Verdict, limited
from tests.mutants.watch import Analysis, Lines, facts, lines_run

CASES = {
    "a note dropped": ("call.space.tie(field, first)", "pass"),
    "labels forgotten": ("call.set(fields)", "call.set(())"),
    "not restricted": ("call.space.restrict(f, axes, why)", "f"),
    "condition negated": ("a if x else b", "a if not x else b"),
    "number shifted": ("2", "1"),
    "arithmetic changed": ("rank - 1", "rank + 1"),
    "repeats exchanged": ("np.repeat(v, 2)", "np.tile(v, 2)"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_makes_its_change(kind: str) -> None:
    before, after = CASES[kind]
    statement = ast.parse(before).body[0]
    node = statement if kind == "a note dropped" else getattr(statement, "value")  # noqa: B009
    changed = KINDS[kind](node)
    assert changed is not None and ast.unparse(changed) == after


def test_every_mutant_differs_from_its_file_and_compiles() -> None:
    for file in TARGETS:
        source = ast.unparse(ast.parse((ROOT / file).read_text()))
        for mutation in list(mutations(file))[::9]:
            tree = mutated(mutation)
            assert ast.unparse(tree) != source, str(mutation)
            compile(tree, file, "exec")


def test_a_sample_is_fixed_by_its_seed_and_spread_over_kinds_and_files() -> None:
    chosen = sample(80, 0)
    assert chosen == sample(80, 0) and chosen[:20] == sample(20, 0) and chosen != sample(80, 1)
    assert {mutation.kind for mutation in chosen} == set(KINDS) and len({mutation.file for mutation in chosen}) > 5


def test_names_tell_all_mutants_apart_and_no_line_is_in_them() -> None:
    names = [str(mutation) for file in TARGETS for mutation in mutations(file)]
    assert len(set(names)) == len(names) > 700
    assert str(Mutation("f.py", "g", 0, "k", (3, 4), "x", 2)) == "f.py: g: k: x (2)"


def test_each_stage_finds_tests_and_each_target_a_file() -> None:
    """A stage without tests would catch everything: pytest calls an empty run a failure."""
    assert len(TARGETS) > 10
    for stage in STAGES:
        assert (ROOT / stage.path).exists(), stage.name
    plans = next(stage for stage in STAGES if stage.name == "zoo: plans")
    name = "test_random_plans_are_exact"
    assert re.search(plans.part, f"{name}[fused_qkv-0]") and not re.search(plans.part, f"{name}[fused_qkv-1]")


CHANGED = """
from graphprune.channels.labels import LabelSpace, Value, _long_axes
from graphprune.passes.analysis.rules import wide
from tests.mutants.mutate import install, mutations

def choose(file, function, kind, text):
    install(next(m for m in mutations(file) if (m.function, m.kind, m.text) == (function, kind, text)))

held = LabelSpace.fresh
assert list(held(LabelSpace(), 2)) == [0, 1] and Value((2,)).labelled == frozenset()
choose("graphprune/channels/labels.py", "LabelSpace.fresh", "arithmetic changed", "self.size + count")
assert list(held(LabelSpace(), 2)) == []
assert _long_axes((1, 2)) == (1,)
choose("graphprune/channels/labels.py", "_long_axes", "number shifted", "1")
assert _long_axes((1, 2)) == (0, 1), "a function that remembers its results"
choose("passes/analysis/rules/wide.py", "_first_overlap", "number shifted", "1")
"""


def test_a_change_reaches_those_who_hold_the_function() -> None:
    subprocess.run([sys.executable, "-c", CHANGED], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)


def test_a_fork_that_dies_or_loops_is_told_from_one_that_answers() -> None:
    first, second = Fork(lambda: Verdict("a stage", 2, ("x",))), Fork(lambda: os._exit(1))
    assert first.verdict() == Verdict("a stage", 2, ("x",)) and second.verdict() == Verdict("crash")
    with pytest.raises(TimeoutError), limited(0.0, least=0.01):
        while True:
            pass


def test_lines_that_run_are_those_of_the_targets_only() -> None:
    found: Lines = set()
    with lines_run(found):
        labels.axes_of(np.zeros((1, 2), dtype=np.int64))
        ast.parse("1")
    assert {file for file, _ in found} == {"graphprune/channels/labels.py"}


def test_an_analysis_is_another_where_a_rule_says_another_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    program = capture(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(2, 3))
    seen = Analysis(program, None, set(), facts(propagate(program)), 0.0)
    assert not seen.changed()
    monkeypatch.setattr(labels.LabelSpace, "match", lambda *_: None)
    assert seen.changed()


def test_those_that_make_no_difference_are_mutants_that_nothing_caught() -> None:
    folder = ROOT / "docs/benchmarks/trust"
    record, equal = (json.loads((folder / name).read_text()) for name in ("mutants.json", "equivalent.json"))
    names = {str(mutation) for file in TARGETS for mutation in mutations(file)}
    assert set(equal) <= names and all(equal.values())
    assert not [name for name in equal if record.get(name)]
