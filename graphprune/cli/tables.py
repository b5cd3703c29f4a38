"""What commands print, as rich tables and lines. Data comes in; nothing is computed here but shares."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from graphprune.text import cost_rows as cost_rows
from graphprune.text import count as count
from graphprune.text import listed as listed
from graphprune.text import several as several
from graphprune.text import share as share
from graphprune.text import size as size
from graphprune.text import verification_line as verification_line

if TYPE_CHECKING:
    from graphprune.compensation import Compensated
    from graphprune.costs.cost import Costs
    from graphprune.verification import Verification


def plain_table(*headings: str, title: str | None = None) -> Table:
    """A table without vertical rules; text folds, so that nothing is cut off."""
    table = Table(
        box=box.SIMPLE_HEAD, title=title and f"\n{title}", title_justify="left", title_style="bold", pad_edge=False, show_edge=False
    )
    table.min_width = min(len(title or ""), 72)  # or the title folds at the width of a narrow table
    for heading in headings:
        number = heading.startswith("#")
        table.add_column(heading.removeprefix("#"), justify="right" if number else "left", no_wrap=number, overflow="fold")
    return table


def before_after(before: Costs, after: Costs, disk: tuple[int, int] | None, inputs: str, what: str = "Cost") -> Table:
    """Costs of the original and the slim model, with the share that remains. disk: bytes of the two files."""
    table = plain_table("", "#original", "#slim", "#remains", title=f"{what} at input {inputs}")
    rows = cost_rows(before, after)
    if disk is not None:
        rows.insert(-1, ("size on disk", size(disk[0]), size(disk[1]), share(disk[1], disk[0])))
    for row in rows:
        table.add_row(*row)
    return table


def cost_data(costs: Costs) -> dict[str, int]:
    """Costs as plain data."""
    return {
        "parameters": costs.parameters,
        "macs": costs.macs,
        "flops": costs.flops,
        "weight_bytes": costs.weight_bytes,
        "activation_bytes": costs.activation_bytes,
    }


def compensation_line(compensation: Sequence[Compensated]) -> str:
    """What a compensation did, in one line, as the mean error of the layers whose error was measured."""
    done = [one for one in compensation if not one.note and not one.after >= one.before]  # folded constants have no errors
    left = [one for one in compensation if one.note]
    text = f"Compensated {several(len(done), 'layer')}"
    measured = [(one.before, one.after) for one in done if one.before > one.after]
    if measured:
        before, after = (sum(errors) / len(measured) for errors in zip(*measured, strict=True))
        text += f": the relative error of their outputs on the calibration data fell from {before:.2f} to {after:.2f} on average"
    if left:
        text += f" ({len(left)} left as they are: {listed(f'{one.node}, {one.note}' for one in left)})"
    return f"{text}."


def accuracy_line(accuracy: Mapping[str, Any]) -> str:
    """Top-1 accuracy before and after; without a full stop."""
    images, before, after = (accuracy[key] for key in ("images", "before", "after"))
    return f"Top-1 accuracy on {images:,} images: {before:.2%} before, {after:.2%} after"


def verification_data(verification: Verification | None) -> dict[str, Any] | None:
    """The proof as plain data."""
    if verification is None:
        return None
    return {
        "passed": verification.passed,
        "error": verification.error,
        "tolerance": verification.tolerance,
        "compared": verification.compared,
        "randomised": verification.randomised,
        "failure": verification.failure,
    }


def keep_line(keep: Mapping[str, float | str]) -> str:
    """What was to stay of some layers."""
    return f"Kept as asked: {', '.join(f'{pattern}={amount}' for pattern, amount in keep.items())}."


def widths_table(widths: Mapping[str, tuple[int, int]]) -> Table:
    """Units of every prunable group, before and after."""
    table = plain_table("group", "#units", "#kept", "#remains", title="Groups")
    for name, (old, new) in widths.items():
        table.add_row(folded(name), str(old), str(new), share(new, old))
    return table


def notes_table(title: str, notes: Mapping[str, str], *headings: str) -> Table:
    """Names with a remark on each."""
    table = plain_table(*headings, title=title)
    for name, note in notes.items():
        table.add_row(folded(name), note)
    return table


def eval_only_table(reasons: Mapping[str, str]) -> Table:
    """What does not follow train mode, a row for each reason."""
    together: dict[str, list[str]] = defaultdict(list)
    for name, reason in reasons.items():
        together[reason].append(name)
    rows = {listed(names): reason for reason, names in together.items()}
    return notes_table("Not as the original when trained", rows, "module", "reason")


def folded(name: str) -> Text:
    """A name that is broken anywhere rather than cut off, where the table is too narrow for it."""
    return Text(name, overflow="fold")


def scopes_line(scopes: Sequence[str], untraced: str) -> str:
    """Which parts of a model were pruned. untraced: why not the whole, unless the user has chosen."""
    pruned = f"runed in place: {', '.join(scopes)}."
    if not untraced:
        return f"P{pruned}"
    return f"The model does not trace as a whole; p{pruned} (--scope NAME chooses others.)\nIn the way: {untraced}."


def load_hint(path: str, parts: bool = False) -> str:
    """Python that loads a slim model. parts: it goes into the original, which has the code around it."""
    if path.endswith(".pt2"):
        return f'model = torch.export.load("{path}").module()'
    return f'slim = graphprune.load("{path}", original)' if parts else f'model = graphprune.load("{path}")'
