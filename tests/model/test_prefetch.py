"""Batches reach a GPU in order and complete; without a GPU, stand-ins replace its streams and copies."""

from collections.abc import Iterator
from contextlib import closing, nullcontext
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from scenes.model.prefetch import prefetched

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Pair(NamedTuple):
    canvases: dict[int, Tensor]
    rows: Tensor


def pair(number: int) -> Pair:
    return Pair({8: torch.full((2, 8), number), 16: torch.full((2, 16), number)}, torch.tensor([number, number + 1]))


class Gpu:
    """Counts what a GPU is given: copies, and the batches that computation waited for."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.copies, self.awaited, self.is_full = 0, 0, False
        patch.setattr(torch.cuda, "Stream", lambda _: self)
        patch.setattr(torch.cuda, "current_stream", lambda _: self)
        patch.setattr(torch.cuda, "stream", lambda _: nullcontext())

        def copy(tensor: Tensor, device: torch.device, non_blocking: bool) -> Tensor:
            assert device == GPU
            assert non_blocking
            if self.is_full:
                raise torch.OutOfMemoryError("CUDA out of memory")
            self.copies += 1
            return tensor.clone()

        patch.setattr(Tensor, "to", copy)

    def record_event(self) -> str:
        return "copied"

    def wait_event(self, event: str) -> None:
        assert event == "copied"
        self.awaited += 1


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


def test_a_cpu_gets_the_very_batches_none_ahead() -> None:
    taken = []

    def source() -> Iterator[Pair]:
        for number in range(3):
            taken.append(number)
            yield pair(number)

    with closing(prefetched(source(), CPU)) as batches:
        first = next(batches)
        assert taken == [0]
        assert first.rows.tolist() == [0, 1]


def test_each_batch_comes_once_in_order_and_waited_for_with_the_next_on_its_way(gpu: Gpu) -> None:
    for number, batch in enumerate(prefetched(map(pair, range(4)), GPU)):
        assert isinstance(batch, Pair)
        assert (batch.canvases[8] == number).all()
        assert (batch.canvases[16] == number).all()
        assert batch.rows.tolist() == [number, number + 1]
        assert gpu.awaited == number + 1
        assert gpu.copies == 3 * min(number + 2, 4)
    assert list(prefetched(iter([]), GPU)) == []


def test_a_batch_that_does_not_fit_stays_where_it_is(gpu: Gpu) -> None:
    gpu.is_full = True
    batches = [(torch.zeros(2), torch.ones(2)), (torch.zeros(2), torch.ones(2))]
    for batch, given in zip(prefetched(batches, GPU), batches, strict=True):
        assert batch is given
