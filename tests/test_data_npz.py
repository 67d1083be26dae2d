"""Reading data sets from .npz files: both layouts, and every way a file can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dgm_fast.data import DataError, load_dataset, load_npz

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "binarized_mnist.npz"


def save(path: Path, dtype=np.uint8, high=2, shape=(12, 5), **replace) -> Path:
    rng = np.random.default_rng(0)
    arrays = {s: rng.integers(0, high, shape).astype(dtype) for s in ("train", "valid", "test")}
    arrays |= replace
    np.savez(path, **{name: a for name, a in arrays.items() if a is not None})
    return path


def save_packed(path: Path, dims: int = 20) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    bits = {
        s: rng.integers(0, 2, (n, dims)).astype(np.uint8)
        for s, n in (("train", 9), ("valid", 5), ("test", 4))
    }
    np.savez(path, **{s: np.packbits(b, axis=1) for s, b in bits.items()})
    return bits


@pytest.mark.parametrize("layout", ["auto", "packed"])
@pytest.mark.parametrize("dims", [20, 24])
def test_packed_rows_come_back_as_the_bits_that_were_packed(tmp_path, layout, dims):
    bits = save_packed(tmp_path / "a.npz", dims)
    dataset = load_npz(tmp_path / "a.npz", num_dims=dims, layout=layout)
    for split, rows in dataset.splits().items():
        assert torch.equal(rows, torch.from_numpy(bits[split]))
    assert dataset.likelihood == "bernoulli"
    assert dataset.num_dims == dims


def test_packed_dimensions_default_to_all_bits(tmp_path):
    save_packed(tmp_path / "a.npz", 24)
    assert load_npz(tmp_path / "a.npz").num_dims == 24


def test_square_rows_have_an_image_shape(tmp_path):
    save_packed(tmp_path / "a.npz", 16)
    assert load_npz(tmp_path / "a.npz", num_dims=16).image_shape == (4, 4)
    save_packed(tmp_path / "b.npz", 24)
    assert load_npz(tmp_path / "b.npz").image_shape is None


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_, np.int64, np.float32, np.float64])
def test_plain_binary_rows_are_bernoulli(tmp_path, dtype):
    dataset = load_npz(save(tmp_path / "a.npz", dtype))
    assert (dataset.likelihood, dataset.num_dims) == ("bernoulli", 5)
    x = dataset.batch(torch.arange(3))
    assert x.dtype == torch.float32 and x.shape == (3, 5)


def test_integers_are_classes(tmp_path):
    dataset = load_npz(save(tmp_path / "a.npz", np.int16, high=7), num_classes=9)
    assert (dataset.likelihood, dataset.num_classes) == ("categorical", 9)
    assert dataset.batch(torch.arange(2)).dtype == torch.int64
    assert load_npz(save(tmp_path / "b.npz", np.int16, high=7)).num_classes == 7


def test_bytes_are_read_plain_when_an_option_asks_for_grey_levels(tmp_path):
    path = save(tmp_path / "a.npz", np.uint8, high=17)
    assert load_npz(path).description.startswith("packed")
    assert load_npz(path, likelihood="categorical").num_classes == 17
    assert load_npz(path, num_classes=17).num_dims == 5
    assert load_npz(path, num_dims=5).num_dims == 5
    binary = load_npz(path, mode="threshold", threshold=8, num_classes=17)
    raw = np.load(path)["train"]
    assert torch.equal(binary.train, torch.from_numpy((raw >= 8).astype(np.uint8)))


def test_many_classes_are_kept_whole(tmp_path):
    path = save(tmp_path / "a.npz", np.int32, high=1000)
    dataset = load_npz(path, num_classes=1000)
    assert dataset.train.tolist() == np.load(path)["train"].tolist()


def test_floats_need_a_likelihood_that_fits(tmp_path):
    values = np.linspace(-2, 2, 60, dtype=np.float32).reshape(12, 5)
    path = save(tmp_path / "a.npz", np.float32, train=values)
    with pytest.raises(DataError, match=r"train holds -2\.0, outside \[0, 1\].*gaussian"):
        load_npz(path)
    dataset = load_npz(path, likelihood="gaussian")
    assert torch.equal(dataset.train, torch.from_numpy(values))


def bad(path: Path, message: str, **options) -> None:
    with pytest.raises(DataError, match=message) as raised:
        load_npz(path, **options)
    assert str(path) in str(raised.value)


def test_missing_file(tmp_path):
    bad(tmp_path / "none.npz", "no such file")


def test_directory_instead_of_a_file(tmp_path):
    bad(tmp_path, "no such file")


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.98])
def test_truncated_file(tmp_path, keep):
    path = save(tmp_path / "a.npz", shape=(200, 30))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    bad(path, "corrupt or truncated.*arrays train, valid and test")


def test_empty_file(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"")
    bad(path, "corrupt or truncated")


@pytest.mark.parametrize("compressed", [False, True])
def test_altered_bytes(tmp_path, compressed):
    path = tmp_path / "a.npz"
    writer = np.savez_compressed if compressed else np.savez
    writer(path, **{s: np.ones((50, 40), np.uint8) for s in ("train", "valid", "test")})
    data = bytearray(path.read_bytes())
    at = len(data) // 6
    data[at : at + 8] = bytes(255 - b for b in data[at : at + 8])
    path.write_bytes(bytes(data))
    bad(path, "corrupt or truncated")


def test_text_file(tmp_path):
    path = tmp_path / "a.npz"
    path.write_text("train, valid, test\n")
    bad(path, "corrupt or truncated")


def test_single_array_instead_of_an_archive(tmp_path):
    path = tmp_path / "a.npz"
    with open(path, "wb") as file:
        np.save(file, np.zeros((3, 4)))
    bad(path, "not an .npz archive")


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_missing_array(tmp_path, split):
    bad(save(tmp_path / "a.npz", **{split: None}), f"array {split} is missing")


def test_pickled_objects_are_not_loaded(tmp_path):
    path = tmp_path / "a.npz"
    objects = np.array([[{"a": 1}]], dtype=object)
    np.savez(path, train=objects, valid=objects, test=objects)
    bad(path, "corrupt or truncated, or not an .npz file")


@pytest.mark.parametrize("dtype", [np.complex64, "S3", "datetime64[s]"])
def test_wrong_dtype(tmp_path, dtype):
    array = np.zeros((4, 5), dtype=dtype)
    bad(save(tmp_path / "a.npz", train=array), "train has dtype .* needs bool, integers or floats")


def test_differing_dtypes(tmp_path):
    bad(save(tmp_path / "a.npz", valid=np.zeros((4, 5))), "valid has dtype float64, but train")


@pytest.mark.parametrize("shape", [(60,), (3, 4, 5), ()])
def test_wrong_number_of_dimensions(tmp_path, shape):
    array = np.zeros(shape, np.uint8)
    bad(save(tmp_path / "a.npz", test=array), r"test has shape .*needs 2-D \[N, D\]")


def test_differing_columns(tmp_path):
    array = np.zeros((4, 6), np.uint8)
    bad(save(tmp_path / "a.npz", test=array), "test has 6 columns, but train has 5")


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_empty_array(tmp_path, shape):
    bad(save(tmp_path / "a.npz", train=np.zeros(shape, np.uint8)), "train is empty")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(tmp_path, value):
    array = np.zeros((4, 5))
    array[1, 2] = value
    path = save(tmp_path / "a.npz", np.float64, test=array)
    bad(path, "test holds NaN or infinite values")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"likelihood": "bernoulli"}, r"train holds \d+, outside \[0, 1\]"),
        ({"num_classes": 3}, r"outside \[0, 2\]: class indices of 3 classes"),
        ({"num_classes": 4, "mode": "threshold"}, r"outside \[0, 3\]: binarization needs"),
        ({"num_classes": 4, "likelihood": "gaussian"}, "num_classes goes with the categorical"),
        ({"mode": "static", "likelihood": "categorical"}, "binarized data take the Bernoulli"),
        ({"num_dims": 7}, r"num_dims is 7, but the arrays have 5 columns"),
        ({"layout": "packed"}, "packed rows need dtype uint8, got int16"),
    ],
)
def test_options_that_do_not_fit_integers(tmp_path, options, message):
    bad(save(tmp_path / "a.npz", np.int16, high=9), message, **options)


def test_negative_class(tmp_path):
    array = np.full((4, 5), -1, np.int16)
    bad(save(tmp_path / "a.npz", np.int16, high=9, valid=array), "valid holds -1")


def test_class_in_test_that_train_lacks(tmp_path):
    array = np.full((4, 5), 30, np.int16)
    path = save(tmp_path / "a.npz", np.int16, high=9, test=array)
    bad(path, "test holds 30, .*counted from train; pass --num-classes")


def test_fractions_are_no_classes(tmp_path):
    path = save(tmp_path / "a.npz", np.float32, train=np.full((4, 5), 0.5, np.float32))
    bad(path, "whole numbers", likelihood="categorical")


def test_packed_rows_of_another_width(tmp_path):
    save_packed(tmp_path / "a.npz", 24)
    bad(tmp_path / "a.npz", "needs 5 packed bytes a row", num_dims=40, layout="packed")
    bad(tmp_path / "a.npz", "neither plain rows .* nor packed ones", num_dims=40)


def test_bits_past_the_last_dimension(tmp_path):
    save_packed(tmp_path / "a.npz", 24)
    bad(tmp_path / "a.npz", "bits set past the first 20", num_dims=20)


@pytest.mark.parametrize(
    "options", [{"likelihood": "gaussian"}, {"mode": "threshold"}, {"num_classes": 5}]
)
def test_packed_rows_are_binary_only(tmp_path, options):
    save_packed(tmp_path / "a.npz", 24)
    bad(tmp_path / "a.npz", "packed rows are binary", layout="packed", **options)


def test_unknown_names():
    with pytest.raises(
        DataError,
        match=r"unknown data set 'cifar': use digits, mnist, eight-gaussians, .* a path ending in \.npz",
    ):
        load_dataset("cifar")
    with pytest.raises(DataError, match="layout must be one of"):
        load_npz("a.npz", layout="rows")


@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is not there")
def test_fixed_binarization_of_mnist():
    dataset = load_dataset(str(SHARED))
    sizes = {split: tuple(rows.shape) for split, rows in dataset.splits().items()}
    assert sizes == {"train": (50000, 784), "valid": (10000, 784), "test": (10000, 784)}
    assert dataset.likelihood == "bernoulli" and dataset.image_shape == (28, 28)
    # Independent Bernoulli variables with the training frequencies: 206 nats on this file.
    p = dataset.train.float().mean(0).clamp(1e-4, 1 - 1e-4)
    x = dataset.test.float()
    nll = -(x * p.log() + (1 - x) * torch.log1p(-p)).sum(1).mean().item()
    assert nll == pytest.approx(206.0, abs=2.0)
