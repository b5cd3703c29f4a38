"""Widths before and after, layer by layer."""

from __future__ import annotations

import re
from typing import Final

from graphprune.cli.tables import share
from graphprune.plans.plan import Plan
from graphprune.reporting.facts import Chart, Missing, Section, Table
from graphprune.reporting.material import Material

_SHAPE: Final = re.compile(r"\[(\d{1,18}(?:, \d{1,18})*)\]$", re.ASCII)
_NUMBER: Final = re.compile(r"(\d{1,18})")


def widths(material: Material) -> Section | None:
    """Output widths of every layer from the plan, or else the widths of the groups that a run knows of."""
    if len(material.runs) > 1:
        return None
    if material.plan is not None:
        rows = layer_widths(material.plan, _order(material))
        what, of = "layer", "Outputs of every layer with a matrix or a kernel."
    else:
        rows = {name: (pair, (0, 0)) for name, pair in material.widths.items()}
        what, of = "group", "Units of every prunable group: channels, heads or whatever is removed as one."
    if not rows:
        lack = Missing("Widths are not known.", "Report on a plan, an artifact with its plan, or a run with a finished round.")
        return Section("widths", "Widths", missing=[lack])
    data = [{"name": name, "before": before, "after": after} for name, ((before, after), _) in rows.items()]
    changed = sum(after < before for (before, after), _ in rows.values())
    chart = Chart("widths", f"Width of each {what} before and after.", data, 60 + 18 * len(data))
    inputs = [] if what == "group" else ["#inputs", "#kept"]
    table = Table(
        f"Widths by {what}",
        [what, "#outputs" if inputs else "#units", "#kept", "#remains", *inputs],
        [
            [name, str(before), str(after), share(after, before), *(map(str, into) if inputs else ())]
            for name, ((before, after), into) in rows.items()
        ],
    )
    return Section("widths", "Widths", f"{of} {changed} of {len(rows)} are narrower.", charts=[chart], tables=[table])


def layer_widths(plan: Plan, order: dict[str, int] | None = None) -> dict[str, tuple[tuple[int, int], tuple[int, int]]]:
    """For every layer of a plan's model with a weight of two or more axes: lengths of its first axis and of its second one, before
    and after. Of transposed convolutions the first one is the inputs. order: places of the names; natural order by default."""
    found = {}
    for name in sorted(plan.model, key=_natural if order is None else lambda name: order.get(name, len(order))):
        match = _SHAPE.search(plan.model[name])
        shape = [int(size) for size in match[1].split(",")] if match else []
        if len(shape) >= 2 and name.endswith("weight"):
            kept = plan.kept.get(name, {})
            pairs = [(shape[axis], len(kept[axis]) if axis in kept else shape[axis]) for axis in (0, 1)]
            found[name.removesuffix("weight").rstrip("._") or name] = (pairs[0], pairs[1])
    return found


def _order(material: Material) -> dict[str, int] | None:
    """Places of tensor names in the model, where it is at hand."""
    if material.original is None:
        return None
    return {name: place for place, name in enumerate(material.original.program.tensors)}


def _natural(name: str) -> list[str | int]:
    """``layer10`` comes after ``layer9``."""
    return [int(part) if part.isdecimal() else part for part in _NUMBER.split(name)]
