"""Models that Hugging Face accelerate has dispatched (``dispatch_model``, ``cpu_offload``, ``disk_offload``, ``device_map``).

A hook on each module brings its weights to the device that computes before the module's forward, and takes them away after it.
The slim model is given such hooks. Its graph calls layers, and reads the tensors of other modules directly: these it asks for their
tensors by calling them (:class:`Owner`), so that their hooks take effect.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor, fx, nn

from graphprune.errors import UsageError
from graphprune.ir.graph_module import adopt
from graphprune.ir.twins import modules_by_path, named_tensors, twin
from graphprune.ir.weights import Weights
from graphprune.placement.placement import Placement, twin_graph

_HOOK: Final = "_hf_hook"
_ADDED: Final = (_HOOK, "_old_forward", "forward", "to", "cuda", "npu", "xpu", "mlu", "sdaa", "musa", "neuron")
_INSTEAD: Final = "or prune the checkpoint that it was loaded from (graphprune.prune_checkpoint)."


class Owner(nn.Module):
    """A module that a graph does not run, but has tensors of: it gives one by name when it is called."""

    def forward(self, name: str) -> Tensor:
        """The tensor of this name."""
        return cast(Tensor, getattr(self, name))


def is_dispatched(model: nn.Module) -> bool:
    """Whether accelerate has put hooks on a model."""
    return any(_HOOK in module.__dict__ for module in model.modules())


class _Place(NamedTuple):
    """Where an offloaded tensor is: what loads it, its name there, whether it lies on disk, and the folder for more of these."""

    values: Mapping[str, Tensor]
    name: str
    on_disk: bool
    folder: Path | None

    @property
    def storage(self) -> object:
        """What tied tensors in memory have in common. (On disk each name has a copy of its own.)"""
        if self.on_disk:
            return self.folder, self.name
        value = self.values[self.name]
        return value.device, value.data_ptr(), value.dtype, value.shape, value.stride()


class Offloaded(Placement):
    """A dispatched model.

    Raises UsageError where its layers compute on several devices, since a graph does not move activations between them; where it
    has hooks of another kind; and where weights are read from a checkpoint and there is no folder to write slim ones to.
    """

    def __init__(self, model: nn.Module) -> None:
        hooks = list(_hooks(model))
        self._device = _one_device(model, (hook.execution_device for _, _, hook in hooks))
        self._buffers = any(hook.offload_buffers for _, _, hook in hooks)
        self._places = {
            f"{path}.{name}" if path else name: _place(hook.weights_map, name)
            for path, module, hook in hooks
            if hook.offload
            for name, tensor in (named_tensors(module) if hook.place_submodules else _direct(module)).items()
            if tensor.is_meta
        }
        on_disk = [place for place in self._places.values() if place.on_disk]
        if any(place.folder is None for place in on_disk):
            raise UsageError(
                f"{type(model).__name__} reads {on_disk[0].name} from its checkpoint, and there is no folder for slim weights. "
                f"Give offload_folder= when it is loaded, {_INSTEAD}"
            )
        self._folder = next((place.folder for place in on_disk), None)
        self.plain = self._plain(model)

    def weights(self, module: nn.Module) -> Weights:
        """Loaded as the hooks do it, to the device that computes."""
        own = named_tensors(module)

        def load(name: str) -> Tensor | None:
            place = self._places.get(name)
            return None if place is None else place.values[place.name].detach().to(self._device, own[name].dtype)

        return Weights(module, load, device=self._device)

    def place(self, slim: fx.GraphModule, weights: Weights) -> fx.GraphModule:
        """The slim model with what stays of each weight where the weight is: in memory, or in a new folder within that of the
        original's weights on disk."""
        from accelerate.hooks import AlignDevicesHook, add_hook_to_module
        from accelerate.utils import PrefixedDataset

        result = _with_owners(slim)
        called, read = _called(slim.graph), _read_layers(slim.graph)
        owners = [path for path, module in modules_by_path(result).items() if isinstance(module, Owner)]
        names = {path: self._offloaded(result, path, whole=path in called) for path in dict.fromkeys(["", *called, *owners])}
        for path in read:  # what the graph reads without calling it stays on the device
            _settle(result, path, weights)
            names[path] = []
        values = self._written(weights, [name for found in names.values() for name in found])
        for path, offloaded in names.items():
            hook = AlignDevicesHook(
                execution_device=self._device,
                offload=bool(offloaded),
                io_same_device=not path,
                weights_map=PrefixedDataset(values, f"{path}." if path else ""),
                offload_buffers=self._buffers,
                place_submodules=path in called,
            )
            add_hook_to_module(result.get_submodule(path), hook)
        return result

    def _offloaded(self, root: nn.Module, path: str, *, whole: bool) -> list[str]:
        """Names of the tensors that a hook on a module loads, if it is to load any. whole: those of its submodules, too."""
        module = root.get_submodule(path)
        found: dict[str, Tensor] = {}
        for inner, child in modules_by_path(module).items() if whole else [("", module)]:
            buffers = {k: v for k, v in child._buffers.items() if self._buffers and k not in child._non_persistent_buffers_set}
            for name, tensor in {**child._parameters, **buffers}.items():
                if tensor is not None:
                    found[".".join(filter(None, (path, inner, name)))] = tensor
        return list(found) if any(tensor.is_meta for tensor in found.values()) else []

    def _written(self, weights: Weights, names: Iterable[str]) -> Mapping[str, Tensor]:
        """Slim weights in memory and on disk, as the original's are; one after another."""
        from accelerate.utils import OffloadedWeightsLoader, offload_state_dict

        on_disk = [name for name in names if name in self._places and self._places[name].on_disk]
        in_memory: dict[str, Tensor] = {}
        known: dict[object, Tensor] = {}  # tied tensors are one
        for name in sorted(set(names) - set(on_disk)):
            key = self._places[name].storage if name in self._places else name
            if key not in known:
                known[key] = weights[name].detach().to("cpu", copy=True)
            in_memory[name] = known[key]
        if not on_disk:
            return in_memory
        folder = tempfile.mkdtemp(prefix="slim-", dir=self._folder)
        offload_state_dict(folder, weights.some(on_disk))
        return cast(Mapping[str, Tensor], OffloadedWeightsLoader(state_dict=in_memory, save_folder=folder))

    def _plain(self, model: nn.Module) -> nn.Module:
        first: dict[object, Tensor] = {}
        same: dict[int, Tensor] = {}
        for name, tensor in named_tensors(model).items():
            key = self._places[name].storage if name in self._places else id(tensor)
            same[id(tensor)] = first.setdefault(key, tensor)
        result = twin(model, lambda tensor: same.get(id(tensor), tensor))
        for module in result.modules():
            _unhook(module)
        # The hook of a graph module is on its class.
        return twin_graph(result) if isinstance(result, fx.GraphModule) else result


def _hooks(model: nn.Module) -> Iterator[tuple[str, nn.Module, Any]]:
    """Accelerate's hooks, with the modules that they are on. Raises UsageError for one that does not place weights."""
    from accelerate.hooks import AlignDevicesHook, SequentialHook

    for path, module in modules_by_path(model).items():
        found = module.__dict__.get(_HOOK)
        for hook in found.hooks if isinstance(found, SequentialHook) else () if found is None else (found,):
            if not isinstance(hook, AlignDevicesHook):
                raise UsageError(
                    f"{path or type(model).__name__} has accelerate's {type(hook).__name__}, which a slim model is not given. "
                    "Take it off before (accelerate.hooks.remove_hook_from_module), and put it on the slim model."
                )
            yield path, module, hook


def _one_device(model: nn.Module, devices: Iterable[Any]) -> torch.device:
    """The device that all layers compute on."""
    found = sorted({str(torch.device(device)) for device in devices if device is not None})
    if len(found) > 1:
        raise UsageError(
            f"{type(model).__name__} computes on {' and '.join(found)}, and a slim graph computes on one device. "
            f"Load it with a device_map of one device and cpu or disk, {_INSTEAD}"
        )
    return torch.device(found[0] if found else "cpu")


def _place(values: Any, name: str) -> _Place:
    """Where a hook's mapping has a tensor."""
    from accelerate.utils import OffloadedWeightsLoader, PrefixedDataset

    while isinstance(values, PrefixedDataset):
        values, name = values.dataset, values.prefix + name
    on_disk = isinstance(values, OffloadedWeightsLoader) and name not in values.state_dict
    folder = values.save_folder if on_disk else None
    return _Place(values, name, on_disk, None if folder is None else Path(folder))


def _direct(module: nn.Module) -> dict[str, Tensor]:
    """Tensors of a module, without those of its submodules."""
    found = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _unhook(module: nn.Module) -> None:
    """Give a module the forward back that it had before it was dispatched."""
    state = module.__dict__
    if _HOOK not in state and "_old_forward" not in state:
        return
    before = state.get("_old_forward")
    for key in _ADDED:
        state.pop(key, None)
    own = getattr(before, "__func__", None) is not getattr(type(module), "forward", None)
    if before is not None and own and not isinstance(module, fx.GraphModule):
        state["forward"] = before


def _called(graph: fx.Graph) -> list[str]:
    """Modules that a graph calls, once each."""
    return list(dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "call_module"))


def _read_layers(graph: fx.Graph) -> list[str]:
    """Modules that a graph calls, and of which it reads tensors besides."""
    owners = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    return [path for path in _called(graph) if any(f"{owner}.".startswith(f"{path}.") for owner in owners)]


def _with_owners(slim: fx.GraphModule) -> fx.GraphModule:
    """The graph with calls of owners where it read their tensors; the tensors are shared."""
    root = twin(slim, lambda tensor: tensor)
    called = _called(slim.graph)
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in slim.graph.nodes:
        path, _, name = str(node.target).rpartition(".")
        if node.op == "get_attr" and path and not any(f"{path}.".startswith(f"{layer}.") for layer in called):
            owner = root.get_submodule(path)
            if not isinstance(owner, Owner):
                owner.__class__ = Owner
            copied[node] = graph.create_node("call_module", path, (name,), name=node.name)
            copied[node].meta.update(node.meta)
        else:
            copied[node] = graph.node_copy(node, copied.__getitem__)
    return adopt(root, graph, type(slim).__name__)


def _settle(root: nn.Module, path: str, weights: Weights) -> None:
    """Give a layer its values for good."""
    for inner, child in modules_by_path(root.get_submodule(path)).items():
        stores: tuple[dict[str, Any], ...] = (child._parameters, child._buffers)
        for store in stores:
            for name, tensor in store.items():
                if tensor is not None and tensor.is_meta:
                    value = weights[".".join(filter(None, (path, inner, name)))].detach().clone()
                    is_parameter = isinstance(tensor, nn.Parameter)
                    store[name] = nn.Parameter(value, requires_grad=tensor.requires_grad) if is_parameter else value
