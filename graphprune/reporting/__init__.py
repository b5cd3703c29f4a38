"""Reports: what a pruning or a run did, as one HTML page that needs no network.

Facts are gathered from what is at hand, one file for each section (:mod:`graphprune.reporting.sections`); the page is made of
them alone (:mod:`graphprune.reporting.page`).
"""

from graphprune.reporting.material import Material, Request, gather
from graphprune.reporting.page import Page, render
from graphprune.reporting.sections import sections_of

__all__ = ["Material", "Page", "Request", "gather", "render", "sections_of"]
