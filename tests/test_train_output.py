"""What a run shows and draws: progress, image grids, test figures."""

from __future__ import annotations

import io
import math

import pytest
import torch

from dgm_fast.data import Dataset
from dgm_fast.train.evaluate import per_row, summary
from dgm_fast.train.samples import image_grid, to_grey, write_png, write_reconstructions

RECORDS = [
    {"epoch": 1, "train_loss": 120.5, "valid_nll": 118.25},
    {"epoch": 2, "train_loss": 110.5, "valid_nll": 119.75},
]


def show(terminal: bool, monkeypatch) -> str:
    rich_console = pytest.importorskip("rich.console")
    from dgm_fast.train import progress as progress_module

    monkeypatch.setattr(progress_module, "_REFRESH_SECONDS", 0.0)
    out = io.StringIO()
    console = rich_console.Console(file=out, force_terminal=terminal, width=80)
    progress = progress_module.RichProgress("iwae", console=console)
    progress.start(4, 0, 2, None)
    for record, improved in zip(RECORDS, (True, False), strict=True):
        progress.step(record["epoch"], torch.tensor(246.0), 2)
        progress.epoch(record, improved)
    progress.close()
    progress.close()
    return out.getvalue()


def test_the_bar_shows_train_valid_and_best(monkeypatch):
    shown = show(True, monkeypatch)
    assert "2/2 NLL ≤ 110.50 train 119.75 valid 118.25 best" in shown


def test_without_a_terminal_the_last_epoch_is_a_line(monkeypatch):
    lines = show(False, monkeypatch).splitlines()
    assert lines[-1] == "iwae: epoch 2/2  NLL ≤ 110.50 train, 119.75 valid, 118.25 best"
    assert not any("\x1b" in line for line in lines)


def test_the_reporter_of_a_resumed_run_knows_the_best(monkeypatch):
    rich_console = pytest.importorskip("rich.console")
    from dgm_fast.train.progress import RichProgress

    out = io.StringIO()
    progress = RichProgress("iwae", console=rich_console.Console(file=out, width=80))
    progress.start(4, 2, 2, 100.0)
    progress.epoch(RECORDS[1], improved=False)
    assert "119.75 valid, 100.00 best" in out.getvalue()


def test_png_holds_the_pixels(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pixels = torch.arange(35, dtype=torch.uint8).reshape(5, 7) * 7
    write_png(tmp_path / "a.png", pixels)
    with image.open(tmp_path / "a.png") as opened:
        opened.load()
        assert opened.mode == "L" and opened.size == (7, 5)
        assert list(opened.tobytes()) == pixels.flatten().tolist()


def test_grid_places_images_in_reading_order():
    images = torch.tensor([[10], [20], [30]], dtype=torch.uint8).expand(3, 28 * 28)
    grid = image_grid(images, (28, 28), columns=2)
    assert grid.shape == (2 * 30 + 2, 2 * 30 + 2)
    centres = [grid[16, 16], grid[16, 46], grid[46, 16], grid[46, 46]]
    assert [int(c) for c in centres] == [10, 20, 30, 64]


def data(likelihood: str, num_classes: int | None = None) -> Dataset:
    rows = torch.arange(16).reshape(1, 16).repeat(11, 1)
    if likelihood == "gaussian":
        rows = rows.float() - 8
    return Dataset("d", rows, rows, rows, likelihood, num_classes, image_shape=(4, 4))


@pytest.mark.parametrize(("likelihood", "classes"), [("categorical", 16), ("gaussian", None)])
def test_brightness_spans_the_range_of_the_data(likelihood, classes):
    dataset = data(likelihood, classes)
    grey = to_grey(dataset.model_input(dataset.test), dataset)
    assert grey.dtype == torch.uint8
    assert grey[0].tolist() == [17 * level for level in range(16)]


def test_reconstructions_alternate_with_their_originals(tmp_path):
    image = pytest.importorskip("PIL.Image")

    class Darkest(torch.nn.Module):
        def reconstruct(self, x):
            return torch.zeros_like(x)

    write_reconstructions(tmp_path / "a.png", Darkest(), data("categorical", 16), count=11)
    with image.open(tmp_path / "a.png") as opened:
        # Four lines (8 originals, 8 black ones, 3 originals, 3 black ones) of 4x4, 7 times.
        assert opened.size == (8 * 30 + 2, 4 * 30 + 2)
        last_pixel = [opened.getpixel((28, 28 + 30 * line)) for line in range(4)]
        assert last_pixel == [255, 0, 255, 0]


def test_figures_are_means_over_all_rows_whatever_the_batches():
    model = torch.nn.Dropout(0.5)
    rows = torch.arange(10.0)[:, None]
    seen = []
    values = per_row(
        model,
        rows,
        lambda m, x: {"nll": m(x).sum(1), "noise": torch.rand(len(x))},
        convert=lambda r: r,
        batch_size=4,
        on_batch=lambda done, total: seen.append((done, total)),
    )
    assert values["nll"].tolist() == list(range(10))  # evaluation mode: no dropout
    assert seen == [(4, 10), (8, 10), (10, 10)] and model.training
    out = summary(values, num_dims=2)
    assert out["nll_nats"] == 4.5
    assert out["nll_bits_per_dim"] == pytest.approx(4.5 / (2 * math.log(2)))
    expected = torch.arange(10.0).std().item() / math.sqrt(10)
    assert out["nll_standard_error_nats"] == pytest.approx(expected)
