"""What would free channels that the rules of :mod:`graphprune.passes.analysis.rules` froze, by the reason that these give."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from graphprune.channels.labels import Reason

#: The first pattern that the reason's text, a bar and its operator hold says what to do.
REMEDIES: Final[Mapping[str, str]] = {
    "excluded by": "Leave out the --exclude that names it.",
    "reaches the model's output": (
        "They are the model's results, so nothing frees them. To have fewer, change the last layer in the model itself."
    ),
    "code around the scopes": "Read only the other axes there, as in x.shape[-2:].",
    "quanti[sz]": "Prune the model first; then prepare the slim one for quantisation, or quantise it.",
    "fake implementation": "Give the operator one (torch.library.register_fake), and a rule: docs/extending.md shows how.",
    "has no rule|no rule resizes": "Register a rule: docs/extending.md shows how.",
    "draws numbers|torch's generator|generator of its own": "Draw in train mode alone, or with torch's own functions and no seed.",
    "does not trace": "Take the branch on values out of that module's forward, or name parts that trace with --scope.",
    "over prunable channels": "--policy statistics=allow takes the statistic over the channels that are kept.",
    r"along its axis\|aten::.*softmax": "--policy softmax=allow weighs the kept entries against each other.",
    "the width of one convolution group": "--policy conv_groups=within cuts the same channels within each group instead.",
    "extent of a convolution|extent in space or batch|deformable kernel's place|only index left": (
        "Channels can be pruned, and the extents of kernels, images and batches cannot."
    ),
    "indexed by|used as an index|ordered or indexed|sampled at|written at|normalised or accumulated|chosen by data|compared": (
        "Any entry may be asked for when the model runs, so all of them stay."
    ),
    "transformed along its axis": "Each frequency is made of all entries, so all of them stay.",
    "what is drawn": "A smaller model would draw other numbers. Give them to the model as an input.",
    "another form than rows": "Rows of two axes by experts of three can be pruned.",
    "another prunable axis|two prunable axes|shrink alone|part of its axes|one of its axes|holds several": (
        "A tensor has to stay rectangular, so it can shrink along one axis only. Another choice of --policy at this site may "
        "take this one (`graphprune passes` lists them)."
    ),
    "(convolved|multiplied|attended) .*cannot shrink": (
        "What comes in here cannot shrink: it is an input of the model, or frozen itself. Free that, and these go along."
    ),
    "(combined|unpooled|concatenated|stacked|scaled|biased|normalised) .*cannot shrink|mask that cannot shrink": (
        "What they meet here cannot shrink: an input, a constant, or something frozen itself. Compute it from a parameter, or "
        "give it size 1 on this axis."
    ),
}


def remedy(reason: Reason) -> str:
    """What would free channels that are frozen for this reason, in a sentence or two; empty where nothing is known.

    >>> remedy(Reason("it reaches the model's output", "output")).split(",")[0]
    "They are the model's results"
    """
    text = f"{reason.text}|{reason.operator}"
    return next((advice for pattern, advice in REMEDIES.items() if re.search(pattern, text)), "")
