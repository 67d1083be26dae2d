"""Text files as windows of characters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dgm_fast.data import DataError, load_dataset, load_text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "a.txt"
    file.write_text("abcd\né" * 50, encoding="utf-8")  # 300 characters
    return file


def test_windows_cover_their_split(path: Path) -> None:
    data = load_text(path, context_length=7)
    assert data.vocabulary == "\nabcdé" and data.num_classes == 6
    assert data.likelihood == "categorical" and data.num_dims == 7 and data.image_shape is None
    tokens = torch.tensor([1, 2, 3, 4, 0, 5] * 50, dtype=torch.uint8)
    starts = range(0, 270 - 6, 3)
    assert torch.equal(data.train, torch.stack([tokens[s : s + 7] for s in starts]))
    assert torch.equal(data.valid, tokens[270:285].reshape(-1)[:14].reshape(2, 7))
    assert torch.equal(data.test, tokens[285:299].reshape(2, 7))
    assert data.train.dtype == torch.uint8 and data.batch(torch.tensor([1])).dtype == torch.int64
    assert "300 characters, 6 of them distinct, in windows of 7" in data.description


def test_by_name_and_with_many_characters(path: Path, tmp_path: Path) -> None:
    assert load_dataset(str(path), context_length=15).num_dims == 15
    assert load_dataset(str(path), context_length=1).train.shape == (270, 1)
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 3000)))
    (tmp_path / "b.txt").write_text(text, encoding="utf-8")
    data = load_text(tmp_path / "b.txt")
    assert data.vocabulary == text and data.train.dtype == torch.int32
    assert data.num_dims == 128 and data.train[1, 0] == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_length": 16}, "valid is 15 characters of the text, fewer than a window of 16"),
        ({"context_length": 0}, "context_length must be at least 1"),
        ({"likelihood": "bernoulli"}, "characters need --likelihood categorical"),
        ({"binarize": "threshold"}, "binarize does not apply to the text file"),
        ({"num_classes": 3}, "num_classes does not apply to the text file"),
        ({"num_dims": 3}, "num_dims does not apply to the text file"),
        ({"layout": "plain"}, "layout describes an .npz file"),
    ],
)
def test_options_that_do_not_fit(path: Path, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(str(path), **options)


def test_files_that_cannot_be_used(path: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt: no such file"):
        load_text(tmp_path / "none.txt")
    with pytest.raises(DataError, match="context_length describes a text file"):
        load_dataset("digits", context_length=8)
    path.write_bytes(b"\xff\xfe\xff" * 100)
    with pytest.raises(DataError, match="cannot be read as UTF-8"):
        load_text(path)
    path.write_text("aaaa" * 100)
    with pytest.raises(DataError, match="at least two distinct characters, got 1"):
        load_text(path)
    path.write_text("")
    with pytest.raises(DataError, match="at least two distinct characters, got 0"):
        load_text(path)
