"""``graphprune passes``: what a pipeline can be made of."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Any

from graphprune.cli import options
from graphprune.cli.output import Output

if TYPE_CHECKING:
    from graphprune.criteria import Criterion


def command(screen: options.Screen) -> None:
    """List passes with their options, criteria, and policies with their choices."""
    from graphprune.criteria import criteria_names, find_criterion
    from graphprune.pipeline.policy import CHOICES, Policy
    from graphprune.pipeline.registry import pass_class, pass_names

    with screen.output() as output:
        passes = {name: _about_pass(pass_class(name), screen.verbose) for name in pass_names()}
        criteria = {name: _about_criterion(find_criterion(name)) for name in criteria_names()}
        policies = {name: {"choices": list(choices), "default": getattr(Policy(), name)} for name, choices in CHOICES.items()}
        output.data({"passes": passes, "criteria": criteria, "policies": policies})
        _print(output, passes, criteria, policies)


def _about_pass(cls: type[Any], verbose: bool) -> dict[str, Any]:
    about = {field.name: {"type": str(field.type), "default": _default(field)} for field in fields(cls) if field.init}
    return {"doc": inspect.getdoc(cls) if verbose else _summary(cls), "options": about}


def _about_criterion(criterion: Criterion) -> dict[str, Any]:
    options = {name: str(default) for name, default in criterion.options.items()}
    return {"doc": _summary(criterion.function), "options": options}


def _default(field: Field[Any]) -> str:
    if field.default is not MISSING:
        return str(field.default)
    return "required" if field.default_factory is MISSING else str(field.default_factory())


def _summary(documented: Any) -> str:
    """The first paragraph of a class's own docstring, or of that of the module that a function is alone in, as one line."""
    subject = inspect.getmodule(documented) if inspect.isfunction(documented) else documented
    return " ".join((inspect.getdoc(subject) or "").partition("\n\n")[0].split())


def _print(output: Output, passes: dict[str, Any], criteria: dict[str, dict[str, Any]], policies: dict[str, Any]) -> None:
    from graphprune.cli import tables

    output.show(tables.notes_table("Passes", {name: about["doc"] for name, about in passes.items()}, "pass", "what it does"))
    options_table = tables.plain_table(
        "pass", "option", "type", "default", title="Options, as in --pipeline 'score{criterion=l1},select{macs=50%},rewrite,verify'"
    )
    for name, about in passes.items():
        for index, (option, facts) in enumerate(about["options"].items()):
            options_table.add_row("" if index else name, option, facts["type"], facts["default"])
    criteria_table = tables.plain_table(
        "criterion", "options", "what it measures", title="Criteria, as in --criterion 'attention(p=2)' or '0.5*l2+0.5*taylor'"
    )
    for name, about in criteria.items():
        chosen = ", ".join(f"{option}={default}" for option, default in about["options"].items())
        criteria_table.add_row(name, chosen, about["doc"])
    output.show(options_table, criteria_table)
    policy_table = tables.plain_table("policy", "choices", "default", title="Policies, as in --policy heads=head_dim")
    for name, facts in policies.items():
        policy_table.add_row(name, ", ".join(facts["choices"]), facts["default"])
    output.show(policy_table)
