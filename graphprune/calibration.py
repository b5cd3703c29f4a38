"""Calibration data: batches of real inputs, with targets where a criterion needs them, read as often as is asked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count, islice
from typing import Any, Final, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from graphprune.errors import GraphpruneError, MemoryShortError, UsageError, first_line, typed_line
from graphprune.failures import lost_worker, memory_is_out, worker_is_lost
from graphprune.ir.program import Inputs

Loss: TypeAlias = Callable[[Any, Any], Tensor]

_IGNORED: Final = -100  # the target that a cross-entropy leaves out
_TARGETS: Final = ("labels", "target", "targets")  # keywords of a batch that are no input but what the loss compares with


@dataclass(frozen=True)
class Batch:
    """Some samples. inputs: what the model is called with, samples along axis 0. target: what the loss compares with."""

    inputs: Inputs
    target: Any = None

    @cached_property
    def size(self) -> int:
        """Number of samples: the length of the first tensor."""
        first = next((leaf for leaf in tree_leaves((self.inputs.args, dict(self.inputs.kwargs))) if isinstance(leaf, Tensor)), None)
        if first is None or not first.dim():
            raise UsageError("A calibration batch holds no tensor with samples along its first axis. Give batches of tensors.")
        return len(first)

    def pick(self, index: slice | Tensor) -> Batch:
        """Some of the samples; what does not have one entry for each sample stays as it is."""

        def taken(leaf: Any) -> Any:
            return leaf[index] if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == self.size else leaf

        return Batch(self.inputs.map(taken), tree_map(taken, self.target))

    def parts(self, size: int | None) -> Iterator[Batch]:
        """The samples in their order, in batches of at most so many; None: all of them at once."""
        if size is None or size >= self.size:
            yield self
            return
        for begin in range(0, self.size, size):
            yield self.pick(slice(begin, begin + size))

    def to(self, device: torch.device, like: Inputs | None = None) -> Batch:
        """On a device; floating-point inputs in the dtype of ``like``, whose first floating-point tensor decides."""
        examples = () if like is None else tree_leaves((like.args, dict(like.kwargs)))
        dtype = next((leaf.dtype for leaf in examples if isinstance(leaf, Tensor) and leaf.is_floating_point()), None)

        def moved(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return leaf.to(device, dtype if leaf.is_floating_point() else None)

        still = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, self.target)
        return Batch(self.inputs.map(moved), still)


def as_batch(item: Any, taken: Collection[str] = ()) -> Batch:
    """A batch from what data loaders yield.

    A tensor is one input. A pair is (inputs, target), its inputs a tensor, a tuple of arguments or a dict of keywords. A dict
    is keyword inputs; ``labels``, ``target`` or ``targets`` in it is the target, and an input, too, where it is among the keywords
    taken by the model. Raises UsageError for anything else.
    """
    if isinstance(item, Batch):
        return item
    if isinstance(item, Tensor):
        return Batch(Inputs((item,)))
    if isinstance(item, Mapping):
        target = next((item[key] for key in _TARGETS if key in item), None)
        return Batch(Inputs((), {key: value for key, value in item.items() if key not in _TARGETS or key in taken}), target)
    if isinstance(item, (tuple, list)) and len(item) in (1, 2):
        given, target = item[0], item[1] if len(item) == 2 else None
        return Batch(as_batch(given, taken).inputs if not isinstance(given, (tuple, list)) else Inputs(tuple(given)), target)
    raise UsageError(
        f"A calibration batch is {type(item).__name__}{f' of {len(item)} items' if isinstance(item, (tuple, list)) else ''}. "
        "Yield a tensor, a pair (inputs, target), or a dict of keyword inputs."
    )


def default_loss(output: Any, target: Any) -> Tensor:
    """The mean loss of a batch: the model's own ``loss`` if it returns one, else cross-entropy on integer targets (shape of the
    output without its class axis 1), or the mean squared error on targets of the output's shape.

    Raises UsageError where there is nothing to compare with.
    """
    own = _own_loss(output)
    if own is not None:
        return torch.as_tensor(own)
    first = next((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), None)
    if first is None and hasattr(output, "logits"):
        first = output.logits
    if target is None or first is None:
        raise UsageError(
            "The criterion needs a loss, and the calibration data have no targets. Give batches of (inputs, target). Where the "
            "model computes its own loss (start_positions), have its targets among the example inputs, too."
        )
    if not isinstance(target, Tensor):
        raise UsageError(
            f"The targets are {type(target).__name__}, which no usual loss compares with. Give them as one tensor, or "
            "Calibration(batches, loss=function)."
        )
    if target.is_floating_point():
        if first.shape != target.shape:
            raise UsageError(
                f"The output {list(first.shape)} and the targets {list(target.shape)} do not fit a mean squared error. "
                "Give classes as integers, or Calibration(batches, loss=function) for another loss."
            )
        return F.mse_loss(first, target)
    if first.dim() < 2 or first.shape[:1] + first.shape[2:] != target.shape:
        raise UsageError(
            f"The output {list(first.shape)} and the targets {list(target.shape)} do not fit a cross-entropy. "
            "Where the model computes its own loss, have the targets among the example inputs, too; "
            "or give Calibration(batches, loss=function)."
        )
    wrong = target[(target != _IGNORED) & ((target < 0) | (target >= first.shape[1]))]
    if wrong.numel():  # a GPU would not go on after it
        raise UsageError(
            f"The target {int(wrong[0])} is none of the {first.shape[1]} classes of the output. Where it stands for what does not "
            f"count, make it {_IGNORED}, or give Calibration(batches, loss=function)."
        )
    return F.cross_entropy(first, target)


def never_negative(loss: Loss, output: Any) -> bool:
    """Whether a loss of such an output is known to be at least 0: the default one is, unless it is the model's own."""
    return loss is default_loss and _own_loss(output) is None


def _own_loss(output: Any) -> Any:
    return output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)


class Calibration:
    """Batches of real inputs, read as often as is asked, in the same order each time.

    batches: an iterable of what :func:`as_batch` takes, such as a DataLoader; one that can be read only once (a generator) is
        kept in memory. samples: how many to use at most, from the start. loss: ``loss(output, target)``, the mean over a batch;
        only criteria with gradients ask for it. name: for messages. watch: see :meth:`watched`. taken: see :meth:`called_as`.

    >>> data = Calibration([(torch.zeros(3, 8), torch.tensor([0, 1, 0])), (torch.zeros(3, 8), torch.tensor([1, 1, 0]))], samples=4)
    >>> [batch.size for batch in data]
    [3, 1]
    >>> [(label, batch.size) for label, batch in data.by_class(10)]
    [(0, 2), (1, 2)]
    """

    def __init__(
        self,
        batches: Iterable[Any],
        *,
        samples: int | None = None,
        loss: Loss = default_loss,
        name: str = "the calibration data",
        watch: Callable[[int], None] | None = None,
        taken: Collection[str] = (),
    ) -> None:
        if samples is not None and samples < 1:
            raise UsageError(f"Calibration on {samples} samples is not possible; give at least 1.")
        self._batches = _Kept(batches) if isinstance(batches, Iterator) else batches
        self.samples, self.loss, self.name, self._watch, self._taken = samples, loss, name, watch, taken

    def watched(self, watch: Callable[[int], None]) -> Calibration:
        """The same data; ``watch`` is told how many samples were used, after each batch."""
        return self._with(watch=watch)

    def called_as(self, example: Inputs) -> Calibration:
        """The same data for a model that is called as an example shows: targets in a dict are inputs where they are in the example.

        >>> batch = {"x": torch.zeros(2, 3), "labels": torch.ones(2)}
        >>> [sorted(read.inputs.kwargs) for read in Calibration([batch]).called_as(Inputs((), batch))]
        [['labels', 'x']]
        """
        return self._with(taken=tuple(example.kwargs))

    def _with(self, **changes: Any) -> Calibration:
        kept = {"samples": self.samples, "loss": self.loss, "name": self.name, "watch": self._watch, "taken": self._taken}
        return Calibration(self._batches, **{**kept, **changes})

    def replaced(self, function: Callable[[Iterable[Any], int | None], Iterable[Any]]) -> Calibration:
        """Other batches, which a function makes of these and of how many samples to use at most; all else stays."""
        return Calibration(function(self._batches, self.samples), loss=self.loss, name=self.name, watch=self._watch)

    def part(self, index: int, count: int) -> Calibration:
        """Every ``count``-th batch from the ``index``-th on: what one of several processes measures.

        >>> data = Calibration([torch.zeros(2, 3), torch.ones(4, 3), torch.zeros(1, 3)])
        >>> [batch.size for batch in data.part(0, 2)], [batch.size for batch in data.part(1, 2)]
        ([2, 1], [4])
        """
        return Calibration(_Part(self, index, count), samples=self.samples, loss=self.loss, name=self.name)

    def run_error(self, batch: Batch, error: Exception, where: str = "") -> GraphpruneError:
        """The error of a model that does not run on a batch. where: how far it came."""
        if memory_is_out(error):
            return _memory_short(self.name, batch.inputs, batch.size, error, where)
        return run_error(self.name, batch.inputs, error)

    def __iter__(self) -> Iterator[Batch]:
        """The batches; the last one is cut where ``samples`` are reached. Raises UsageError when there are none."""
        left = self.samples
        found = 0
        for item in guarded(self._batches, f"Reading {self.name} failed at"):
            batch = as_batch(item, self._taken)
            if left is not None and batch.size > left:
                batch = batch.pick(slice(left))
            if batch.size:
                yield batch
                found += batch.size
                if self._watch is not None:
                    self._watch(found)
            left = None if left is None else left - batch.size
            if left == 0:
                return
        if not found:
            raise UsageError(f"There are no samples in {self.name}. Give at least one batch.")

    def by_class(self, per_class: int) -> Iterator[tuple[int, Batch]]:
        """For each class that occurs, in ascending order, one batch of its first ``per_class`` samples.

        Raises UsageError where targets are not integers of shape (samples,).
        """
        parts: dict[int, list[Batch]] = defaultdict(list)
        have: dict[int, int] = defaultdict(int)
        for batch in self:
            labels = batch.target
            if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.shape != (batch.size,):
                raise UsageError(f"Classes need integer targets, one for each sample, which {self.name} does not have.")
            for label in labels.unique().tolist():
                index = (labels == label).nonzero().flatten()[: per_class - have[label]]
                if index.numel():
                    have[label] += index.numel()
                    parts[label].append(batch.pick(index))
        for label in sorted(parts):
            yield label, joined(parts[label])


def guarded(batches: Iterable[Any], where: str) -> Iterator[Any]:
    """The batches; what fails while they are read becomes a UsageError that says where, with the number of the batch."""
    rest = iter(batches)
    for batch in count():
        try:
            item = next(rest)
        except StopIteration:
            return
        except GraphpruneError:
            raise
        except Exception as error:  # user code, or files
            if worker_is_lost(error):
                raise UsageError(f"{where} batch {batch}. {lost_worker(error)}") from error
            reason = typed_line(error)
            raise UsageError(f"{where} batch {batch}: {reason}. Repair or remove the sample.") from error
        yield item


#: What a model may raise that does not run on a batch, or for which there is too little memory.
MODEL_ERRORS: Final = (RuntimeError, ValueError, TypeError, IndexError, MemoryError)


def run_error(name: str, inputs: Inputs, error: Exception) -> GraphpruneError:
    """The error of a model that does not run on calibration data. name: what the data are called."""
    if memory_is_out(error):
        return _memory_short(name, inputs, 0, error)
    if worker_is_lost(error):
        return UsageError(lost_worker(error))
    return UsageError(
        f"The model does not run on {name} ({inputs.describe()}): {first_line(error)}. Give batches as the model takes them."
    )


def _memory_short(name: str, inputs: Inputs, samples: int, error: Exception, where: str = "") -> MemoryShortError:
    place = f" at {where}" if where else ""
    return MemoryShortError(
        f"Out of memory{place}, on {name} ({inputs.describe()}): {first_line(error)}. Give smaller batches, or fewer samples.",
        samples,
    )


def no_data(what: str) -> UsageError:
    """The error of what needs calibration data where there are none."""
    return UsageError(f"{what} needs calibration data. Give data= (or --calibrate) with batches as the model takes them.")


@dataclass(frozen=True)
class _Part:
    """Some of the batches of calibration data, read as often as is asked."""

    whole: Calibration
    index: int
    count: int

    def __iter__(self) -> Iterator[Batch]:
        return islice(iter(self.whole), self.index, None, self.count)


class _Kept:
    """What a one-time iterator yields, kept when it is first read and as far as it is read."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._rest = iterator
        self._seen: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        return chain(list(self._seen), self._more())

    def _more(self) -> Iterator[Any]:
        for item in self._rest:
            self._seen.append(item)
            yield item


def joined(batches: Sequence[Batch]) -> Batch:
    """Batches of equal structure, and samples of equal shapes, as one."""

    def join(*leaves: Any) -> Any:
        return torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0]

    args = tree_map(join, *(batch.inputs.args for batch in batches))
    kwargs = tree_map(join, *(dict(batch.inputs.kwargs) for batch in batches))
    return Batch(Inputs(args, kwargs), tree_map(join, *(batch.target for batch in batches)))
