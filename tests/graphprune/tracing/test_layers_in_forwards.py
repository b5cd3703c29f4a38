"""Layers with code of their own: attention, recurrent nets, hooks, parametrizations, checkpoints, scripts and custom functions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import graphprune
from tests.checking import analyse, run
from tests.graphprune.tracing.forwards import check, double, same
from tests.zoo.case import net, ready

X, Y = double(2, 4), double(3, 4)
FUSED = 1e-14  # eager attention in eval mode is one kernel, the traced one is not
SEQUENCE, LONGER = double(2, 5, 8), double(3, 7, 8)


def layers(**more: Any) -> dict[str, Any]:
    return {"a": nn.Linear(4, 6), "b": nn.Linear(6, 2), **more}


# -- attention -------------------------------------------------------------------------------------------------------

ATTENTION: dict[str, Any] = {
    "self": lambda self, x: self.m(x, x, x)[0],
    "no weights": lambda self, x: self.m(x, x, x, need_weights=False)[0],
    "weights": lambda self, x: self.m(x, x, x, average_attn_weights=False),
    "padding": lambda self, x: self.m(x, x, x, key_padding_mask=x[..., 0] > 9)[0],
    "mask": lambda self, x: self.m(x, x, x, attn_mask=torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1))[0],
    "causal": lambda self, x: self.m(
        x, x, x, attn_mask=nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype), is_causal=True
    )[0],
    "keywords": lambda self, x: self.m(query=x, key=x, value=x, need_weights=False)[0],
    "cross": lambda self, x: self.m(x, x[:, :2], x[:, :2])[0],
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name: str) -> None:
    module = nn.MultiheadAttention(8, 2, batch_first=True)
    model = net(lambda self, x: ATTENTION[name](self, self.p(x)), m=module, p=nn.Linear(8, 8))
    check(model, SEQUENCE, LONGER, groups=0, tolerance=FUSED)


@pytest.mark.parametrize(
    "options", [{"kdim": 6, "vdim": 5}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}], ids=str
)
def test_attention_options(options: Any) -> None:
    module = nn.MultiheadAttention(8, 2, batch_first=True, **options)

    def forward(self: Any, x: Tensor) -> Any:
        return self.m(x, x[..., : self.m.kdim], x[..., : self.m.vdim])[0]

    check(net(forward, m=module), SEQUENCE, LONGER, groups=0)


@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_encoder(norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=norm_first, activation="gelu")
    model = ready(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    found, _ = check(model, SEQUENCE, LONGER, tolerance=FUSED)
    assert sorted(group.size for group in found.groups.prunable if group.size == 12) == [12, 12]


def test_transformer_encoder_with_masks() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)

    def forward(self: Any, x: Tensor, padding: Tensor) -> Any:
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.m(x, mask=mask, src_key_padding_mask=padding, is_causal=False)

    model = net(forward, m=nn.TransformerEncoder(layer, 1, enable_nested_tensor=False))
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[0, 3:] = True
    check(model, (SEQUENCE, padding), (LONGER, torch.zeros(3, 7, dtype=torch.bool)), tolerance=FUSED)


@pytest.mark.parametrize("mask", ["argument", "made"])
def test_a_mask_that_nothing_is_said_of(mask: str) -> None:
    """torch would compare it with the causal one, which decides how it is computed and not what."""
    causal = nn.Transformer.generate_square_subsequent_mask
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 1)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 12, batch_first=True), 1)

    def forward(self: Any, x: Tensor, given: Any = None) -> Any:
        mask = causal(x.shape[1], dtype=x.dtype) if given is None else given
        return self.d(self.e(x, mask=mask), x, tgt_mask=mask)

    model = net(forward, e=encoder, d=decoder)
    examples = [(x, causal(x.shape[1], dtype=x.dtype)) if mask == "argument" else (x,) for x in (SEQUENCE, LONGER)]
    found, _ = check(model, *examples, tolerance=FUSED)
    assert not found.program.opaque


def test_transformer() -> None:
    model = ready(nn.Transformer(8, 2, 1, 1, 12, batch_first=True))
    check(model, (SEQUENCE, SEQUENCE[:, :3]), (LONGER, LONGER[:, :4]), tolerance=FUSED)


# -- recurrent nets --------------------------------------------------------------------------------------------------

RECURRENT: dict[str, Any] = {
    "lstm": lambda: nn.LSTM(8, 6, batch_first=True),
    "stacked and bidirectional": lambda: nn.LSTM(8, 6, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1),
    "projected": lambda: nn.LSTM(8, 6, proj_size=1, batch_first=True),
    "gru": lambda: nn.GRU(8, 6),
    "rnn": lambda: nn.RNN(8, 6, nonlinearity="relu", batch_first=True),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_nets(name: str) -> None:
    module = RECURRENT[name]()
    width = (module.proj_size or 6) * (2 if module.bidirectional else 1)
    model = net(lambda self, x: self.head(self.m(self.p(x))[0]), p=nn.Linear(8, 8), m=module, head=nn.Linear(width, 2))
    check(model, SEQUENCE, LONGER, groups=0)


def test_recurrent_nets_with_states() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        state = (x.new_zeros(1, x.shape[0], 6), torch.zeros(1, x.shape[0], 6, dtype=x.dtype))
        y, (h, _) = self.m(x, state)
        return self.head(y), self.cell(x[:, 0], h[0])

    check(net(forward, m=nn.LSTM(8, 6, batch_first=True), cell=nn.GRUCell(8, 6), head=nn.Linear(6, 2)), SEQUENCE, LONGER, groups=0)


def test_packed_sequences() -> None:
    """How many go on at each step is for the lengths of a call to say."""

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m = nn.LSTM(8, 6, batch_first=True)

        def forward(self, x: Tensor, lengths: Tensor) -> Any:
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return pad_packed_sequence(self.m(packed)[0], batch_first=True, total_length=x.shape[1])[0]

    def forward(self: Any, x: Tensor, lengths: Tensor) -> Any:
        return self.b(self.h(self.inner(self.a(x), lengths)).relu())

    model = net(forward, a=nn.Linear(8, 8), inner=Packed(), h=nn.Linear(6, 5), b=nn.Linear(5, 2))
    found = analyse(model, (SEQUENCE, torch.tensor([5, 3])))
    assert not found.program.opaque
    same(run(found.program.module, (LONGER, torch.tensor([7, 2, 4]))), run(model, (LONGER, torch.tensor([7, 2, 4]))))
    assert [group.size for group in found.groups.prunable] == [8, 6, 5]


# -- hooks, parametrizations and other code around layers ------------------------------------------------------------------


def test_hooks_run_as_part_of_the_model() -> None:
    model: Any = net(lambda self, x: self.b(self.act(self.a(x))), **layers(act=nn.ReLU()))
    model.a.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    model.a.register_forward_hook(lambda module, args, result: result + args[0].sum(1, True))
    model.act.register_forward_hook(lambda module, args, result: result * 3)
    model.b.register_forward_pre_hook(lambda module, args, kwargs: ((args[0] + 1,), kwargs), with_kwargs=True)
    check(model, X, Y, groups=0)


def test_hooks_that_only_watch() -> None:
    seen: list[Any] = []
    model: Any = net(lambda self, x: self.b(self.a(x)), **layers())
    model.a.register_forward_hook(lambda module, args, result: seen.append(result.detach().shape))
    check(model, X, Y, groups=0)


class Spiking(nn.Module):
    """A state between steps, which a method that is kept as an attribute reads (as those of snntorch do)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
        self.state = torch.zeros(0)
        self.step = self.leak
        ready(self)

    def leak(self, x: Tensor) -> Tensor:
        """A step."""
        return 0.5 * self.state + x

    def forward(self, x: Tensor) -> Any:
        """Three steps on one input."""
        self.state = torch.zeros_like(self.a(x))
        for _ in range(3):
            self.state = self.step(self.a(x)).relu()
        return self.b(self.state)


def test_a_method_that_is_kept_as_an_attribute_sees_the_state_of_the_copy() -> None:
    model = Spiking()
    model(torch.ones(2, 4, dtype=torch.float64))  # leaves a state behind that has no part in the next call
    check(model, X, Y)


class Recorder(nn.Module):
    """Returns what a layer of the model in it makes, which a hook has noted."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.ReLU()
        act.register_forward_hook(self.note)
        self.model = ready(nn.Sequential(nn.Linear(4, 6), act, nn.Linear(6, 2)))
        self.seen: list[Tensor] = []

    def note(self, module: nn.Module, args: Any, result: Tensor) -> None:
        """Note a result."""
        self.seen.append(result)

    def forward(self, x: Tensor) -> Any:
        """The result, and what was noted on the way."""
        self.seen.clear()
        return self.model(x), torch.stack([*self.seen]).sum(-1)


def test_hooks_that_are_methods_of_the_model_write_to_the_copy_that_is_traced() -> None:
    model = Recorder()
    check(model, X, Y)
    assert all(not tensor.is_meta for tensor in model.seen)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, nn.utils.weight_norm, parametrizations.spectral_norm,
                                  nn.utils.spectral_norm, parametrizations.orthogonal], ids=["weight norm", "old weight norm",
                                  "spectral norm", "old spectral norm", "orthogonal"])  # fmt: skip
def test_parametrizations(wrap: Any) -> None:
    model = net(lambda self, x: self.b(self.a(x).relu()), a=wrap(nn.Linear(4, 6)), b=nn.Linear(6, 2))
    check(model, X, Y, groups=0)


def test_checkpoints() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = checkpoint(self.a, x, use_reentrant=False)
        y = checkpoint_sequential(self.blocks, 2, y, use_reentrant=False)
        return self.b(checkpoint(lambda t: t.relu(), y, use_reentrant=False))

    blocks = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    check(net(forward, **layers(blocks=blocks)), X, Y)


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return grad * torch.sigmoid(x) * (1 + x * (1 - torch.sigmoid(x)))


def test_custom_autograd_functions() -> None:
    check(net(lambda self, x: self.b(Swish.apply(self.a(x))), **layers()), X, Y, groups=0)


def test_operators_by_name() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = torch.ops.aten.relu.default(self.a(x))
        return self.b(torch.ops.aten.add(y, torch.ops.aten.mul.Scalar(y, 2)))

    check(net(forward, **layers()), X, Y)


def test_einops() -> None:
    einops = pytest.importorskip("einops")

    def forward(self: Any, x: Tensor) -> Any:
        y = einops.rearrange(self.a(x), "b n (h d) -> b h n d", h=2)
        y = einops.repeat(y, "b h n d -> b h (r n) d", r=2)
        y = einops.einsum(y, y, "b h n d, b h m d -> b h n m").softmax(-1) @ y
        return self.b(einops.reduce(einops.rearrange(y, "b h n d -> b n (h d)"), "b n d -> b d", "mean"))

    check(net(forward, a=nn.Linear(8, 6), b=nn.Linear(6, 2)), SEQUENCE, LONGER, groups=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_scripted_submodule() -> None:
    inner = torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.ReLU()).double())
    model = net(lambda self, x: self.b(self.c(self.inner(self.a(x))).relu()), **layers(inner=inner, c=nn.Linear(6, 6)))
    slim = graphprune.prune(model, X, target="channels=50%")
    for _ in range(3):
        program = graphprune.capture(model, X)
        assert list(program.opaque) == ["inner"] and "scripted" in program.opaque["inner"]
        same(run(program.module, Y), run(model, Y))
    assert slim.report.verification is not None and slim.report.verification.passed
    for copied in (copy.deepcopy(program.module), copy.deepcopy(slim.model).train().eval()):
        assert isinstance(copied.get_submodule("inner"), torch.jit.ScriptModule)
    same(run(copy.deepcopy(slim.model), Y), run(slim.model, Y))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripted_functions_are_the_python_that_they_were_made_of() -> None:
    clamp = torch.jit.script(_soft_clamp)
    model = net(lambda self, x: self.b(clamp(self.a(x), 5.0)), **layers())
    found, slim = check(model, X, Y)
    assert len(found.groups.prunable) == 1 and "tanh()" in slim.code
    assert torch.equal(clamp(X, 5.0), _soft_clamp(X, 5.0))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_scripted_function_without_python_is_a_leaf_of_its_module() -> None:
    script = torch.jit.CompilationUnit("def tanh(x):\n    return x.tanh()\n").tanh
    inner = net(lambda self, x: script(x))
    model = net(lambda self, x: self.b(self.c(self.inner(self.a(x)))), **layers(inner=inner, c=nn.Linear(6, 6)))
    found, _ = check(model, X, Y)
    assert "no Python to trace" in found.program.opaque["inner"]


def _soft_clamp(t: Tensor, value: float) -> Tensor:
    return (t / value).tanh() * value


class OnData(nn.Module):
    """Control flow on values."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Any:
        return self.inner(x) if float(x.sum()) > 0 else F.relu(x) * int((x > 0).sum())


def test_branches_on_data_are_opaque_and_the_rest_is_exact() -> None:
    model = net(lambda self, x: self.b(self.c(self.data(self.a(x))).relu()), **layers(data=OnData(), c=nn.Linear(6, 6)))
    found, slim = check(model, X, Y, -Y)
    assert list(found.program.opaque) == ["data"] and isinstance(slim.get_submodule("data"), OnData)


@pytest.mark.parametrize("build", [
    lambda: net(lambda self, x: self.b(self.a(x).view(x.shape[0], -1)), **layers()),
    lambda: net(lambda self, x: self.b(self.a(x) / max(x.shape[0], 2) + int(x.shape[0] * 0.5)), **layers()),
    lambda: net(lambda self, x: self.b(F.dropout(self.a(x), 0.5, self.training)), **layers()),
], ids=["view", "numbers", "dropout"])  # fmt: skip
def test_compiled(build: Any) -> None:
    model = build()
    slim = graphprune.prune(model, X, target="channels=50%").model
    torch._dynamo.reset()
    compiled: Any = torch.compile(slim, fullgraph=True, backend="eager")
    for example in (X, Y):
        same(run(compiled, example), run(slim, example))
