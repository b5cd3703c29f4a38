"""The mutants are what they say: one change each, in every kind, that compiles."""

from __future__ import annotations

import ast

import pytest

from tests.mutants.mutate import KINDS, ROOT, TARGETS, Mutation, mutated, mutations, sample
from tests.mutants.run import module_name, own_tests

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
    chosen = sample(40, 0)
    assert chosen == sample(40, 0) and chosen[:20] == sample(20, 0) and chosen != sample(40, 1)
    assert {mutation.kind for mutation in chosen} == set(KINDS) and len({mutation.file for mutation in chosen}) > 5


def test_rules_are_loaded_by_their_name_in_the_package() -> None:
    assert module_name("passes/analysis/rules/views.py") == "graphprune.passes.analysis.rules.views"
    assert module_name("graphprune/channels/labels.py") == "graphprune.channels.labels"
    assert own_tests("graphprune/channels/labels.py") == [("its own tests", ["tests/graphprune/channels/test_labels.py"])]
    assert own_tests("passes/analysis/rules/wide.py") == []
    assert str(Mutation("f.py", 0, "k", 3, "x")) == "f.py:3: k: x"
