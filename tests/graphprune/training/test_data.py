"""Data of a training: parts that never mix, the same for the same seed, prepared as the named recipes say."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset

from graphprune.errors import UsageError
from graphprune.training import samples
from graphprune.training.data import TrainingData, load_training_data, split
from graphprune.training.preparation import Preparation, preparation
from graphprune.training.samples import ArraySamples, DatasetSamples, Samples

CPU = torch.device("cpu")


def _all(samples: Samples, seed: int | None = None) -> tuple[Tensor, Tensor]:
    parts = list(samples.batches(torch.arange(len(samples)), 7, CPU, seed))
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def _arrays(count: int = 40, **options: Any) -> ArraySamples:
    x = torch.arange(count * 3 * 16, dtype=torch.int64).remainder(251).to(torch.uint8).reshape(count, 3, 4, 4)
    return ArraySamples(x, torch.arange(count) % 4, Preparation(**options))


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (50, 3, 8, 8), dtype=np.uint8), np.arange(50) % 5
    np.savez(tmp_path / "all.npz", x_train=x, y_train=y, x_test=x[:7], y_test=y[:7])
    np.savez(tmp_path / "train.npz", x_train=x, y_train=y)
    return tmp_path / "all.npz"


# -- parts ---------------------------------------------------------------------------------------------------------------


def test_the_split_is_stratified_repeatable_and_complete() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    samples = ArraySamples(torch.arange(100.0)[:, None], labels)
    parts = [_all(part)[0].flatten().tolist() for part in split(samples, 0.2, seed=3)]
    assert sorted(parts[0] + parts[1]) == list(range(100)) and len(parts[1]) == 20
    assert np.bincount(labels[[int(v) for v in parts[1]]]).tolist() == [10, 6, 4]
    assert [_all(part)[0].flatten().tolist() for part in split(samples, 20, seed=3)] == parts
    assert _all(split(samples, 20, seed=4)[1])[0].flatten().tolist() != parts[1]
    for amount in (0.001, 100):
        with pytest.raises(UsageError, match="empty part"):
            split(samples, amount)


def test_a_file_gives_training_validation_and_its_own_test(npz: Path) -> None:
    data = load_training_data(str(npz), validation=10)
    assert (len(data.train), len(data.validation), len(data.test or ()), data.classes) == (40, 10, 7, 5)
    again = load_training_data(str(npz), validation=10)
    assert torch.equal(_all(data.validation)[0], _all(again.validation)[0])
    assert load_training_data(str(npz.with_name("train.npz"))).test is None, "the training samples are no test"
    x = data.example()
    assert x.shape == (1, 3, 8, 8) and x.dtype == torch.float32 and 0.5 < float(x.max()) <= 1


def test_digits_keep_their_held_out_part_for_the_test() -> None:
    data = load_training_data("digits", validation=0.2)
    assert (len(data.train), len(data.validation), len(data.test or ())) == (1078, 269, 450)


def test_the_calibration_view_is_of_training_samples_without_augmentation(npz: Path) -> None:
    data = load_training_data(str(npz), prepare=Preparation(flip=True, pad=2))
    batches = list(data.calibration(samples=20, seed=1))
    pictures = {picture.numpy().tobytes() for picture in _all(data.train)[0]}
    assert sum(batch.size for batch in batches) == 20
    assert all(picture.numpy().tobytes() in pictures for batch in batches for picture in batch.inputs.args[0])
    augmented = data.calibration(samples=20, seed=1, augment=True)
    before = torch.random.get_rng_state()
    first, second = (torch.cat([batch.inputs.args[0] for batch in augmented]) for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(first, batches[0].inputs.args[0])
    assert torch.equal(torch.random.get_rng_state(), before)


# -- preparation ---------------------------------------------------------------------------------------------------------


def test_bytes_are_scaled_and_normalised_per_channel() -> None:
    samples = _arrays(mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    expected = samples.x.double() / 255
    for channel, (mean, std) in enumerate(((0.1, 0.5), (0.2, 1.0), (0.3, 2.0))):
        expected[:, channel] = (expected[:, channel] - mean) / std
    torch.testing.assert_close(_all(samples)[0].double(), expected, rtol=1e-6, atol=1e-6)


def test_augmented_images_are_shifts_and_mirror_images_of_the_original_each_of_its_own() -> None:
    samples = _arrays(400, flip=True, pad=2)
    plain, augmented = _all(samples)[0], _all(samples, seed=5)[0]
    padded = torch.nn.functional.pad(plain, (2, 2, 2, 2))
    seen = set()
    for image, changed in zip(padded, augmented, strict=True):
        windows = {
            (top, left, mirror): image[:, top : top + 4, left : left + 4]
            for top in range(5)
            for left in range(5)
            for mirror in (0, 1)
        }
        fitting = [key for key, window in windows.items() if torch.equal(window.flip(-1) if key[2] else window, changed)]
        assert fitting
        seen.add(fitting[0])
    assert len(seen) > 40, "all shifts, both ways"
    assert torch.equal(augmented, _all(samples, seed=5)[0]) and not torch.equal(augmented, _all(samples, seed=6)[0])


def test_the_cifar_recipe_is_the_usual_one_and_files_are_prepared_alike() -> None:
    cifar = preparation("cifar")
    assert cifar.flip and cifar.pad == 4 and cifar.mean == (0.4914, 0.4822, 0.4465)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    array = cifar.normaliser(CPU, 4)(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0]
    torch.testing.assert_close(cifar.transform(augment=False)(Image.fromarray(pixels)), array)
    assert cifar.transform(augment=True)(Image.fromarray(pixels)).shape == (3, 32, 32)
    with pytest.raises(UsageError, match="no preparation of images 'cifra'"):
        preparation("cifra")


@pytest.mark.parametrize(
    ("prepare", "words"),
    [("imagenet", "holds arrays"), (Preparation(mean=(0.1, 0.2)), "for 2 channels"), ("cifar", "")],
)
def test_a_preparation_that_does_not_fit_the_arrays_is_refused(npz: Path, prepare: str | Preparation, words: str) -> None:
    if not words:
        assert load_training_data(str(npz), prepare=prepare).train
        return
    with pytest.raises(UsageError, match=words):
        load_training_data(str(npz), prepare=prepare)


# -- torchvision, folders, callables -------------------------------------------------------------------------------------


def test_a_data_set_of_torchvision_without_a_test_part() -> None:
    text = "torchvision:FakeData(size=30, image_size=(3, 12, 10), num_classes=3)"
    data = load_training_data(text, prepare="cifar", workers=0)
    assert (len(data.train), len(data.validation), data.test, data.classes) == (27, 3, None, 3)
    torch.manual_seed(0)
    plain, augmented = _all(data.train)[0], _all(data.train, seed=0)[0]
    assert plain.shape == augmented.shape == (27, 3, 12, 10) and not torch.equal(plain, augmented)
    assert next(load_training_data(text, workers=0).train.batches(torch.tensor([0]), 1, CPU, 0))[0].shape == (1, 3, 224, 224)


def test_a_data_set_of_torchvision_in_memory_becomes_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    class _Stored:
        def __init__(self, root: str, train: bool = True, transform: Any = None) -> None:
            count = 20 if train else 8
            assert root == "a:folder"
            self.data = np.arange(count * 48, dtype=np.int64).reshape(count, 4, 4, 3).astype(np.uint8)
            self.targets = [index % 2 for index in range(count)]

        def __len__(self) -> int:
            return len(self.targets)

    monkeypatch.setattr(datasets, "CIFAR10", _Stored)
    data = load_training_data("torchvision:CIFAR10:a:folder", validation=2)
    assert isinstance(data.train, ArraySamples) and isinstance(data.test, ArraySamples)
    assert data.test.x.shape == (8, 3, 4, 4) and data.test.x[0, 1, 0].tolist() == [1, 4, 7, 10]
    assert data.train.preparation == preparation("cifar")


def _pictures(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / label / f"{index}.png")


def test_a_folder_of_images_with_or_without_parts(tmp_path: Path) -> None:
    _pictures(tmp_path / "one", 5)
    _pictures(tmp_path / "two" / "train", 5)
    _pictures(tmp_path / "two" / "val", 2)
    _pictures(tmp_path / "three" / "train", 2)
    _pictures(tmp_path / "three" / "val", 1)
    _pictures(tmp_path / "three" / "test", 3)
    prepare = Preparation(size=16, flip=True)
    one, two = (load_training_data(str(tmp_path / name), prepare=prepare, validation=0.2, workers=0) for name in ("one", "two"))
    named = load_training_data(f"torchvision:ImageFolder:{tmp_path / 'two'}", prepare=prepare, validation=0.2, workers=0)
    assert [len(part or ()) for part in (one.train, one.validation, one.test, two.test, named.test)] == [8, 2, 0, 4, 4]
    three = load_training_data(str(tmp_path / "three"), prepare=prepare, workers=0)
    assert [len(part or ()) for part in (three.train, three.validation, three.test)] == [4, 2, 6]
    assert _all(two.train, seed=1)[0].shape == (8, 3, 16, 16)


def test_workers_read_the_same_samples_in_the_same_order(tmp_path: Path) -> None:
    _pictures(tmp_path / "one", 5)
    alone, shared = (load_training_data(str(tmp_path / "one"), prepare=Preparation(size=16), workers=count) for count in (0, 2))
    assert torch.equal(_all(alone.train)[0], _all(shared.train)[0])
    assert torch.equal(_all(shared.train, seed=1)[0], _all(shared.train, seed=1)[0]), "augmentation in workers is seeded"


def test_no_more_processes_read_than_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch warns of more; what they read is the same."""
    monkeypatch.setattr(samples, "_CORES", 0)
    part = DatasetSamples(_Here(), _Here(), np.zeros(4, dtype=np.int64), workers=4)
    assert _all(part)[0].flatten().tolist() == [os.getpid()] * 4


class _Here(TensorDataset):
    """Samples that say in which process they were read."""

    def __init__(self) -> None:
        super().__init__(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.tensor([os.getpid()]), self.tensors[1][index]


def test_a_callable_returns_data_sets_or_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [TensorDataset(torch.rand(count, 2), torch.arange(count) % 3) for count in (20, 6, 4)]
    parts = [DatasetSamples(item, item, np.zeros(len(item), dtype=np.int64)) for item in sets]
    whole = TrainingData(parts[0], parts[1], parts[2])
    module = SimpleNamespace(
        one=lambda: sets[0], two=lambda: tuple(sets[:2]), three=lambda: sets, whole=lambda: whole, none=lambda: 3
    )
    monkeypatch.setitem(sys.modules, "made_here", module)

    def sizes(name: str) -> list[int]:
        data = load_training_data(f"made_here:{name}", workers=0, validation=0.1)
        return [len(part or ()) for part in (data.train, data.validation, data.test)]

    assert [sizes(name) for name in ("one", "two", "three", "whole")] == [[18, 2, 0], [20, 6, 0], [20, 6, 4], [20, 6, 4]]
    with pytest.raises(UsageError, match=r"returned int\. Return one to three data sets"):
        sizes("none")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no/such.npz", "no data file"),
        ("torchvision:CIFAR1O:x", "no data set 'CIFAR1O'; did you mean 'CIFAR10'"),
        ("torchvision:CIFAR10:nowhere", "nowhere cannot be read: Dataset not found"),
        ("torchvision:CIFAR10(download=True):nowhere", "asks for a download"),
        ("torchvision:", "Write torchvision:CLASS:ROOT"),
        ("no_such_module:data", "no Python module 'no_such_module'"),
    ],
)
def test_data_that_cannot_be_found_are_named(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_training_data(text)


def test_arrays_that_cannot_be_prepared_so_are_refused(tmp_path: Path) -> None:
    for name, x, y in (("flat", np.zeros((9, 3)), np.arange(9)), ("below", np.zeros((9, 3, 4, 4)), np.arange(9) - 1)):
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
    with pytest.raises(UsageError, match=r"has samples \[3\], which cannot be flipped or shifted"):
        load_training_data(str(tmp_path / "flat.npz"), prepare=Preparation(flip=True))
    with pytest.raises(UsageError, match="labels below 0"):
        load_training_data(str(tmp_path / "below.npz"))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no images sorted into a folder for each class"):
        load_training_data(str(tmp_path))


def test_labels_that_are_no_class_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for labels in (torch.rand(4), torch.arange(4) - 1, torch.zeros(4, 2, dtype=torch.int64)):
        module = SimpleNamespace(data=lambda labels=labels: TensorDataset(torch.rand(4, 2), labels))
        monkeypatch.setitem(sys.modules, "made_here", module)
        with pytest.raises(UsageError, match=r"The labels of made_here:data|does not yield pairs"):
            load_training_data("made_here:data")
