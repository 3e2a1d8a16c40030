"""Prefetches batches to a GPU: one is copied while the previous one is in use."""

from collections.abc import Generator, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from scenes.model.device import is_out_of_memory

T = TypeVar("T")


def prefetched(batches: Iterable[T], device: torch.device) -> Generator[T]:
    """Copies batches to a GPU on a side stream, one ahead of the one in use; for a CPU it yields them as they are.

    Copies are asynchronous, because the loaders pin memory for a GPU.

    Args:
        batches: Tensors, or tuples and dicts of them, on the CPU.
        device: Where they are needed.

    Yields:
        Each batch on the device, or still on the CPU if the device has no room for it: parts of it may fit.
    """
    if device.type == "cpu":
        yield from batches
        return
    stream = torch.cuda.Stream(device)
    ahead: tuple[T, torch.cuda.Event] | None = None
    for batch in batches:
        copying = _copied(batch, device, stream), stream.record_event()
        if ahead:
            yield _awaited(*ahead, device)
        ahead = copying
    if ahead:
        yield _awaited(*ahead, device)


def _copied(batch: T, device: torch.device, stream: torch.cuda.Stream) -> T:
    """Starts a copy; returns the batch itself if out of memory."""
    try:
        with torch.cuda.stream(stream):
            return _moved(batch, device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return batch


def _awaited(batch: T, copied: torch.cuda.Event, device: torch.device) -> T:
    """Makes the current stream wait for the copy, and keeps the batch's memory until that stream is done with it."""
    current = torch.cuda.current_stream(device)
    current.wait_event(copied)
    for tensor in _tensors(batch):
        if tensor.device.type != "cpu":
            tensor.record_stream(current)
    return batch


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {name: _moved(part, device) for name, part in batch.items()}
    parts = (_moved(part, device) for part in batch)
    return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
        return
    for part in batch.values() if isinstance(batch, dict) else batch:
        yield from _tensors(part)
