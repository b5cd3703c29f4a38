"""Questions about values: what integer inputs and buffers decide alone is answered, checked in the graph, or stays variable."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import graphprune
from tests.checking import max_error, run
from tests.graphprune.tracing.forwards import double

LENGTHS = torch.tensor([5, 3, 4])
OTHERS = torch.tensor([2, 6, 3])
X = double(3, 8, 4)
EXAMPLE = (X, LENGTHS)


class Padded(nn.Module):
    """Sequences between two layers; the body gets what the first one makes, and their lengths."""

    body: Any

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 6, dtype=torch.float64)
        self.b = nn.Linear(6, 2, dtype=torch.float64)
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("ready", torch.tensor(True))

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        return self.b(self.body(self.a(x), lengths))


def padded(body: Any) -> Any:
    """A model with this body, in eval mode."""
    return type("Padded", (Padded,), {"body": body})().eval()


def pruned(model: nn.Module) -> Any:
    """The slim model, proved."""
    return graphprune.prune(model, EXAMPLE, target="channels=60%").model


def cut_to_the_longest(self: Any, y: Any, lengths: Any) -> Any:
    return y[:, : int(lengths.max())]


def cut_to_an_item(self: Any, y: Any, lengths: Any) -> Any:
    return y[:, : lengths.max().item()]


def cut_to_a_tensor(self: Any, y: Any, lengths: Any) -> Any:
    z = torch.zeros_like(y)
    z[..., : lengths.max(), :] = 1
    return (y * z)[:, lengths.min() - 1 : lengths.max()]


def scaled_by_a_mean(self: Any, y: Any, lengths: Any) -> Any:
    return y * float(lengths.double().mean())


def masked_by_positions(self: Any, y: Any, lengths: Any) -> Any:
    places = torch.arange(lengths.max().item() + 1)
    mask = places[None] < lengths[:, None]
    return y[:, : len(places)] * mask[..., None]


def cut_one_by_one(self: Any, y: Any, lengths: Any) -> Any:
    rows = [F.pad(row[:length], (0, 0, 0, 8 - length)) for row, length in zip(y, lengths.tolist(), strict=True)]
    return torch.stack(rows)


def cut_by_pairs(self: Any, y: Any, lengths: Any) -> Any:
    bounds = torch.stack([lengths - 1, lengths + 1], 1).tolist()
    return torch.stack([row[start:end].sum(0) for row, (start, end) in zip(y, bounds, strict=True)])


def viewed_by_a_tensor(self: Any, y: Any, lengths: Any) -> Any:
    half = torch.div(y.size(1), 2, rounding_mode="floor")
    return y.view(y.size(0), half, 2, -1).sum(2)


def resized_to_tensors(self: Any, y: Any, lengths: Any) -> Any:
    return F.interpolate(y.transpose(1, 2), size=(lengths.max(),)).transpose(1, 2)


def written_before(self: Any, y: Any, lengths: Any) -> Any:
    later = lengths.clone()
    view = later[1:]
    view += 1
    return y[:, : later.max().item()] + later[1].item()


def those_of_a_mask(self: Any, y: Any, lengths: Any) -> Any:
    return y[torch.arange(8) < lengths[:, None]]


def sequences_of_a_mask(self: Any, y: Any, lengths: Any) -> Any:
    return y[lengths > 2].sum((0, 1)) * y[(lengths > 2).nonzero()[:, 0], 1]


def numbers_of_a_mask(self: Any, y: Any, lengths: Any) -> Any:
    return y + torch.masked_select(lengths, lengths > 2).sum()


def repeated_by_lengths(self: Any, y: Any, lengths: Any) -> Any:
    return y.sum(1).repeat_interleave(lengths, 0)


def those_of_each_length(self: Any, y: Any, lengths: Any) -> Any:
    found, places, counts = torch.unique(lengths, return_inverse=True, return_counts=True)
    return y[places] * (len(found) + counts.sum() + torch.bincount(lengths).sum())


def packed_and_padded(self: Any, y: Any, lengths: Any) -> Any:
    return pad_packed_sequence(pack_padded_sequence(y, lengths, batch_first=True, enforce_sorted=False), batch_first=True)[0]


def packed_by_a_list(self: Any, y: Any, lengths: Any) -> Any:
    return pack_padded_sequence(y, lengths.sort(descending=True).values.tolist(), batch_first=True).data


def packed_by_an_array(self: Any, y: Any, lengths: Any) -> Any:
    return pack_padded_sequence(y, lengths.data.cpu().numpy(), batch_first=True, enforce_sorted=False).data * lengths.numpy().max()


def as_many_as_a_list_has(self: Any, y: Any, lengths: Any) -> Any:
    """What holds for a list as a whole holds for one of any number of items, as does its first item."""
    items = lengths.sort(descending=True).values.tolist()
    mask = torch.arange(max(items)) < torch.tensor(items)[:, None]
    packed = pack_padded_sequence(y, lengths.tolist(), batch_first=True, enforce_sorted=False)
    y = pad_packed_sequence(packed, batch_first=True)[0]
    return y[:, : items[0]] * mask[..., None] + y.new_ones(len(items), 1, 1) * min(items)


VARIABLE = [
    as_many_as_a_list_has,
    repeated_by_lengths,
    those_of_each_length,
    those_of_a_mask,
    sequences_of_a_mask,
    numbers_of_a_mask,
    cut_to_the_longest,
    packed_and_padded,
    packed_by_a_list,
    packed_by_an_array,
    cut_to_an_item,
    cut_to_a_tensor,
    scaled_by_a_mean,
    masked_by_positions,
    cut_one_by_one,
    cut_by_pairs,
    viewed_by_a_tensor,
    resized_to_tensors,
    written_before,
]


@pytest.mark.parametrize("body", VARIABLE, ids=lambda body: body.__name__)
def test_a_number_that_is_read_stays_variable(body: Any) -> None:
    model = padded(body)
    assert pruned(model).a.out_features < 6
    program = graphprune.capture(model, EXAMPLE)
    assert not program.opaque
    for lengths in (LENGTHS, OTHERS):
        assert max_error(run(program.module, (X, lengths)), run(model, (X, lengths))) < 1e-12


def where_all_are_long(self: Any, y: Any, lengths: Any) -> Any:
    return y * 2 if (lengths > 2).all() else y * 3


def where_none_is_short(self: Any, y: Any, lengths: Any) -> Any:
    return y * 2 if not (lengths <= 2).any().item() else y * 3


def where_equal(self: Any, y: Any, lengths: Any) -> Any:
    return y * 3 if torch.equal(lengths.clamp(min=3), lengths + 0) is False else y * 2


def where_a_number_is_large(self: Any, y: Any, lengths: Any) -> Any:
    return y * 2 if lengths.min().item() > 2 else y * 3


def as_often_as_there_are(self: Any, y: Any, lengths: Any) -> Any:
    for _ in range(int(lengths.min())):
        y = y * 2
    return y


def as_an_index(self: Any, y: Any, lengths: Any) -> Any:
    return y * [1.0, 2.0, 3.0, 4.0, 5.0, 6.0][lengths.min()]


def where_a_mask_of_ones_is_full(self: Any, y: Any, lengths: Any) -> Any:
    """The mask that code makes where it is given none; the activations give it its size alone."""
    mask = torch.ones_like(y[:, 0, 0]).bool() & (lengths > 2)
    return y * 2 if mask.all() else y * 3


CHECKED = {
    where_a_mask_of_ones_is_full: "bool(all_1) is True",
    where_all_are_long: "bool(all_1) is True",
    where_none_is_short: "bool(any_1) is False",
    where_equal: "equal(clamp) is True",
    where_a_number_is_large: "min_1.item() > 2",
    as_often_as_there_are: "min_1.item() == 3",
    as_an_index: "min_1.item() == 3",
}


@pytest.mark.parametrize("body", CHECKED, ids=lambda body: body.__name__)
def test_what_is_decided_by_values_is_checked(body: Any) -> None:
    model = padded(body)
    slim = pruned(model)
    same = torch.tensor([6, 3, 8])
    program = graphprune.capture(model, EXAMPLE)
    assert max_error(run(program.module, (X, same)), run(model, (X, same))) < 1e-12
    assert torch.isfinite(slim(X, same)).all()
    for module in (program.module, slim):
        with pytest.raises((AssertionError, RuntimeError), match=r"where .+ \(tracing/test_answers.py:\d+\)") as refusal:
            module(X, OTHERS)
        assert CHECKED[body] in str(refusal.value)


def test_a_list_of_other_length_is_read_whole() -> None:
    model = padded(as_many_as_a_list_has)
    program, slim = graphprune.capture(model, EXAMPLE), pruned(model)
    for lengths in (torch.tensor([2, 7]), torch.tensor([1, 8, 2, 2, 5])):
        inputs = double(len(lengths), 8, 4), lengths
        assert max_error(run(program.module, inputs), run(model, inputs)) < 1e-12
        assert slim(*inputs).shape == model(*inputs).shape


@pytest.mark.parametrize(
    "body",
    [
        lambda self, y, lengths: torch.stack([y[0, :length].sum(0) for length in lengths.tolist()]),
        lambda self, y, lengths: torch.stack([y[0, a:b].sum(0) for a, b in torch.stack([lengths - 1, lengths], 1).tolist()]),
        lambda self, y, lengths: torch.cat([y[:1] for _ in range(len(lengths.tolist()))]),
        lambda self, y, lengths: y[:1] * torch.tensor(lengths.tolist()[::-1]).sum(),
    ],
)
def test_a_list_that_is_taken_apart_has_as_many_items(body: Any) -> None:
    """They are in the graph one by one, so that more of them would be left out in silence."""
    model = padded(body)
    for module in (graphprune.capture(model, EXAMPLE).module, pruned(model)):
        assert max_error(run(module, (X, OTHERS)), run(module, (X, OTHERS))) == 0.0
        for lengths in (torch.tensor([5, 3]), torch.tensor([5, 3, 4, 2])):
            with pytest.raises((AssertionError, RuntimeError, IndexError), match=r"another branch|out of range"):
                module(double(len(lengths), 8, 4), lengths)


def test_packed_integers_decide() -> None:
    """Documents of sentences of words: the lengths of sentences are packed as these are."""

    def body(self: Any, y: Any, lengths: Any) -> Any:
        inner = pack_padded_sequence(
            lengths[:, None].clamp(max=3) + torch.arange(8), lengths.tolist(), batch_first=True, enforce_sorted=False
        )
        outer = pack_padded_sequence(y, lengths.tolist(), batch_first=True, enforce_sorted=False)
        words = outer.data.unsqueeze(1).expand(-1, 10, -1)
        return pack_padded_sequence(words, inner.data.tolist(), batch_first=True, enforce_sorted=False).data

    model = padded(body)
    program = graphprune.capture(model, EXAMPLE)
    assert not program.opaque and not program.scopes
    for lengths in (LENGTHS, torch.tensor([1, 8, 2, 3])):
        inputs = double(len(lengths), 8, 4), lengths
        assert max_error(run(program.module, inputs), run(model, inputs)) < 1e-12


def test_a_flag_among_the_buffers_is_checked() -> None:
    slim = pruned(padded(lambda self, y, lengths: y * 2 if self.ready else y * 3))
    slim(*EXAMPLE)
    slim.ready.fill_(False)
    with pytest.raises((AssertionError, RuntimeError), match="another branch"):
        slim(*EXAMPLE)


def test_a_number_among_the_buffers_stays_variable() -> None:
    slim = pruned(padded(lambda self, y, lengths: y * self.steps.item()))
    before = slim(X, LENGTHS) - slim.b.bias
    slim.steps *= 2
    assert max_error(slim(X, LENGTHS) - slim.b.bias, 2 * before) < 1e-12


@pytest.mark.parametrize(
    "body",
    [
        lambda self, y, lengths: y * 2 if y.sum() > 0 else y * 3,  # data
        lambda self, y, lengths: y * 2 if (y.new_ones(3) + y.sum()).sum() > 0 else y * 3,  # data after its size
        lambda self, y, lengths: y * 2 if self.a.weight.sum() > 0 else y * 3,  # what is pruned
        lambda self, y, lengths: pack_padded_sequence(y, y.sum((1, 2)).argsort() + 1, batch_first=True, enforce_sorted=False).data,
        lambda self, y, lengths: y + torch.as_tensor(y.detach().numpy()).sum(),  # an array of data
        lambda self, y, lengths: y * 2 if torch.randint(0, 2, (3,)).any() else y * 3,  # chance
    ],
)
def test_what_more_than_integers_decides_is_not_answered(body: Any) -> None:
    assert [scope.path for scope in graphprune.capture(padded(body), EXAMPLE).scopes] == ["a", "b"]


def test_integers_that_a_scope_is_given_decide_nothing() -> None:
    """The code around it may have made them of activations."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.part, self.last = nn.Linear(4, 4), padded(where_all_are_long), nn.Linear(2, 2)
            self.double()

        def forward(self, x: Tensor) -> Any:
            y = self.first(x)
            lengths = (y.sum((1, 2)) > float(y.mean())).long() + 3
            return self.last(self.part(y, lengths))

    program = graphprune.capture(Whole().eval(), X)
    assert {"part.a", "part.b"} <= {scope.path for scope in program.scopes}


def test_batch_sizes_that_a_scope_is_given_are_not_looked_up_where_they_are_not() -> None:
    """Torch reads them in memory, which a stand-in does not have."""

    class Padding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, data: Tensor, sizes: Tensor) -> Any:
            return self.b(torch._pad_packed_sequence(self.a(data), sizes, True, 0.0, len(sizes))[0])

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.part = nn.Linear(4, 4), Padding()
            self.double()

        def forward(self, x: Tensor) -> Any:
            y = self.first(x)
            lengths = (y.sum((1, 2)) > float(y.mean())).long() + 3
            packed = pack_padded_sequence(y, lengths, batch_first=True, enforce_sorted=False)
            return self.part(packed.data, packed.batch_sizes)

    program = graphprune.capture(Whole().eval(), X)
    assert {"part.a", "part.b"} <= {scope.path for scope in program.scopes}


def test_a_number_that_nothing_uses_leaves_nothing_in_the_graph() -> None:
    def body(self: Any, y: Any, lengths: Any) -> Any:
        lengths.max().item()
        return y

    program = graphprune.capture(padded(body), EXAMPLE)
    assert [str(node.target) for node in program.module.graph.nodes] == ["x", "lengths", "a", "b", "output"]


@pytest.mark.parametrize("body", [masked_by_positions, cut_by_pairs, those_of_a_mask, sequences_of_a_mask, those_of_each_length])
def test_a_slim_model_that_reads_values_is_saved_pickled_and_pruned_again(body: Any, tmp_path: Path) -> None:
    result = graphprune.prune(padded(body), EXAMPLE, target="channels=70%")
    slim: Any = result.model
    graphprune.save(result, tmp_path / "slim.safetensors")
    for copy in (graphprune.load(tmp_path / "slim.safetensors"), pickle.loads(pickle.dumps(slim))):
        assert torch.equal(copy(X, OTHERS), slim(X, OTHERS))
        again: Any = graphprune.prune(copy, EXAMPLE, target="channels=50%").model
        assert again.a.out_features < slim.a.out_features
        assert again(X, OTHERS).shape == slim(X, OTHERS).shape


def test_train_mode_reads_the_same_values() -> None:
    def body(self: Any, y: Any, lengths: Any) -> Any:
        return F.dropout(y[:, : lengths.max().item()], 0.5, self.training) * (2 if (lengths > 2).all() else 3)

    model = padded(body)
    program = graphprune.capture(model, EXAMPLE)
    assert not program.eval_only
    program.module.train(), model.train()
    torch.manual_seed(0)
    expected = model(X, torch.tensor([7, 3, 3]))
    torch.manual_seed(0)
    assert torch.equal(program.module(X, torch.tensor([7, 3, 3])), expected)


def test_a_truth_does_not_break_a_compiled_graph() -> None:
    slim = pruned(padded(where_all_are_long))
    targets: list[Any] = []

    def backend(module: fx.GraphModule, _: Any) -> Any:
        targets.extend(node.target for node in module.graph.nodes)
        return module.forward

    compiled: Any = torch.compile(slim, backend=backend, fullgraph=True)
    assert torch.equal(compiled(*EXAMPLE), slim(*EXAMPLE))
    assert torch._assert_async in targets
