"""The shadow: the same modules, tied tensors and containers, on the meta device; the original sees nothing of it."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import Any

import torch
from torch import nn

from graphprune.tracing.shadow import Shadow
from tests.checking import state_hash
from tests.zoo.case import ready


def shadow_of(model: nn.Module) -> tuple[Shadow, list[str]]:
    called: list[str] = []

    def call(module: Any, path: str, args: Any, kwargs: Any) -> Any:
        called.append(path)
        return module._call_impl(*args, **kwargs)

    return Shadow(model, call, False), called


def tree() -> Any:
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.ReLU())
    model[2].weight = model[0].weight
    model.append(model[0])
    model.extra = torch.ones(2)
    model.none = None
    return ready(model)


def test_everything_is_on_the_meta_device_and_tied_as_before() -> None:
    model = tree()
    shadow, _ = shadow_of(model)
    copy: Any = shadow.root
    assert all(tensor.is_meta for tensor in [*copy.parameters(), *copy.buffers(), copy.extra])
    assert copy[0] is copy[4] and copy[0] is not model[0] and copy[0].weight is copy[2].weight
    assert type(copy[1]) is nn.BatchNorm1d and copy[1].eps == model[1].eps and not copy.training
    assert shadow.tensors.keys() == {*dict(model.named_parameters(remove_duplicate=False)), *dict(model.named_buffers())}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        found = shadow.tensors[name]
        assert (found.shape, found.stride(), found.dtype) == (tensor.shape, tensor.stride(), tensor.dtype)
        assert shadow.of(tensor) is found and shadow.real[id(found)] is tensor


def test_calls_of_modules_are_reported() -> None:
    shadow, called = shadow_of(tree())
    shadow.root(torch.empty(2, 4, dtype=torch.float64, device="meta"))
    assert called == ["", "0", "1", "2", "3", "0"]


class Chosen(nn.Module):
    """Runs one of its own methods, which it keeps as an attribute, in a list and in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.chosen, self.listed, self.named = self.doubled, [self.doubled], {"doubled": self.doubled, "inner": self.inner.forward}

    def doubled(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = 2 * self.inner(x)
        return result


def test_methods_that_modules_keep_are_those_of_the_copies() -> None:
    model: Any = nn.Sequential(Chosen())
    shadow, _ = shadow_of(model)
    root: Any = shadow.root
    copy = root[0]
    assert copy.chosen.__self__ is copy and copy.listed[0].__self__ is copy and copy.named["doubled"].__self__ is copy
    assert copy.named["inner"].__self__ is copy.inner
    assert model[0].chosen.__self__ is model[0] and model[0].listed[0].__self__ is model[0]


def test_what_is_written_to_the_shadow_stays_there() -> None:
    model = tree()
    nested: Any = {"states": [[]], "ordered": OrderedDict(a={}), "default": defaultdict(list), "set": {1}}
    model.cache, model.shared = nested, nested
    model[0].shared = nested
    nested["self"] = nested
    before = state_hash(model)
    copy: Any = shadow_of(model)[0].root
    assert copy.cache is copy.shared is copy[0].shared is copy.cache["self"], "one container stays one"
    copy.cache["states"][0].append(1)
    copy.cache["ordered"]["a"]["b"] = 1
    copy.cache["default"]["x"].append(1)
    copy.cache["set"].add(2)
    copy.new, copy[0].weight = 1, nn.Parameter(torch.empty(1))
    copy.register_buffer("more", torch.empty(1))
    copy[3].register_forward_hook(lambda *_: None)
    copy[1].train()
    assert nested["states"] == [[]] and nested["ordered"] == {"a": {}} and not nested["default"] and nested["set"] == {1}
    assert not hasattr(model, "new") and not model[3]._forward_hooks
    assert state_hash(model) == before
