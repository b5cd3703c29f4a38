"""From sections to one HTML page: templates, styles, scripts and libraries all in one file that asks no network for anything.

Whatever a section says is escaped by the templates, data for the scripts stands in blocks that no browser runs, and the page's own
security policy names the scripts that may run by their hashes: text of a hostile file is shown, and no more.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from graphprune.errors import UsageError
from graphprune.reporting.facts import Section

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

#: Libraries by the kinds of charts that need them; all other kinds need those of ``_CHARTS``.
_LIBRARIES: Final = {"coupling": ("cytoscape.min.js", "cytoscape-dagre.min.js")}
_CHARTS: Final = ("echarts.min.js",)
_SOURCE_MAP: Final = re.compile(r"^//# sourceMappingURL=.*$", re.MULTILINE)  # or developer tools would look for a file
_OPTION: Final = re.compile(r"(?<![\w-])(--?[a-z][\w-]*)")  # of a command: browsers break lines after hyphens
_END: Final = re.compile(r"</(?=script)", re.IGNORECASE)


@dataclass(frozen=True)
class Page:
    """What a page is made of. title: of the page. about: lines under it. made: when and by what, for the foot."""

    title: str
    about: str
    sections: Sequence[Section]
    made: str


def check_installed() -> None:
    """Raise UsageError where the template library is missing."""
    if find_spec("jinja2") is None:
        raise UsageError('Reports need jinja2. Install it with: pip install "graphprune[report]".')


def render(page: Page) -> str:
    """The page as HTML. Raises UsageError where jinja2 is not installed."""
    check_installed()
    kinds = {chart.kind for section in page.sections for chart in section.charts}
    scripts = [_script(name) for name in _wanted(kinds)]
    return (
        _environment()
        .get_template("page.html.j2")
        .render(page=page, style=_read("static", "report.css"), scripts=scripts, hashes=[_digest(script) for script in scripts])
    )


def _wanted(kinds: set[str]) -> list[tuple[str, str]]:
    """Folder and name of every script that the charts of these kinds need."""
    libraries = [name for kind, names in _LIBRARIES.items() if kind in kinds for name in names]
    libraries += _CHARTS if kinds - _LIBRARIES.keys() else ()
    own = ["theme.js", "charts.js", "coupling.js", "start.js"]
    return [*(("vendor", name) for name in libraries), *(("static", name) for name in own)]


def _script(place: tuple[str, str]) -> str:
    return _END.sub(r"<\\/", _SOURCE_MAP.sub("", _read(*place)))


def _digest(script: str) -> str:
    """As a content security policy names a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _read(folder: str, name: str) -> str:
    return files("graphprune.reporting").joinpath(folder, name).read_text(encoding="utf-8")


def _environment() -> Environment:
    import jinja2

    loader = jinja2.PackageLoader("graphprune.reporting")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["code"] = _code
    return environment


def _code(text: str) -> Markup:
    """Text as HTML, with what stands between backticks as code, and options in one piece where a line ends."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return _unbroken(text)
    return _every_second("<code>{}</code>", [_unbroken(part) for part in parts])


def _unbroken(text: str) -> Markup:
    return _every_second('<span class="option">{}</span>', _OPTION.split(text))


def _every_second(tag: str, parts: Sequence[str]) -> Markup:
    from markupsafe import Markup, escape

    return Markup("").join(Markup(tag).format(part) if place % 2 else escape(part) for place, part in enumerate(parts))
