"""Memory of large outputs: used again, never shared, bounded, visible to the profiler."""

from __future__ import annotations

import threading

import pytest
import torch
from helpers.op_checks import poisoned_memory

import dgm_fast
from dgm_fast import functional as F
from dgm_fast import ops
from dgm_fast.ops import _extension
from dgm_fast.perf.memory import peak_of

pytestmark = pytest.mark.skipif(ops.active_isa() is None, reason="the C++ extension is not built")

ROWS, SIZE = 600, 1000  # 2.4 MB of float32
MIB = 1 << 20


def sample(rows: int = ROWS, fill: float = 0.0) -> torch.Tensor:
    """A new output of the pool with ``fill`` everywhere."""
    mean = torch.full((rows, SIZE), fill)
    return F.reparameterize(mean, torch.zeros_like(mean), noise=torch.zeros_like(mean))


def idle() -> int:
    assert _extension.extension is not None
    return _extension.extension.output_pool_idle_bytes()


@pytest.fixture(autouse=True)
def empty():
    dgm_fast.empty_cache()
    assert idle() == 0
    yield
    dgm_fast.empty_cache()


def test_memory_is_used_again() -> None:
    first = sample()
    address = first.data_ptr()
    assert idle() == 0
    del first
    assert ROWS * SIZE * 4 <= idle() <= ROWS * SIZE * 4 + MIB
    second = sample(ROWS - 10)
    assert second.data_ptr() == address
    assert idle() == 0


def test_a_much_smaller_output_does_not_take_a_large_block() -> None:
    large = sample(4 * ROWS)
    address = large.data_ptr()
    del large
    assert sample().data_ptr() != address


def test_live_tensors_do_not_share() -> None:
    kept = [sample(fill=float(i)) for i in range(4)]
    view = kept.pop()[5:]
    again = [sample(fill=float(10 + i)) for i in range(4)]
    assert len({t.data_ptr() for t in (*kept, view, *again)}) == 8
    assert all((t == i).all() for i, t in enumerate(kept))
    assert (view == 3).all()


def test_what_is_kept_is_bounded() -> None:
    extension = _extension.extension
    assert extension is not None
    limit = extension.output_pool_limit()
    assert 0 < limit <= 1 << 30
    # Never written, so that they take addresses and no memory.
    each = limit // 3
    held = [extension.empty_output([each // 4]) for _ in range(5)]
    del held
    assert each <= idle() <= limit
    larger = extension.empty_output([limit // 4 + MIB])
    del larger
    assert idle() <= limit


def test_small_outputs_do_not_come_from_the_pool() -> None:
    sample(10)
    assert idle() == 0


def test_profiler_sees_the_memory() -> None:
    sample()  # the block is there: the profile must show it all the same
    mean = torch.zeros(ROWS, SIZE)
    noise = torch.zeros(ROWS, SIZE)
    peak = peak_of(lambda: F.reparameterize(mean, mean, noise=noise), torch.device("cpu"))
    assert ROWS * SIZE * 4 <= peak <= ROWS * SIZE * 4 + MIB


def test_new_memory_can_be_poisoned() -> None:
    # What a kernel leaves unwritten must show, and not be what was there before.
    del_me = sample(fill=7.0)
    address = del_me.data_ptr()
    del del_me
    extension = _extension.extension
    assert extension is not None
    with poisoned_memory():
        fresh = extension.empty_output([ROWS, SIZE])
    assert fresh.data_ptr() == address
    assert fresh.isnan().all()


def test_threads() -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(20):
            out = sample(fill=float(number))
            if not (out == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_resize_and_in_place_changes_work() -> None:
    out = sample(fill=2.0)
    out.resize_(2 * ROWS, SIZE)
    assert (out[:ROWS] == 2).all()
    out.mul_(2)
    assert (out[:ROWS] == 4).all()
    shared = sample(fill=1.0).share_memory_()
    assert (shared == 1).all()
