"""What the site adds to the pages as they lie in the repository: pages from above `docs/`, an API reference, drawings, formulas.

Pages are written for a code host, and read well there. Here their links to sources become links to the reference, the drawings
become part of the page, so that they follow its colours, and formulas become MathML, which browsers draw without a script.
"""

from __future__ import annotations

import ast
import html
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
#: Files above `docs/`, by the place that they have on the site.
ABOVE = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "LICENSE.txt": "LICENSE",
}
#: Where the folders of sources are imported.
PACKAGES = {"graphprune": "graphprune", "passes": "graphprune/passes", "kernels": "graphprune/kernels"}

_LINK = re.compile(r"\[([^\[\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
_DRAWING = re.compile(r'<p><img alt="([^"]*)" src="([^"]+\.svg)" ?/?></p>')
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from above `docs/`, a page for every module, and to the navigation the guides that it does not name."""
    named = str(config.nav)
    guides = next(part["Guides"] for part in config.nav or [] if "Guides" in part)
    guides += [file.src_uri for file in files.documentation_pages() if "/" not in file.src_uri and file.src_uri not in named]
    for place, source in ABOVE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    rows = []
    for module, path, place in _modules():
        files.append(File.generated(config, place, content=f"::: {module}\n"))
        first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
        rows.append(f"| [`{module}`]({posixpath.relpath(place, 'reference')}) | {first.replace('|', '&#124;')} |")
    table = "\n".join(["# Modules", "", "| module | what |", "| --- | --- |", *rows, ""])
    files.append(File.generated(config, "reference/index.md", content=table))
    return files


def _modules() -> Iterator[tuple[str, Path, str]]:
    """Dotted name, file and page of every module."""
    for folder, package in sorted(PACKAGES.items(), key=lambda item: item[1]):
        for path in sorted((ROOT / folder).rglob("*.py")):
            inside = path.relative_to(ROOT / folder)
            if (ROOT / folder / inside.parts[0]).is_symlink() or path.stem == "__main__":
                continue
            place = _reference(posixpath.join(folder, inside.as_posix()))
            module = posixpath.join(package, inside.with_suffix("").as_posix()).removesuffix("/__init__")
            yield module.replace("/", "."), path, place


def _reference(source: str) -> str:
    """The page of a source file or folder, given by its path in the repository."""
    folder, _, rest = source.partition("/")
    stem = posixpath.join(PACKAGES[folder], rest).rstrip("/").removesuffix(".py")
    stem = stem.removesuffix("/__init__") + "/index" if not source.endswith(".py") or stem.endswith("/__init__") else stem
    return f"reference/{stem}.md"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links that hold in the repository to where their targets are on the site; name what has no page there without one."""
    place = page.file.src_uri
    source = ABOVE.get(place, f"docs/{place}")

    def moved(match: re.Match[str]) -> str:
        text, link, part = match.groups()
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
        if "://" in link or not (ROOT / target).exists():
            return match[0]  # a link that leads nowhere is for the strict build to name
        found = _on_site(target)
        return f"[{text}]({posixpath.relpath(found, posixpath.dirname(place) or '.')}{part or ''})" if found else text

    return _LINK.sub(moved, markdown)


def _on_site(target: str) -> str | None:
    """Where a path of the repository is on the site."""
    if target == "docs/README.md":
        return "index.md"
    if target in ABOVE.values():
        return next(place for place, source in ABOVE.items() if source == target)
    if target.split("/")[0] in PACKAGES and (target.endswith(".py") or (ROOT / target / "__init__.py").exists()):
        return _reference(target)
    if target.startswith("docs/") and (ROOT / target / "README.md").exists():
        return f"{target}/README.md".removeprefix("docs/")
    if target.startswith("docs/") and not target.endswith(".py"):  # scripts are not on the site
        return target.removeprefix("docs/")
    return None


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put drawings into the page, and formulas as MathML."""

    def drawn(match: re.Match[str]) -> str:
        path = ROOT / "docs" / posixpath.normpath(posixpath.join(posixpath.dirname(page.file.dest_uri), match[2]))
        picture = re.sub(r"<style>.*?</style>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)  # extra.css has the colours
        return f'<figure class="drawing" role="img" aria-label="{match[1]}">{picture}</figure>'

    def formula(match: re.Match[str]) -> str:
        return convert(html.unescape(match[2]).strip(), display="block" if match[1] == "div" else "inline")

    return _FORMULA.sub(formula, _DRAWING.sub(drawn, content))
