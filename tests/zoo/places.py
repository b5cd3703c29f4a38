"""Structures that read, write and mask parts of an axis by position."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, case, conv, image, net, vector


@case
def one_channel_taken_by_position() -> Case:
    """Only the channel that is taken must stay."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        last, third = y[:, -1], y.select(1, 2)
        return self.b(y) + (last * third).unsqueeze(1)

    return Case(net(forward, a=conv(3, 6), b=conv(6, 2)), image(), {"a": 4}, {("a.weight", 0): "by position"})


@case
def channels_unbound() -> Case:
    """All channels taken one by one must stay; those of a part of an axis go together."""

    def forward(self: Any, x: Tensor) -> Any:
        red, green = self.a(x).unbind(1)
        q, k = self.b(x).view(x.shape[0], 2, 5, -1).unbind(1)
        return self.c(torch.stack([red, green], 1)) + (q * k).sum(1).view_as(red).unsqueeze(1)

    return Case(net(forward, a=conv(3, 2), b=conv(3, 10), c=conv(2, 2)), image(), {"b": 5}, {("a.weight", 0): "position"})


@case
def every_second_channel() -> Case:
    """Slices with a step: neighbours go together, and from another start too."""

    def forward(self: Any, x: Tensor) -> Any:
        y, z = self.a(x), self.b(x)
        return self.c(y[:, ::2] + y[:, 1::2]) + self.d(z[:, 2::3])

    return Case(net(forward, a=conv(3, 8), b=conv(3, 8), c=conv(4, 2), d=conv(2, 2)), image(), {"a": 4, "b": 2, "b#2": 1})


@case
def rows_written_where_data_say() -> Case:
    """Rows of a mask, rows by number, and two axes around others: the places stay, the channels go together."""

    def forward(self: Any, x: Tensor, chosen: Tensor) -> Any:
        y, z = self.a(x), self.b(x)
        mask, places = chosen > 1, chosen.cumsum(0) % 2
        rows, spread = torch.zeros_like(y), x.new_ones(2, 6, 3)
        rows[mask] = z[mask]
        rows[mask, 1] = self.bias
        rows[:, places[:1]] = 0.5
        spread[places, :, chosen % 3] = y[:, 0] * 2
        spread.index_put_((places,), self.c(x)[:, :1].mT, accumulate=True)
        return self.d(rows), self.e(spread.transpose(1, 2)), self.f(torch.where(mask[:, None, None], z, y))

    def inputs(batch: int) -> tuple[Tensor, Tensor]:
        return torch.randn(batch, 3, 5, dtype=torch.float64), torch.arange(batch) % 3 + 1

    parts = {name: nn.Linear(5, 6) for name in "abc"} | {name: nn.Linear(6, 2) for name in "def"}
    return Case(net(forward, bias=nn.Parameter(torch.randn(6)), **parts), inputs, {"a": 6})


@case
def channels_written_where_data_say() -> Case:
    """The negative twin: channels that a mask or a number names stay."""

    def forward(self: Any, x: Tensor, chosen: Tensor) -> Any:
        y, z = self.a(x), self.b(x).clone()
        rows = torch.zeros_like(y)
        rows[x > 0] = y.mean()
        z[:, chosen] = self.c(x)[:, :1]
        return self.d(y + rows) + self.e(z)

    def inputs(batch: int) -> tuple[Tensor, Tensor]:
        return torch.randn(batch, 6, dtype=torch.float64), torch.arange(batch) % 3 + 1

    parts = {name: nn.Linear(6, 6) for name in "ab"} | {name: nn.Linear(6, 2) for name in "de"}
    frozen = {("a.weight", 0): "cannot shrink", ("b.weight", 0): "written at places that data give"}
    return Case(net(forward, c=nn.Linear(6, 1), **parts), inputs, {}, frozen)


@case
def written_in_place() -> Case:
    """Parts of a new tensor are written one by one."""

    def forward(self: Any, x: Tensor) -> Any:
        y, z = self.a(x), self.b(x)
        out = torch.zeros(x.shape[0], 10, *x.shape[2:], dtype=x.dtype)
        out[:, :6] = y
        out[:, 6:] = F.relu(z)
        return self.c(out)

    return Case(net(forward, a=conv(3, 6), b=conv(3, 4), c=conv(10, 2)), image(), {"a": 6, "b": 4})


@case
def shifted_in_time() -> Case:
    """TSM: a part of the channels is moved along the frames, another part back, by writing into slices."""

    def forward(self: Any, x: Tensor) -> Any:
        x = F.relu(self.a(x))
        bt, c, h, w = x.size()
        x = x.view(bt // 2, 2, c, h, w)
        out = torch.zeros_like(x)
        out[:, :-1, :2] = x[:, 1:, :2]
        out[:, 1:, 2:4] = x[:, :-1, 2:4]
        out[:, :, 4:] = x[:, :, 4:]
        return self.b(out.view(bt, c, h, w))

    model = net(forward, a=conv(3, 7), b=conv(7, 2))
    base = image()
    return Case(model, lambda n: base(2 * n), {"a": 2, "a#2": 2, "a#3": 3})


@case
def part_of_features_changed_in_place() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        y[:, :3] *= 2.0
        y[:, 3:].relu_()
        y[:, 1] = 0.5
        return self.b(y)

    return Case(net(forward, a=conv(3, 6), b=conv(6, 2)), image(), {"a": 2, "a#2": 3}, zeros=False)


@case
def masked_features() -> Case:
    """A mask of the caller's for tokens, a causal mask made in the forward, a learnt mask for channels."""

    def forward(self: Any, x: Tensor, mask: Tensor) -> Any:
        y = self.a(x).masked_fill(~mask.unsqueeze(-1), 0.0)
        n = x.shape[1]
        causal = torch.ones(n, n, dtype=torch.bool, device=x.device).tril()
        scores = torch.bmm(y, self.b(x).transpose(1, 2)).masked_fill(causal.logical_not(), float("-inf"))
        scores = scores + torch.full((n, n), -1.0, dtype=x.dtype).triu(1)
        return self.c(torch.bmm(scores.softmax(-1), y) * self.channel.sigmoid())

    model = net(forward, a=nn.Linear(5, 6), b=nn.Linear(5, 6), channel=nn.Parameter(torch.randn(6)), c=nn.Linear(6, 2))
    x = vector(4, 5)
    return Case(model, lambda n: (x(n), torch.arange(4).expand(n, 4) < 3), {"a": 6})


@case
def normalised_after_a_mask() -> Case:
    """Zeros in the place of masked tokens count in no statistic of channels that are gone."""

    def forward(self: Any, x: Tensor, mask: Tensor) -> Any:
        y = self.a(x).masked_fill(~mask[..., None], 0.0)
        y = self.norm(torch.where(y > 0, y, 0.1))
        y[~mask.unsqueeze(-1).repeat(1, 1, y.shape[2])] = 0.25
        return self.b(y / y.mean(-1, keepdim=True).abs())

    model = net(forward, a=nn.Linear(5, 6), norm=nn.LayerNorm(6), b=nn.Linear(6, 2))
    x = vector(4, 5)
    return Case(model, lambda n: (x(n), torch.arange(4).expand(n, 4) < 3), {"a": 6})


@case
def tokens_chosen_by_score() -> Case:
    """The best tokens are kept, by an index that is repeated over the channels (token pruning, MAE)."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        order = self.score(y).squeeze(-1).argsort(dim=1)[:, :2]
        repeated = torch.gather(y, 1, order.unsqueeze(-1).repeat(1, 1, y.shape[-1]))
        expanded = y.gather(1, order.unsqueeze(-1).expand(-1, -1, y.size(2)))
        return self.b(repeated * expanded)

    return Case(net(forward, a=nn.Linear(5, 6), score=nn.Linear(6, 1), b=nn.Linear(6, 2)), vector(4, 5), {"a": 6})


@case
def windows_along_time() -> Case:
    """``Tensor.unfold``: windows of a signal on a new last axis."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x).unfold(2, 3, 2)
        return self.b((y * self.window).sum(-1))

    model = net(forward, a=nn.Conv1d(3, 6, 1), window=nn.Parameter(torch.randn(3)), b=nn.Conv1d(6, 2, 1))
    return Case(model, vector(3, 9), {"a": 6})


@case
def rows_and_numbers_from_the_end() -> Case:
    """Positions counted from the end and computed from sizes, in reading and in writing, beside slices with a step."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x).clone()
        y[:, -2] = y[:, y.shape[1] - 1] * 2.0
        y.select(1, 1).mul_(3.0)
        z = y[:, 2:8:2, 0] + y[..., 3::2, :, :][:, :3, 1]
        return self.b(y) + z.sum((1, 2))[:, None, None, None]

    return Case(net(forward, a=conv(3, 9), b=conv(9, 2)), image(), {"a": 2}, zeros=False)


@case
def expanded_as_another() -> Case:
    """A shape that is another layer's says how long an axis is, and not what goes together with it."""

    def forward(self: Any, x: Tensor) -> Any:
        y, z = self.a(x), self.z(x)
        return self.b(self.gate(x).sigmoid().expand_as(z) * y) + self.c(z)

    parts = {"a": conv(3, 6), "z": conv(3, 6), "gate": conv(3, 1), "b": conv(6, 2), "c": conv(6, 2)}
    return Case(net(forward, **parts), image(), {"a": 6, "z": 6})


@case
def one_row_expanded_as_another() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        y, z = self.a(x), self.z(x)
        return self.b(y.mean((2, 3), keepdim=True).expand_as(z) * y) + self.c(z.reshape_as(y))

    return Case(net(forward, a=conv(3, 6), z=conv(3, 6), b=conv(6, 2), c=conv(6, 2)), image(), {"a": 6, "z": 6})


@case
def nearest_points() -> Case:
    """PointNet++: points are gathered around some of them; too far ones are replaced by the first, as a mask of distances says."""

    def forward(self: Any, points: Tensor) -> Any:
        y = self.stem(points)
        distances = torch.cdist(points[:, ::2], points)
        index = torch.arange(points.shape[1]).view(1, 1, -1).repeat(distances.shape[0], distances.shape[1], 1)
        index[distances > 2.0] = points.shape[1]
        index = index.sort(dim=-1)[0][:, :, :3]
        first, far = index[:, :, :1].repeat(1, 1, 3), index == points.shape[1]
        index[far] = first[far]
        batch = torch.arange(points.shape[0]).view(-1, 1, 1)
        return self.head(F.relu(self.point(y[batch, index])).amax(2))

    model = net(forward, stem=nn.Linear(3, 6), point=nn.Linear(6, 8), head=nn.Linear(8, 2))
    return Case(model, vector(6, 3), {"stem": 6, "point": 8})
