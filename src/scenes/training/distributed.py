"""Training of one fold by several processes, started by torchrun or accelerate launch; no cost for a single process.

All processes run the same program. They agree on whatever decides the next step, such as a stop request; otherwise one
of them would wait forever for something that the others no longer do.
"""

import atexit
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any, NoReturn, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from scenes.console import StoppedError, UserError
from scenes.model.device import choose_device
from scenes.script import report

# For a process that hangs; if one dies, its connections close and the others notice at once.
TIMEOUT = timedelta(minutes=30)
LONG_TIMEOUT = timedelta(days=1)  # while the main process decodes a large competition's images
FAILED = "scenes/failed"

T = TypeVar("T")


class Processes:
    """The processes that train together, as seen by each of them. They agree over gloo, off the GPU."""

    def __init__(self, rank: int = 0, world: int = 1, group: Any = None, slow_group: Any = None) -> None:
        """Takes this process's rank, the number of processes, their gloo group, and one with a long timeout."""
        self.rank, self.world, self._group, self._slow_group = rank, world, group, slow_group

    @property
    def is_main(self) -> bool:
        """Whether this is the process that reads and writes the run's files."""
        return self.rank == 0

    def wait(self) -> None:
        """Returns once all processes have called it."""
        if self.world > 1:
            distributed.barrier(self._slow_group)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Runs the block in the main process first; the others then find its work in the caches."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()

    def from_main(self, make: Callable[[], T]) -> T:
        """Calls a function in the main process only and returns its result in all of them."""
        values = [make() if self.is_main else None]
        if self.world > 1:
            distributed.broadcast_object_list(values, 0, self._slow_group)
        return cast(T, values[0])

    def gather(self, value: T) -> list[T]:
        """Lists the values of all processes, by rank."""
        values: list[Any] = [value] * self.world
        if self.world > 1:
            distributed.all_gather_object(values, value, self._group)
        return values

    def largest(self, value: int) -> int:
        """The largest of the processes' values."""
        if self.world == 1:
            return value
        number = torch.tensor(value)
        distributed.all_reduce(number, distributed.ReduceOp.MAX, self._group)
        return int(number)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return bool(self.largest(flag))

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of the processes' tensors, on their device."""
        if self.world == 1:
            return tensor
        tensor = tensor.clone()
        distributed.all_reduce(tensor)
        return tensor

    def copy_main_(self, tensors: Iterable[Tensor]) -> None:
        """Sets each tensor to the main process's."""
        for tensor in tensors if self.world > 1 else ():
            distributed.broadcast(tensor, 0)

    def wrap(self, network: nn.Module, broadcast_buffers: bool) -> nn.Module:
        """Makes backward passes average gradients over the processes.

        When the set of parameters that need gradients changes, wrap the network again.

        Args:
            network: The same in all processes; otherwise they get the main process's weights.
            broadcast_buffers: Whether training changes buffers, such as running statistics that are not frozen.
        """
        if self.world == 1:
            return network
        # Gradients live in the buckets, which are sent while the backward pass is still running.
        return DistributedDataParallel(network, broadcast_buffers=broadcast_buffers, gradient_as_bucket_view=True)

    def exchange(self, network: nn.Module, now: bool) -> AbstractContextManager[None]:
        """The context for a wrapped network's backward pass: gradients are averaged now or in a later pass."""
        return nullcontext() if now or self.world == 1 else cast(DistributedDataParallel, network).no_sync()

    def even(self, accumulate: int, batch_size: int) -> int:
        """Rounds a number of micro-batches up, as far as there are rows, so that all processes have the same number."""
        return min(-(-accumulate // self.world), batch_size // self.world) * self.world

    def micro_batches(self, batch_size: int, accumulate: int) -> dict[int, np.ndarray]:
        """This process's micro-batches: from their number, which seeds them, to their positions in the batch."""
        parts = np.array_split(np.arange(batch_size), accumulate)
        return {number: parts[number] for number in range(self.rank, accumulate, self.world)}

    def share(self, count: int, batch_size: int) -> slice:
        """This process's share of `count` rows: whole batches, the same ones a single process would form."""
        batches = -(-count // batch_size)
        first, last = (batches * rank // self.world for rank in (self.rank, self.rank + 1))
        return slice(first * batch_size, last * batch_size)


@contextmanager
def together(batch_size: int) -> Iterator[Processes]:
    """Joins the launcher's other processes for the duration of a block, if there is a launcher.

    An error within the block ends this process. The first process to fail reports why; the others, which fail as a
    consequence, exit silently and without waiting for a GPU that is itself waiting for the lost process.

    Raises:
        UserError: If there are more processes than rows in a batch, or more than GPUs.
    """
    if "LOCAL_RANK" not in os.environ:
        yield Processes()
        return
    if (world := int(os.environ.get("WORLD_SIZE", "1"))) > batch_size:
        raise UserError(f"train.batch_size: {batch_size} rows a step are too few for {world} processes")
    device = choose_device()
    if not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
        atexit.register(distributed.destroy_process_group)  # not sooner: another run may follow
    groups = [distributed.new_group(backend="gloo", timeout=timeout) for timeout in (TIMEOUT, LONG_TIMEOUT)]
    processes = Processes(distributed.get_rank(), distributed.get_world_size(), *groups)
    try:
        yield processes
    except (Exception, KeyboardInterrupt) as error:
        _leave(error, processes)


def _leave(error: BaseException, processes: Processes) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM):  # the launcher stops all once one has exited
        signal.signal(number, signal.SIG_IGN)
    if _is_lost(error):
        error = StoppedError("a training process died or no longer answers", 1, "the last checkpoint is kept")
    elif isinstance(error, StoppedError):  # agreed on, so the others get here too
        with suppress(RuntimeError):
            processes.wait()
    is_first = _is_first_to_fail()
    try:
        code = report(error, quiet=not is_first)
    except Exception:
        code = 1
        if is_first:
            traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a normal exit would wait for work still running on a GPU


def _is_lost(error: BaseException) -> bool:
    """Whether an error means that another process has died."""
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo/" in str(error))


def _is_first_to_fail() -> bool:
    """Whether this process fails first, according to the launcher's store, which outlives the processes."""
    try:
        return distributed.distributed_c10d._get_default_store().add(FAILED, 1) == 1
    except RuntimeError:  # the store was in the process that died
        return True
