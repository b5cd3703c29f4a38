"""The models that the configs of one architecture build: which of them a slim model is, and which widths they can have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor

from graphprune.channels.groups import Groups, Ints
from graphprune.channels.levers import Levers, Numbers
from graphprune.errors import CaptureError, GraphpruneError, UsageError, first_line
from graphprune.ir.program import Inputs, Program
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.passes.rewrite.rewrite import rewrite
from graphprune.pipeline.analysis_manager import AnalysisManager
from graphprune.quiet import quiet
from graphprune.streaming.configs import MOST, Config, Fit, Path, Search, Shapes, attempt, changed, few_layers, others
from graphprune.streaming.folder import architecture, asked_of, build, with_dtypes
from graphprune.streaming.header import Entry
from graphprune.streaming.levers import Finder, at_full_depth, first_units
from graphprune.streaming.same import difference
from graphprune.tracing import capture


class Family:
    """The models that configs of one architecture build, beside the one that a config builds now.

    cached: whether they return caches where their config says so; without, they never do.
    """

    def __init__(self, config: Config, inputs: Inputs, *, cached: bool = False) -> None:
        self._given = config
        self._inputs = inputs
        self._cached = cached
        self.name = str(config["architectures"][0])
        cls = architecture(self.name)
        self._class = cls.config_class
        self.explicit = {**self._made(config), "architectures": config["architectures"]}

    @cached_property
    def _bare(self) -> bool:
        """Whether shapes can be had of models without any values."""
        try:
            return build(self.explicit, bare=True).state_dict().keys() == build(self.explicit).state_dict().keys()
        except UsageError:
            return False

    def _made(self, config: Config) -> Config:
        """What the class of configs makes of one, in full."""
        with quiet():
            return dict(json.loads(self._class.from_dict(config).to_json_string(use_diff=False)))

    def shapes(self, candidate: Config) -> Shapes:
        """The shapes of the state of a config's model. Raises UsageError where there is no such model."""
        return {name: tuple(value.shape) for name, value in build(candidate, bare=self._bare).state_dict().items()}

    def untied(self, candidate: Config) -> Shapes:
        """The same of tied tensors under the first of their names only."""
        state = build(candidate, bare=self._bare).state_dict(keep_vars=True)
        first = {id(tensor): name for name, tensor in reversed(state.items())}
        return {name: tuple(tensor.shape) for name, tensor in state.items() if first[id(tensor)] == name}

    def program(self, candidate: Config, dtypes: Mapping[str, torch.dtype]) -> Program:
        """The model of a config with some dtypes, captured. Raises a GraphpruneError where it does not run on the inputs."""
        model = build(self.written(candidate), cached=self._cached)
        return capture(with_dtypes(model, dtypes), self._inputs)

    def written(self, changed: Config) -> Config:
        """A config as it goes into the file: what the original says, with what its class added made explicit."""
        return {**changed, **{key: value for key, value in self._given.items() if key not in changed}}

    def levers(self, groups: Groups, policy: Mapping[str, str]) -> Levers:
        """How configs can narrow a model with these groups; no levers where a model of fewer layers does not trace as a whole.

        policy: choices that the groups were made under.
        """
        short = changed(self.explicit, few_layers(self.explicit, self.shapes))
        choices = {key: choice for key, choice in policy.items() if "@" not in key}
        program = self._whole(short)
        if program is None:  # its last layer may be one that no other takes the place of
            short = self.explicit
            program = self._whole(short)
        if program is None:
            return Levers((), lambda stated: True)
        program = program.under(policy=choices)
        own, state = AnalysisManager().get(program, ChannelGroups()), self.shapes(short)

        def agrees(candidate: Config, widths: Ints) -> str:
            try:
                slim = program.with_(module=rewrite(program.module, own, first_units(own, widths)))
                return difference(slim, self.program(candidate, {}).with_(tape=None), state)
            except GraphpruneError as error:
                return first_line(error)

        @cache
        def fits(*stated: tuple[Path, int]) -> bool:
            return attempt(self.shapes, changed(short, dict(stated))) is not None

        asked = [(name,) for name in asked_of(short)]
        levers = at_full_depth(Finder(short, self.untied, own, agrees, asked).run(), self.explicit, self.untied, groups)
        return Levers(levers, lambda stated: fits(*stated.items()))

    def _whole(self, candidate: Config) -> Program | None:
        """The model of a config, captured; None where it does not trace as a whole."""
        try:
            program = self.program(candidate, {})
        except CaptureError:
            return None
        return None if program.scopes else program

    def fit(self, slim: Program, state: Mapping[str, Entry | Tensor], numbers: Numbers | None = None, most: int = MOST) -> Fit:
        """The config from which transformers builds the slim model, or the reason why none does.

        slim: the slim graph, for the same inputs. state: what the plan leaves of the model's tensors. numbers: at which levers are,
        where the widths are theirs. most: models that a search builds.
        """
        dtypes = {name: entry.dtype for name, entry in state.items()}

        def agrees(candidate: Config) -> str:
            try:
                other = self.program(candidate, dtypes)
            except GraphpruneError as error:
                return first_line(error)
            return difference(slim.with_(tape=None), other.with_(tape=None), state)

        search, wanted = (
            Search(self.explicit, self.shapes, agrees, most),
            {name: tuple(entry.shape) for name, entry in state.items()},
        )
        fit = Fit(None, {}) if numbers is None else search.check(numbers, wanted)
        fit = fit if fit.config is not None else search.run(wanted)
        if fit.config is None:
            return fit
        return Fit(self.written(fit.config), fit.changes, stated=others(self._made(fit.config), self._made(self._given)))


def numbers_at(levers: Levers | None, groups: Groups, widths: Mapping[str, tuple[int, int]]) -> Numbers | None:
    """The numbers that state the widths of a model that was cut by levers, if it was.

    widths: units of each group, before and after.
    """
    kept = np.array([widths[group.name][1] for group in groups.prunable], dtype=np.int64)
    return None if levers is None else levers.at(levers.steps(kept, groups.widths))
