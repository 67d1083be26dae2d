"""Digits, MNIST through torchvision, and binarization."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch

from dgm_fast.data import DataError, Dataset, binarize, load_dataset
from dgm_fast.data.extras import MissingExtraError, require

pytest.importorskip("sklearn")


def test_digits_are_split_in_file_order():
    from sklearn.datasets import load_digits

    pixels = torch.from_numpy(load_digits().data)
    dataset = load_dataset("digits")
    assert [len(rows) for rows in dataset.splits().values()] == [1000, 350, 447]
    joined = torch.cat(list(dataset.splits().values()))
    assert torch.equal(joined.double(), pixels)
    assert (dataset.likelihood, dataset.num_classes) == ("categorical", 17)
    assert dataset.image_shape == (8, 8)


def test_digits_reference_points():
    dataset = load_dataset("digits")
    levels = torch.arange(17)[:, None, None]
    counts = (dataset.train == levels).sum(1) + 1.0  # [17, 64], one more each
    log_p = (counts / counts.sum(0)).log()
    nll = -log_p.gather(0, dataset.test.long()).sum(1).mean()
    # Independent categorical pixels, with the same smoothing.
    assert nll.item() == pytest.approx(106.4, abs=0.5)


@pytest.mark.parametrize("options", [{"binarize": "threshold"}, {"threshold": 8.0}])
def test_binarized_digits(options):
    grey, binary = load_dataset("digits"), load_dataset("digits", **options)
    assert (binary.likelihood, binary.num_classes) == ("bernoulli", None)
    for split, rows in binary.splits().items():
        assert torch.equal(rows, (grey.splits()[split] >= 8).to(torch.uint8))


def test_gaussian_digits_are_scaled():
    dataset = load_dataset("digits", likelihood="gaussian")
    assert dataset.train.dtype == torch.float32
    assert dataset.train.min() == 0 and dataset.train.max() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"likelihood": "bernoulli"}, "bernoulli likelihood with binarization 'none'"),
        ({"likelihood": "categorical", "binarize": "static"}, "categorical likelihood with"),
        ({"likelihood": "poisson"}, "likelihood must be one of"),
        ({"binarize": "half"}, "binarize must be one of"),
        ({"binarize": "static", "threshold": 3.0}, "threshold belongs to binarize 'threshold'"),
        ({"num_dims": 64}, "num_dims describes an .npz file"),
        ({"num_classes": 17}, "num_classes describes an .npz file"),
        ({"layout": "packed"}, "layout describes an .npz file"),
    ],
)
def test_digits_with_options_that_do_not_fit(options, message):
    with pytest.raises(DataError, match=message):
        load_dataset("digits", **options)


def test_static_binarization_is_fixed_and_has_the_right_frequencies():
    grey = {"train": torch.tensor([[0.0, 4.0, 16.0]]).expand(20000, 3)}
    first, second = (binarize(grey, 16, "static")["train"] for _ in range(2))
    assert torch.equal(first, second)
    frequency = first.float().mean(0)
    assert frequency[0] == 0 and frequency[2] == 1
    assert frequency[1].item() == pytest.approx(0.25, abs=0.015)


def test_dynamic_binarization_draws_training_batches_anew():
    dataset = load_dataset("digits", binarize="dynamic")
    assert dataset.dynamic and dataset.train.dtype == torch.float32
    assert dataset.valid.unique().tolist() == [0, 1]
    index = torch.arange(200)
    torch.manual_seed(0)
    first, second = dataset.batch(index), dataset.batch(index)
    torch.manual_seed(0)
    assert torch.equal(dataset.batch(index), first)
    assert not torch.equal(first, second)
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert first.mean().item() == pytest.approx(dataset.train[index].mean().item(), abs=0.02)


def rows(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((rows(4), rows(2, 3), rows(2, 3), "bernoulli"), r"train must be a non-empty \[N, D\]"),
        ((rows(4, 3), rows(2, 3), rows(2, 2), "bernoulli"), "test has 2 dimensions, but train"),
        ((rows(4, 3), rows(2, 3), rows(2, 3), "poisson"), "likelihood must be one of"),
        ((rows(4, 3), rows(2, 3), rows(2, 3), "bernoulli", 3), "num_classes goes with"),
        ((rows(4, 3), rows(2, 3), rows(2, 3), "categorical"), "num_classes goes with"),
        ((rows(4, 3), rows(2, 3), rows(2, 3), "bernoulli", None, (2, 2)), "does not hold 3"),
    ],
)
def test_inconsistent_data_sets(arguments, message):
    with pytest.raises(DataError, match=message):
        Dataset("mine", *arguments)


def fake_torchvision(monkeypatch, error: Exception | None = None) -> list[bool]:
    downloads: list[bool] = []

    class MNIST:
        def __init__(self, root: str, train: bool, download: bool) -> None:
            downloads.append(download)
            if error is not None:
                raise error
            count = 60000 if train else 10000
            values = torch.from_numpy(np.arange(count) % 256).to(torch.uint8)
            self.data = values[:, None, None].expand(count, 28, 28)
            self.targets = torch.arange(count) % 10

        def __len__(self) -> int:
            return len(self.data)

    package, module = types.ModuleType("torchvision"), types.ModuleType("torchvision.datasets")
    module.MNIST = MNIST
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)
    return downloads


def test_mnist_split_and_default_binarization(monkeypatch, tmp_path):
    assert fake_torchvision(monkeypatch) == []
    dataset = load_dataset("mnist", root=tmp_path)
    assert [len(part) for part in dataset.splits().values()] == [50000, 10000, 10000]
    assert dataset.dynamic and dataset.likelihood == "bernoulli"
    assert torch.equal(dataset.train[:, 0], (torch.arange(50000) % 256) / 255)


def test_mnist_threshold_and_grey(monkeypatch, tmp_path):
    fake_torchvision(monkeypatch)
    binary = load_dataset("mnist", root=tmp_path, binarize="threshold")
    assert torch.equal(binary.test[:, 5], (torch.arange(10000) % 256 >= 128).to(torch.uint8))
    grey = load_dataset("mnist", root=tmp_path, likelihood="categorical")
    assert grey.num_classes == 256
    assert torch.equal(grey.valid[:, 5].long(), torch.arange(50000, 60000) % 256)


def test_mnist_files_that_cannot_be_read(monkeypatch, tmp_path):
    fake_torchvision(monkeypatch, RuntimeError("Error downloading train-images"))
    with pytest.raises(DataError, match=r"cannot read or download the files under .*--data-root"):
        load_dataset("mnist", root=tmp_path)


def test_mnist_without_torchvision(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(
        MissingExtraError, match=r"MNIST needs torchvision.*pip install torchvision"
    ):
        load_dataset("mnist", root=tmp_path)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    message = r"digits data set needs scikit-learn.*pip install 'dgm_fast\[train\]'"
    with pytest.raises(MissingExtraError, match=message):
        load_dataset("digits")


def test_an_installed_package_that_fails_inside_shows_its_own_error(monkeypatch, tmp_path):
    (tmp_path / "brokenpackage.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_nobody_has") as raised:
        require("brokenpackage", "a test")
    assert not isinstance(raised.value, MissingExtraError)
