"""Where a tensor's labels on several axes must shrink along one, a named policy chooses; every site can be overridden."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final

from graphprune.errors import UsageError

CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "heads": ("whole", "head_dim"),
    "conv_groups": ("within", "whole"),
    "norm_groups": ("within", "whole"),
    "statistics": ("allow", "freeze"),
    "softmax": ("freeze", "allow"),
    "dropout": ("freeze", "allow"),
    "parts": ("free", "equal"),
    "sizes": ("free", "tied"),
}

#: Those that choose along which of its axes a field over several shrinks; all others say what is allowed.
OF_AXES: Final = frozenset({"heads"})


@dataclass(frozen=True)
class Policy:
    """Choices at sites where rectangularity leaves several.

    heads: what holds or contracts one axis of heads x head_dim (a product, a norm, a table of rotations) removes ``whole``
        heads, or the same positions of every head (``head_dim``). For both, prune with one and then with the other. A default
        that leaves nothing to remove at a site is reversed there.
    conv_groups: a grouped convolution loses the same channels ``within`` each group, or ``whole`` groups. Depthwise
        convolutions always lose whole groups.
    norm_groups: the same for group normalisation.
    statistics: a statistic over prunable channels (layer norm, channel mean) is taken over the kept ones (``allow``),
        or its channels are frozen (``freeze``).
    softmax: the axis of a softmax stays (``freeze``), or channels on it are weighed against the kept ones only (``allow``).
    dropout: channels that are dropped at random when the graph itself runs stay (``freeze``), since fewer of them are other draws,
        or may go (``allow``), which cannot be proved. A captured model has no dropout of train mode in its graph; those that
        :class:`~graphprune.Backend` compiles have, and are allowed it.
    parts: what is split into parts of one size loses channels of each part by themselves (``free``), or as many of each, so
        that the parts stay of one size (``equal``).
    sizes: where a view takes a size from another tensor (the ``c`` of what a block was given, for what its heads make), the two
        lose channels by themselves (``free``), or the same positions, so that the size holds (``tied``).
    sites: overrides, ``{"conv_groups@layer3.*": "whole"}``: policy name, ``@``, pattern on graph node or module path.

    Raises UsageError for an unknown policy or choice.
    """

    heads: str = "whole"
    conv_groups: str = "within"
    norm_groups: str = "within"
    statistics: str = "allow"
    softmax: str = "freeze"
    dropout: str = "freeze"
    parts: str = "free"
    sizes: str = "free"
    sites: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in CHOICES} | dict(self.sites)
        for key, choice in given.items():
            name = key.partition("@")[0]
            if choice not in CHOICES.get(name, ()):
                known = ", ".join(CHOICES.get(name, tuple(CHOICES)))
                raise UsageError(f"policy {key}={choice} is not known; choose from: {known}.")

    def choose(self, name: str, *places: str) -> str:
        """The choice of policy ``name`` at a site, known by graph node name and module path."""
        for key, choice in self.sites.items():
            policy, _, pattern = key.partition("@")
            if policy == name and any(fnmatchcase(place, pattern) for place in places):
                return choice
        return str(getattr(self, name))
