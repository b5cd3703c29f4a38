"""``graphprune report``: what a pruning or a run did, as one HTML page that needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphprune.cli import options
from graphprune.errors import UsageError
from graphprune.files import write_whole

if TYPE_CHECKING:
    from graphprune.reporting import Material, Page

_ORIGINAL = "Original"


def command(
    subject: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_SLIM",
            help="The folder of a run, a folder of such folders, a slim model (.safetensors) or a plan (.json).",
        ),
    ],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.html", help="Where the page goes.")] = Path("report.html"),
    against: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="The original, named as for the other commands. Default: what the run or the slim model says.",
            rich_help_panel=_ORIGINAL,
        ),
    ] = None,
    latency: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The model's latency table, of `graphprune profile`, for its staircases."),
    ] = None,
    criterion: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Whose scores are shown. Default: the criterion that the plan was made by."),
    ] = None,
    model: options.Model,
    calibration: options.Calibration,
    accuracy: options.Accuracy,
    screen: options.Screen,
) -> None:
    """Write a report of a run, of all runs of a folder, or of a slim model: one page to open in a browser, without a network."""
    from graphprune.cli.loading import Request as Source
    from graphprune.cli.loading import check_outputs
    from graphprune.reporting import Request, gather, render
    from graphprune.reporting.page import check_installed

    check_installed()
    if out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"A report is an HTML page. End {out} in .html.")
    if not subject.exists():
        raise UsageError(f"{subject} does not exist. Give the folder of a run, a slim model or a plan.")
    source = Source.of(against or "", model, calibration, accuracy)
    check_outputs([out], [*source.files, *(path for path in (subject, latency) if path is not None and path.is_file())])
    with screen.output() as output:
        material = gather(Request(subject, source, latency, criterion), output)
        with output.task("Writing the page"):
            page = _page(material)
            text = render(page)
            write_whole(out, text)
        missing = {part.key: [lack.what for lack in part.missing] for part in page.sections if part.missing}
        output.data(
            {"out": str(out), "bytes": len(text.encode()), "sections": [part.key for part in page.sections], "missing": missing}
        )
        for text, titles in _notes(page).items():
            output.say(f"{', '.join(titles)}: {text}")
        output.say(f"Written to {out}. Open it in a browser.")


def _notes(page: Page) -> dict[str, list[str]]:
    """What is missing and what to do about it, with the titles of the sections that lack it."""
    notes: dict[str, list[str]] = {}
    for part in page.sections:
        for lack in part.missing:
            notes.setdefault(f"{lack.what} {lack.remedy}".rstrip(), []).append(part.title)
    return notes


def _page(material: Material) -> Page:
    from datetime import datetime

    from graphprune import __version__
    from graphprune.reporting import Page, sections_of

    title = material.subject.resolve().name
    named = material.named
    about = f"{len(material.runs)} runs." if len(material.runs) > 1 else f"Made from {named}." if named else ""
    when = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    return Page(title, about, sections_of(material), f"Made by graphprune {__version__} on {when}.")
