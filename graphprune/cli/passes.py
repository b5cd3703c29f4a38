"""``graphprune passes``: what a pipeline can be made of."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, Field, fields
from typing import Any

from graphprune.cli import options
from graphprune.cli.output import Output
from graphprune.errors import GraphpruneError


def command(
    as_json: options.Json = False, quiet: options.Quiet = False, verbose: options.Verbose = False, debug: options.Debug = False
) -> None:
    """List passes with their options, criteria, and policies with their choices."""
    from graphprune.cli import tables
    from graphprune.criteria import criteria_names, find_criterion
    from graphprune.policy import CHOICES, Policy
    from graphprune.registry import pass_names

    with Output(as_json, quiet, verbose) as output:
        passes = {name: _describe(name) for name in pass_names()}
        criteria = {name: _first_line(find_criterion(name)) for name in _all_criteria(criteria_names)}
        policies = {name: {"choices": list(choices), "default": getattr(Policy(), name)} for name, choices in CHOICES.items()}
        output.data({"passes": passes, "criteria": criteria, "policies": policies})
        table = tables.plain_table("pass", "option", "type", "default", title="Passes, as in --pipeline 'score{criterion=l1},...'")
        for name, facts in passes.items():
            table.add_row(name, tables.spanning(facts["doc"]), "", "", style="bold")
            for option, about in facts["options"].items():
                table.add_row("", option, about["type"], about["default"])
        output.show(table, tables.notes_table("Criteria, as in --criterion l1", criteria, "criterion", "what it measures"))
        policy_table = tables.plain_table("policy", "choices", "default", title="Policies, as in --policy heads=head_dim")
        for name, about in policies.items():
            policy_table.add_row(name, ", ".join(about["choices"]), about["default"])
        output.show(policy_table)
