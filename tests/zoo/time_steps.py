"""Structures of recurrences, scans and layers over tokens."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.zoo.case import Case, case, conv, image, net, vector


def _recurrent(layer: nn.Module, width: int, hidden: bool = False) -> nn.Module:
    def forward(self: Any, x: Tensor) -> Any:
        y, state = self.layer(F.relu(self.a(x)))
        last = (state[0] if isinstance(state, tuple) else state)[-1]
        return self.head(y) + (self.side(last).unsqueeze(1) if hidden else 0)

    parts = {"side": nn.Linear(6, 2)} if hidden else {}
    return net(forward, a=nn.Linear(5, 7), layer=layer, head=nn.Linear(width, 2), **parts)


@case
def long_short_term_memory() -> Case:
    """Unit i of the state is in the four gates, in the recurrent inputs and in what follows."""
    model = _recurrent(nn.LSTM(7, 6, batch_first=True), 6)
    return Case(model, vector(3, 5), {"a": 7, "layer.weight_ih_l0": 6}, macs=False)


@case
def layers_of_memory_in_both_directions() -> Case:
    """The states of all layers and directions are one tensor, so they have one width."""
    model = _recurrent(nn.LSTM(7, 6, num_layers=2, bidirectional=True, batch_first=True), 12)
    return Case(model, vector(3, 5), {"a": 7, "layer.weight_ih_l0": 6}, macs=False)


@case
def memory_with_projection() -> Case:
    """``proj_size``: the cell and the output have widths of their own (torch refuses equal ones)."""
    model = _recurrent(nn.LSTM(7, 24, proj_size=2, batch_first=True), 2)
    return Case(model, vector(3, 5), {"a": 7, "layer.weight_hh_l0": 2, "layer.weight_ih_l0": 24}, macs=False)


@case
def gated_recurrence() -> Case:
    model = _recurrent(nn.GRU(7, 6, num_layers=2, batch_first=True), 6, hidden=True)
    return Case(model, vector(3, 5), {"a": 7, "layer.weight_ih_l0": 6}, macs=False)


@case
def plain_recurrence() -> Case:
    model = _recurrent(nn.RNN(7, 6, nonlinearity="relu", bidirectional=True, batch_first=True), 12)
    return Case(model, vector(3, 5), {"a": 7, "layer.weight_ih_l0": 6}, macs=False)


def _sequences(batch: int) -> tuple[Tensor, Tensor]:
    """Padded sequences, and their lengths, in no order."""
    return torch.randn(batch, 5, 5, dtype=torch.float64), torch.arange(batch) * 2 % 5 + 1


@case
def memory_over_packed_sequences() -> Case:
    """Each step runs over the sequences that go on; what is padded is no zero."""

    def forward(self: Any, x: Tensor, lengths: Tensor) -> Any:
        packed = pack_padded_sequence(F.relu(self.a(x)), lengths.cpu(), batch_first=True, enforce_sorted=False)
        y, lengths = pad_packed_sequence(self.layer(packed)[0], batch_first=True, padding_value=-1.5, total_length=x.shape[1])
        return self.head(y), lengths

    layer = nn.LSTM(7, 6, num_layers=2, bidirectional=True, batch_first=True)
    model = net(forward, a=nn.Linear(5, 7), layer=layer, head=nn.Linear(12, 2))
    return Case(model, _sequences, {"a": 7, "layer.weight_ih_l0": 6}, macs=False)


@case
def last_states_of_packed_sequences() -> Case:
    """The lengths are in order, and the sequences are in the second axis."""

    def forward(self: Any, x: Tensor, lengths: Tensor) -> Any:
        order = lengths.argsort(descending=True)
        packed = pack_padded_sequence(self.a(x)[order].transpose(0, 1), lengths[order])
        return self.head(self.layer(packed, x.new_ones(1, x.shape[0], self.width))[1][-1])

    model = net(forward, a=nn.Linear(5, 7), layer=nn.GRU(7, 6), head=nn.Linear(6, 2), width=6)
    return Case(model, _sequences, {"a": 7, "layer.weight_ih_l0": 6}, macs=False)


@case
def cell_in_a_loop() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        h = c = torch.zeros(x.shape[0], 6, dtype=x.dtype)
        for step in x.unbind(1):
            h, c = self.cell(step, (h, c))
        return self.head(h)

    return Case(net(forward, cell=nn.LSTMCell(5, 6), head=nn.Linear(6, 2)), vector(3, 5), {"cell.weight_ih": 6}, macs=False)


@case
def state_in_new_memory() -> Case:
    """``weight.new(layers, batch, width).zero_()``, as older language models make their first state."""

    def forward(self: Any, x: Tensor) -> Any:
        first = next(self.parameters()).new(1, x.shape[0], 6).zero_()
        scale = x.new([2.0]) * first.new(x.size()).fill_(0.5)
        return self.head(self.layer(self.a(x.new(scale) * x), first)[0])

    model = net(forward, a=nn.Linear(5, 7), layer=nn.GRU(7, 6, batch_first=True), head=nn.Linear(6, 2))
    return Case(model, vector(3, 5), {"a": 7, "layer.weight_ih_l0": 6}, macs=False)


@case
def convolutional_memory() -> Case:
    """ConvLSTM: one convolution makes four gates of input and state."""

    def forward(self: Any, x: Tensor) -> Any:
        h = c = torch.zeros(x.shape[0], 4, *x.shape[3:], dtype=x.dtype)
        for t in range(x.shape[1]):
            i, f, o, g = torch.split(self.gates(torch.cat([x[:, t], h], dim=1)), 4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.head(h)

    return Case(net(forward, gates=conv(7, 16), head=conv(4, 2)), vector(3, 3, 6, 6), {"gates": 4})


@case
def selective_scan() -> Case:
    """Mamba: the state of each channel is a vector; step sizes and the state's inputs and outputs depend on the data."""

    def forward(self: Any, x: Tensor) -> Any:
        n = x.shape[1]
        x, z = self.inner(x).chunk(2, dim=-1)
        x = F.silu(self.conv(x.transpose(1, 2))[..., :n]).transpose(1, 2)
        delta, b, c = self.select(x).split([2, 3, 3], dim=-1)
        delta = F.softplus(self.delta(delta))
        a = -torch.exp(self.a_log)
        decay = torch.exp(delta.unsqueeze(-1) * a)
        inputs = delta.unsqueeze(-1) * b.unsqueeze(2) * x.unsqueeze(-1)
        state = torch.zeros_like(inputs[:, 0])
        outputs = []
        for t in range(n):
            state = decay[:, t] * state + inputs[:, t]
            outputs.append(torch.einsum("bdn,bn->bd", state, c[:, t]))
        y = torch.stack(outputs, dim=1) + x * self.d
        return self.out(y * F.silu(z))

    model = net(
        forward,
        inner=nn.Linear(5, 12),
        conv=nn.Conv1d(6, 6, 3, padding=2, groups=6),
        select=nn.Linear(6, 8, bias=False),
        delta=nn.Linear(2, 6),
        a_log=nn.Parameter(torch.randn(6, 3)),
        d=nn.Parameter(torch.randn(6)),
        out=nn.Linear(6, 2),
    )
    return Case(model, vector(4, 5), {"inner": 6, "select": 2, "select#2": 3}, macs=False)


@case
def accumulated_over_time() -> Case:
    """A cumulative sum over tokens, and a convolution over them."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x).cumsum(dim=1)
        y = self.mix(y.transpose(1, 2)).transpose(1, 2)
        return self.b(F.relu(y))

    return Case(
        net(forward, a=nn.Linear(5, 6), mix=nn.Conv1d(6, 4, 3, padding=1), b=nn.Linear(4, 2)), vector(4, 5), {"a": 6, "mix": 4}
    )


@case
def mixer() -> Case:
    """MLP-Mixer: layers over the tokens, whose number is fixed, and over the channels."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.t2(F.gelu(self.t1(self.n1(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.c2(F.gelu(self.c1(self.n2(x))))
        return self.head(x.mean(dim=1))

    model = net(
        forward,
        patches=nn.Conv2d(3, 6, 4, 4),
        n1=nn.LayerNorm(6),
        t1=nn.Linear(4, 7),
        t2=nn.Linear(7, 4),
        n2=nn.LayerNorm(6),
        c1=nn.Linear(6, 8),
        c2=nn.Linear(8, 6),
        head=nn.Linear(6, 3),
    )
    return Case(model, image(), {"patches": 6, "t1": 7, "c1": 8})


@case
def convolutions_over_tokens() -> Case:
    """MLP-Mixer's: kernels of a single place mix tokens as channels, so that the features, in place of space, go as they like."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        y = y + self.out(F.gelu(self.mix(y)))
        return self.b(y)

    model = net(forward, a=nn.Linear(3, 6), mix=nn.Conv1d(5, 7, 1), out=nn.Conv1d(7, 5, 1), b=nn.Linear(6, 2))
    return Case(model, vector(5, 3), {"a": 6, "mix": 7}, {("out.weight", 0): "cannot shrink"})


@case
def convolutions_over_time_alone() -> Case:
    """A kernel with several places along time and one along the features: these go, and the times stay."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.conv(self.a(x).unsqueeze(1))
        return self.b(y.amax(1))

    model = net(forward, a=nn.Linear(3, 6), conv=nn.Conv2d(1, 4, (3, 1), padding=(1, 0)), b=nn.Linear(6, 2))
    return Case(model, vector(5, 3), {"a": 6, "conv": 4}, zeros=False)


@case
def convolutions_with_strides_over_features() -> Case:
    """The negative twin: a kernel of a single place that skips places, and one whose padding adds some, hold the features."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x).unsqueeze(1)
        return self.b(self.skip(y).amax(1)) + self.c(self.wide(y).amax(1))

    model = net(
        forward,
        a=nn.Linear(3, 6),
        skip=nn.Conv2d(1, 4, 1, stride=(1, 2)),
        wide=nn.Conv2d(1, 5, 1, padding=(0, 1)),
        b=nn.Linear(3, 2),
        c=nn.Linear(8, 2),
    )
    frozen = {("a.weight", 0): "its extent in space or batch cannot shrink"}
    return Case(model, vector(5, 3), {"skip": 4, "wide": 5}, frozen, zeros=False)


@case
def filters_of_frequencies() -> Case:
    """GFNet: a Fourier transform over the tokens, a complex weight for each frequency and channel, and back; channels go."""

    def forward(self: Any, x: Tensor) -> Any:
        y = torch.fft.rfft2(self.a(x), dim=(1, 2), norm="ortho")
        y = torch.fft.irfft2(y * torch.view_as_complex(self.filter), s=(4, 6), dim=(1, 2), norm="ortho")
        return self.b(y * F.logsigmoid(y))

    model = net(forward, a=nn.Linear(3, 6), filter=nn.Parameter(torch.randn(4, 4, 6, 2)), b=nn.Linear(6, 2))
    return Case(model, vector(4, 6, 3), {"a": 6})


@case
def features_mixed_by_a_fourier_transform() -> Case:
    """FNet, the negative twin: a transform over tokens and features holds the features."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        y = torch.fft.fft(torch.fft.fft(y, dim=-1), dim=-2).real
        return self.d(F.gelu(self.c(y)))

    model = net(forward, a=nn.Linear(3, 6), c=nn.Linear(6, 8), d=nn.Linear(8, 2))
    return Case(model, vector(5, 3), {"c": 8}, {("a.weight", 0): "transformed along its axis"})


@case
def layers_without_width() -> Case:
    """A position net whose width was divided down to nothing gives its bias: that is nothing that was removed."""

    def forward(self: Any, x: Tensor) -> Any:
        return self.b(F.gelu(self.a(x) + F.linear(x[..., :0], self.none, self.bias)))

    none, bias = nn.Parameter(torch.randn(1, 0)), nn.Parameter(torch.randn(1))
    model = net(forward, a=nn.Linear(3, 6), none=none, bias=bias, b=nn.Linear(6, 2))
    return Case(model, vector(5, 3), {"a": 6}, zeros=False)


class _Spectral(nn.Module):
    """FNO's layer: a complex matrix for each of the lowest frequencies, and zeros for the others."""

    def __init__(self, inputs: int, outputs: int, modes: int = 3) -> None:
        super().__init__()
        self.modes, self.outputs = modes, outputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs, modes, modes, dtype=torch.complex128))

    def forward(self, x: Tensor) -> Any:
        found, m = torch.fft.rfft2(x), self.modes
        made = torch.zeros(len(x), self.weight.shape[1], x.shape[-2], x.shape[-1] // 2 + 1, dtype=torch.complex128)
        made[:, :, :m, :m] = torch.einsum("bixy,ioxy->boxy", found[:, :, :m, :m], self.weight)
        return torch.fft.irfft2(made, s=x.shape[-2:])


@case
def spectral_convolution() -> Case:
    """FNO: products with complex weights in the space of frequencies, beside a convolution; channels go."""

    def forward(self: Any, x: Tensor) -> Any:
        y = F.gelu(self.spectral(F.gelu(self.lift(x))) + self.beside(x))
        return self.out(y)

    model = net(forward, lift=nn.Conv2d(3, 6, 1), spectral=_Spectral(6, 5), beside=nn.Conv2d(3, 5, 1), out=nn.Conv2d(5, 2, 1))
    return Case(model, vector(3, 8, 6), {"lift": 6, "spectral": 5}, macs=False)


@case
def spectrogram_there_and_back() -> Case:
    """Masks of a spectrogram, by windows that are made in the forward; sources are told apart by channels beside the batch."""

    def forward(self: Any, x: Tensor) -> Any:
        window = torch.hann_window(16, dtype=x.dtype, device=x.device)
        spectrum = torch.stft(x, 16, 4, window=window, return_complex=True)
        masks = self.b(F.relu(self.a(spectrum.abs().unsqueeze(1)))).sigmoid()
        sources = (spectrum.unsqueeze(1) * masks).flatten(0, 1)
        waves = torch.istft(sources, 16, 4, window=window, length=x.shape[-1])
        return self.mix(waves.view(x.shape[0], -1, x.shape[-1]))

    model = net(forward, a=conv(1, 6), b=conv(6, 4), mix=nn.Conv1d(4, 2, 1))
    return Case(model, vector(64), {"a": 6, "b": 4})
