"""How the attributes of torch.nn modules follow the widths of their (already sliced) tensors and inputs."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from graphprune.resizers import Site, resize_module


def _set(module: nn.Module, **attributes: Any) -> None:
    """Set plain attributes, without ``nn.Module.__setattr__``, which is slow."""
    module.__dict__.update(attributes)


def _input(site: Site) -> fx.Node:
    node = site.node.args[0] if site.node.args else next(iter(site.node.kwargs.values()))
    assert isinstance(node, fx.Node)
    return node


@resize_module(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution(module: Any, site: Site) -> None:
    """out_channels, in_channels and kernel_size are the weight's, groups is a kept count."""
    groups = site.scalar("groups", module.groups)
    outputs, inputs, *extents = module.weight.shape
    _set(module, groups=groups, out_channels=outputs, in_channels=inputs * groups, kernel_size=tuple(extents))


@resize_module(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def transposed_convolution(module: Any, site: Site) -> None:
    """As a convolution, with the weight's first two axes exchanged."""
    groups = site.scalar("groups", module.groups)
    inputs, outputs = module.weight.shape[:2]
    _set(module, groups=groups, in_channels=inputs, out_channels=outputs * groups)


@resize_module(nn.Linear)
def linear(module: Any, site: Site) -> None:
    """in_features and out_features are the weight's."""
    outputs, inputs = module.weight.shape
    _set(module, out_features=outputs, in_features=inputs)


@resize_module(nn.Bilinear)
def bilinear(module: Any, site: Site) -> None:
    """out_features and both in_features are the weight's."""
    module.out_features, module.in1_features, module.in2_features = module.weight.shape


@resize_module(nn.Embedding, nn.EmbeddingBag)
def embedding(module: Any, site: Site) -> None:
    """embedding_dim is the weight's; the vocabulary never shrinks."""
    module.num_embeddings, module.embedding_dim = module.weight.shape


@resize_module(
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d
)  # fmt: skip
def per_channel_norm(module: Any, site: Site) -> None:
    """num_features is the channel count of the input."""
    rank = len(site.old_shape(_input(site)))
    unbatched = isinstance(module, (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)) and rank == _space(module) + 1
    _set(module, num_features=site.new_shape(_input(site))[0 if unbatched else 1])


def _space(module: nn.Module) -> int:
    return int(type(module).__name__[-2])


@resize_module(nn.GroupNorm)
def group_norm(module: Any, site: Site) -> None:
    """num_channels is the input's, num_groups is a kept count where whole groups go."""
    module.num_groups = site.scalar("num_groups", module.num_groups)
    module.num_channels = site.new_shape(_input(site))[1]


@resize_module(nn.LayerNorm, nn.RMSNorm)
def layer_norm(module: Any, site: Site) -> None:
    """normalized_shape is the input's last axes."""
    module.normalized_shape = tuple(site.new_shape(_input(site))[-len(module.normalized_shape) :])


@resize_module(nn.PReLU)
def prelu(module: Any, site: Site) -> None:
    """num_parameters is the weight's."""
    module.num_parameters = module.weight.shape[0]


@resize_module(nn.Unflatten)
def unflatten(module: Any, site: Site) -> None:
    """The sizes that one axis is split into are those of the output."""
    shape = site.new_shape(_input(site))
    axis = module.dim % len(shape)
    new = site.new_shape(site.node)[axis : axis + len(module.unflattened_size)]
    module.unflattened_size = type(module.unflattened_size)(
        old if old == -1 else size for old, size in zip(module.unflattened_size, new, strict=True)
    )


@resize_module(nn.ChannelShuffle)
def channel_shuffle(module: Any, site: Site) -> None:
    """groups is a kept count where every channel is a group; any other shuffle is redone as a whole."""
    module.groups = site.scalar("groups", module.groups)
