"""The built-in training loop: a method's ``train`` and ``evaluate`` for those who have no loop of their own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._pytree import tree_leaves

from graphprune.calibration import guarded
from graphprune.errors import DivergedError, UsageError, first_line
from graphprune.ir.twins import in_mode
from graphprune.training import sharding
from graphprune.training.data import TrainingData
from graphprune.training.distillation import distilled
from graphprune.training.processes import Processes
from graphprune.training.samples import Samples
from graphprune.training.settings import Training

_LOOK: Final = 20  # steps between two looks at the loss, each of which waits for the device
_DTYPES: Final = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Progress:
    """Where a training is. epoch: of the schedule. batch, batches: how many of the epoch are done, of how many. loss: the mean of
    the last batches."""

    epoch: int
    batch: int
    batches: int
    loss: float


class Trainer:
    """Training and judging of classifiers on labelled samples.

    ``trainer.train`` and ``trainer.evaluate`` are what a method asks for. Run under ``torchrun`` or ``accelerate launch``, the
    processes share each batch, whose size stays that of the settings, and judge each sample once.

    watch: is told the progress every few steps and at the end of each epoch. device: None takes the accelerator that there is.
    Models are moved there and stay there.

    Raises UsageError when accelerate is not installed, batches cannot be shared equally by the processes, or a setting is not
    for sharded training.
    """

    def __init__(
        self,
        data: TrainingData,
        settings: Training,
        *,
        watch: Callable[[Progress], None] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.data, self.settings, self.watch = data, settings, watch
        self.processes = Processes(device, shard=settings.shard)
        _check_sharded(settings, self.processes.sharded)
        parts = self.processes.count * settings.accumulate
        if len(data.train) < settings.batch_size:
            raise UsageError(f"{data.name} has {len(data.train)} training samples, fewer than batch_size={settings.batch_size}.")
        if settings.batch_size % parts:
            raise UsageError(
                f"Batches of {settings.batch_size} cannot be computed in {parts} equal parts: {self.processes.count} processes, "
                f"accumulate={settings.accumulate}. Choose another batch_size."
            )
        self.classes = data.classes
        self._dtype = _DTYPES[settings.precision]

    def train(self, model: nn.Module, epochs: range, state: Any, teacher: nn.Module | None = None) -> dict[str, Any]:
        """Train in place for these epochs of the schedule, and return the new state.

        state: what the last call returned for this model, or None: ``{"optimiser", "ema", "scaler"}``, the last two where they
            are in use. It is left as it is. The order of the samples and their augmentation are drawn from torch's generator
            at each epoch.
        teacher: a model to learn from as well, as the settings say.

        Raises DivergedError, naming epoch and batch, when the loss is NaN or infinite; the model is not usable then. Raises
        UsageError when the data cannot be read, or have more classes than the model.
        """
        if epochs.step != 1 or epochs.start < 0 or epochs.stop > self.settings.epochs:
            raise UsageError(f"Epochs {list(epochs)} are not consecutive ones of the {self.settings.epochs} of the schedule.")
        where = torch.device("cpu") if self.processes.sharded else None  # the whole of it waits in main memory
        run = _Run(self, self._placed(model, where), state, teacher if teacher is None else self._placed(teacher))
        with in_mode(run.model, True), nullcontext() if teacher is None else in_mode(teacher, False):
            for epoch in epochs:
                run.epoch(epoch)
        return run.finish()

    def evaluate(self, model: nn.Module) -> float:
        """The share of validation samples whose class the model ranks first, in eval mode and counted exactly."""
        return self._accuracy(model, self.data.validation, "validation")

    def test(self, model: nn.Module) -> float:
        """The same on the test samples, for the end alone. Raises UsageError where there are none."""
        if self.data.test is None:
            raise UsageError(f"{self.data.name} has no test samples. Give data with a test part.")
        return self._accuracy(model, self.data.test, "test")

    def _accuracy(self, model: nn.Module, samples: Samples, name: str) -> float:
        processes = self.processes
        forward = self._compiled(self._placed(model))
        order = torch.arange(processes.index, len(samples), processes.count)
        right = torch.zeros((), dtype=torch.int64, device=processes.device)
        batches = samples.batches(order, self.settings.batch_size // processes.count, processes.device, None)
        with torch.no_grad(), in_mode(model, False):
            for x, y in guarded(batches, f"The {name} data fail at"):
                with self.autocast():
                    right += (self.scores(forward, self.prepared(x, model)).argmax(1) == y).sum()
        return int(processes.total(right)) / len(samples)

    def prepared(self, x: Tensor, model: nn.Module) -> Tensor:
        """Inputs in the dtype of the model, and in the memory format of the settings."""
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), x.dtype)
        x = x.to(dtype) if x.is_floating_point() else x
        return x.contiguous(memory_format=torch.channels_last) if self.settings.channels_last and x.dim() == 4 else x

    def scores(self, forward: nn.Module, x: Tensor) -> Tensor:
        """The class scores of a batch. Raises UsageError where there are fewer than the data have classes."""
        logits = logits_of(forward(x))
        if logits.dim() != 2 or logits.shape[1] < self.classes:
            raise UsageError(
                f"The model returns {list(logits.shape)} for {len(x)} samples of {self.data.name}, with {self.classes} classes. "
                f"Give a classifier of {self.classes}, or a loop of your own."
            )
        return logits

    def autocast(self) -> Any:
        """The context of a forward in the precision of the settings."""
        return nullcontext() if self._dtype is None else torch.autocast(self.processes.device.type, self._dtype)

    def _placed(self, model: nn.Module, device: torch.device | None = None) -> nn.Module:
        device = device or self.processes.device
        if self.settings.channels_last:
            return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
        return model.to(device)

    def _compiled(self, model: nn.Module) -> nn.Module:
        if self.settings.compile == "no":
            return model
        if isinstance(model, fx.GraphModule):
            _ = model.code  # generated here, if it is not yet: Dynamo does not trace how
        return cast(nn.Module, torch.compile(model, backend=self.settings.compile))


class _Run:
    """One call of train."""

    def __init__(self, trainer: Trainer, model: nn.Module, state: Any, teacher: nn.Module | None) -> None:
        self.trainer, self.settings, self.processes = trainer, trainer.settings, trainer.processes
        self.given, self.teacher = model, teacher
        self.wrapped = self.processes.wrap(model)
        self.forward = trainer._compiled(self.wrapped)
        self.model = self.wrapped if self.processes.sharded else model
        self.optimiser = build_optimiser(self.model, self.settings)
        self.averaged = None
        if self.settings.ema:
            self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(self.settings.ema), use_buffers=True)
        self.scaler = torch.amp.GradScaler(self.processes.device.type, enabled=self.settings.precision == "fp16")
        self._load(state or {})

    def _load(self, state: Mapping[str, Any]) -> None:
        state = copy.deepcopy(state)  # optimisers go on in the tensors that they load
        own = [{key: value for key, value in group.items() if key != "params"} for group in self.optimiser.param_groups]
        try:
            if "optimiser" in state:
                load = sharding.load_optimiser_state if self.processes.sharded else torch.optim.Optimizer.load_state_dict
                load(self.optimiser, state["optimiser"])
            if self.averaged is not None and "ema" in state:
                self.averaged.load_state_dict(state["ema"])
            if self.scaler.is_enabled() and "scaler" in state:
                self.scaler.load_state_dict(state["scaler"])
        except (ValueError, KeyError, RuntimeError) as error:
            raise UsageError(f"The state is not one of a training of this model: {first_line(error)}.") from error
        for group, options in zip(self.optimiser.param_groups, own, strict=True):
            group.update(options)  # the settings count, whatever they were when the state was made

    def finish(self) -> dict[str, Any]:
        """The model that was given has been trained now; the state to go on from."""
        sharded = self.processes.sharded
        if sharded:
            sharding.put_back(self.given, self.model)
        result = {"optimiser": sharding.optimiser_state(self.optimiser) if sharded else self.optimiser.state_dict()}
        if self.averaged is not None:
            result["ema"] = self.averaged.state_dict()
        if self.scaler.is_enabled():
            result["scaler"] = self.scaler.state_dict()
        return result

    def epoch(self, epoch: int) -> None:
        settings, processes, samples = self.settings, self.processes, self.trainer.data.train
        seed = torch.randint(2**62, (), device="cpu").to(processes.device)
        processes.of_first([seed])
        drawn = int(seed)
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(drawn))
        batches = len(samples) // settings.batch_size
        # Each process takes every count-th sample of the order, so that a batch holds the same samples however many they are.
        own = order[processes.index : batches * settings.batch_size : processes.count]
        part = settings.batch_size // processes.count // settings.accumulate
        with processes.apart(drawn):
            parts = guarded(
                samples.batches(own, part, processes.device, drawn + processes.index), f"The training data fail at epoch {epoch},"
            )
            self._steps(parts, epoch, batches)
        self._finish(epoch)

    def _steps(self, parts: Iterator[tuple[Tensor, Tensor]], epoch: int, batches: int) -> None:
        losses = torch.zeros(_LOOK, device=self.processes.device)
        for batch in range(batches):
            rate = self.settings.learning_rate(epoch + batch / batches)
            losses[batch % _LOOK] = self._step(parts, rate)
            if (batch + 1) % _LOOK == 0 or batch + 1 == batches:
                self._look(losses[: batch % _LOOK + 1], epoch, batch + 1, batches)

    def _step(self, parts: Iterator[tuple[Tensor, Tensor]], rate: float) -> Tensor:
        """One step of the optimiser; the mean loss of its batch in this process."""
        total = torch.zeros((), device=self.processes.device)
        for left in reversed(range(self.settings.accumulate)):
            x, y = next(parts)
            with self.wrapped.no_sync() if left and isinstance(self.wrapped, DistributedDataParallel) else nullcontext():
                loss = self._loss(self.trainer.prepared(x, self.model), y) / self.settings.accumulate
                torch.autograd.backward(self.scaler.scale(loss))
            total += loss.detach()
        if self.settings.clip:
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        return total

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        settings = self.settings
        with self.trainer.autocast():
            logits = self.trainer.scores(self.forward, x)
            loss = F.cross_entropy(logits, y, label_smoothing=settings.label_smoothing)
            if self.teacher is None:
                return loss
            with torch.no_grad():
                taught = logits_of(self.teacher(x))
            return distilled(loss, logits, taught, weight=settings.distil_weight, temperature=settings.temperature)

    def _look(self, losses: Tensor, epoch: int, batch: int, batches: int) -> None:
        """Look at the last losses, averaged over the processes, so that all of them stop where one diverges."""
        means = (self.processes.total(losses) / self.processes.count).tolist()
        bad = next((index for index, loss in enumerate(means) if loss - loss != 0), None)
        if bad is not None:
            raise DivergedError(
                f"The loss is {means[bad]} at epoch {epoch}, batch {batch - len(means) + bad} of {batches}. "
                "Lower the learning rate, or clip the gradients."
            )
        if self.trainer.watch is not None:
            self.trainer.watch(Progress(epoch, batch, batches, sum(means) / len(means)))

    def _finish(self, epoch: int) -> None:
        """What processes saw apart, such as statistics of batches, is made one; at the end of the schedule averages move in."""
        self.processes.of_first(self.model.buffers())
        if self.averaged is None:
            return
        self.processes.of_first(self.averaged.buffers())
        if epoch == self.settings.epochs - 1:
            self.model.load_state_dict(self.averaged.module.state_dict())


def _check_sharded(settings: Training, sharded: bool) -> None:
    plain = {"ema": 0.0, "compile": "no", "precision": "no" if settings.precision == "fp16" else settings.precision}
    other = [f"{name}={value}" for name, value in settings.model_dump(include={*plain}).items() if value != plain[name]]
    if sharded and other:
        raise UsageError(f"Sharded training does not go with {other[0]}. Leave it out; bf16 is a precision that it takes.")


def build_optimiser(model: nn.Module, settings: Training) -> torch.optim.Optimizer:
    """The optimiser of the settings, on named parameters; vectors are a group of their own where they are not decayed.

    Raises UsageError where no parameter is trained.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not named:
        raise UsageError("The model has no parameters that are trained. Set requires_grad on some.")
    spared = [item for item in named if item[1].dim() < 2 and not settings.decay_norms]
    others = [item for item in named if item[1].dim() >= 2 or settings.decay_norms]
    groups = [group for group in ({"params": others}, {"params": spared, "weight_decay": 0.0}) if group["params"]]
    if settings.optimiser == "adamw":
        return torch.optim.AdamW(groups, settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        groups, settings.lr, momentum=settings.momentum, nesterov=settings.nesterov, weight_decay=settings.weight_decay
    )


def logits_of(output: Any) -> Tensor:
    """The class scores in what a model returns, shape (batch, classes): its ``logits`` if it has them, else its first tensor."""
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        found = next((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), None)
    if found is None:
        raise UsageError(f"The model returns {type(output).__name__} without a tensor of class scores. Give a loop of your own.")
    return found
