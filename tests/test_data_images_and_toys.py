"""Folders of images, densities in the plane, labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dgm_fast.data import DataError, load_dataset, load_digits, load_image_folder, load_toy
from dgm_fast.data.toy import EIGHT_GAUSSIANS_SCALE, TOYS, eight_gaussian_means

image = pytest.importorskip("PIL.Image")


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.fromarray(pixels.astype(np.uint8)).save(path)


def colour(rgb: tuple[int, int, int], height: int = 4, width: int = 4) -> np.ndarray:
    return np.broadcast_to(np.array(rgb), (height, width, 3))


def test_subfolders_are_classes_and_channels_come_one_after_the_other(tmp_path: Path) -> None:
    for i in range(20):
        write(tmp_path / ("cat" if i % 2 else "dog") / f"{i:02d}.png", colour((i, 100, 200)))
    dataset = load_image_folder(tmp_path, image_size=4)
    assert dataset.image_shape == (3, 4, 4) and dataset.likelihood == "gaussian"
    assert [len(rows) for rows in dataset.splits().values()] == [16, 2, 2]
    # In the order of the names: all of cat, then all of dog.
    rows = torch.cat(list(dataset.splits().values()))
    assert rows.shape == (20, 48) and rows.max() <= 1
    reds = (dataset.train[:, 0] * 255).round().int().tolist()
    assert reds == [1, 3, 5, 7, 9, 11, 13, 15, 0, 2, 4, 6, 8, 10, 12, 14]
    torch.testing.assert_close(dataset.train[0, 16:32], torch.full((16,), 100 / 255))
    assert dataset.num_labels == 2
    assert dataset.labels["train"].tolist() == [0] * 8 + [1] * 8
    x, y = dataset.labelled_batch(torch.tensor([0, 15]))
    assert x.shape == (2, 48) and y.tolist() == [0, 1]


def test_images_are_scaled_and_cut_to_the_middle(tmp_path: Path) -> None:
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 8:16] = 255
    for i in range(10):
        write(tmp_path / f"{i}.png", wide)
    dataset = load_image_folder(tmp_path, image_size=8, channels=1, likelihood="categorical")
    assert dataset.image_shape == (8, 8) and dataset.num_classes == 256 and dataset.labels is None
    assert (dataset.train == 255).all()
    smaller = load_image_folder(tmp_path, image_size=2, channels=1, mode="threshold")
    assert smaller.likelihood == "bernoulli" and (smaller.test == 1).all()


def test_folders_of_splits_are_taken_as_they_are(tmp_path: Path) -> None:
    for split, n in (("train", 3), ("valid", 1), ("test", 2)):
        for i in range(n):
            write(tmp_path / split / f"{i}.jpg", colour((9, 9, 9)))
    dataset = load_dataset(str(tmp_path), image_size=4, image_channels=1)
    assert [len(rows) for rows in dataset.splits().values()] == [3, 1, 2]
    assert dataset.labels is None


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train has no images"):
        load_image_folder(tmp_path)
    for i in range(10):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0\.png: cannot be read"):
        load_image_folder(tmp_path)
    with pytest.raises(DataError, match="channels must be 1 or 3"):
        load_image_folder(tmp_path, channels=2)
    with pytest.raises(DataError, match=r"num_classes describes an \.npz"):
        load_dataset(str(tmp_path), num_classes=4)
    with pytest.raises(DataError, match="image_size describes a folder"):
        load_dataset("digits", image_size=4)


@pytest.mark.parametrize("name", TOYS)
def test_toys_are_the_same_points_every_time(name: str) -> None:
    first, second = load_toy(name), load_dataset(name)
    torch.testing.assert_close(first.train, second.train, rtol=0, atol=0)
    assert first.train.shape == (10000, 2) and first.image_shape is None
    assert not torch.equal(first.valid, first.test)


def test_eight_gaussians_have_their_modes() -> None:
    points = load_toy("eight-gaussians").train
    distance, mode = torch.cdist(points, eight_gaussian_means()).min(1)
    counts = torch.bincount(mode, minlength=8)
    assert counts.min() > 1100
    # Squared distances of a plane's Gaussian average twice its variance.
    assert distance.square().mean().item() == pytest.approx(2 * EIGHT_GAUSSIANS_SCALE**2, rel=0.05)


def test_checkerboard_fills_half_of_its_square() -> None:
    cells = (load_toy("checkerboard").train + 2).floor().long()
    assert cells.min() == 0 and cells.max() == 3
    assert (cells.sum(1) % 2 == 0).all()
    assert len(torch.unique(cells, dim=0)) == 8


def test_toys_take_no_other_likelihood() -> None:
    with pytest.raises(DataError, match="points in the plane"):
        load_dataset("moons", likelihood="bernoulli")
    with pytest.raises(ValueError, match="name must be one of"):
        load_toy("spiral")


def test_digits_have_their_labels() -> None:
    dataset = load_digits(mode="threshold")
    assert dataset.num_labels == 10
    assert [len(dataset.labels[split]) for split in ("train", "valid", "test")] == [1000, 350, 447]
    # The first ten images of the file are the digits in order.
    assert dataset.labels["train"][:10].tolist() == list(range(10))
