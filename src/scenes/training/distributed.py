"""Several processes train one fold together, as torchrun or accelerate launch start them; a single one pays nothing.

All run the same program. Whatever decides what comes next, such as a stop request, is agreed on first: otherwise a
process would wait forever for what the others no longer do.
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

# For a process that hangs; one that dies closes its connections, which the others notice at once.
TIMEOUT = timedelta(minutes=30)
PATIENCE = timedelta(days=1)  # while the main process decodes a large competition's images
FAILED = "scenes/failed"

T = TypeVar("T")


class Processes:
    """The processes that train together; each has this object. Agreements go over gloo, off the GPU."""

    def __init__(self, rank: int = 0, world: int = 1, group: Any = None, patient: Any = None) -> None:
        """Takes this process's number, how many there are, the group they agree in, and one with a long timeout."""
        self.rank, self.world, self._group, self._patient = rank, world, group, patient

    @property
    def is_main(self) -> bool:
        """Whether this is the process that reads and writes the run's files."""
        return self.rank == 0

    def wait(self) -> None:
        """Returns when all processes are here."""
        if self.world > 1:
            distributed.barrier(self._patient)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Lets the main process through its block before the others, which then find its work in the caches."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()

    def from_main(self, make: Callable[[], T]) -> T:
        """Calls a function in the main process only; all get its result."""
        values = [make() if self.is_main else None]
        if self.world > 1:
            distributed.broadcast_object_list(values, 0, self._patient)
        return cast(T, values[0])

    def gather(self, value: T) -> list[T]:
        """Lists each process's value, in the order of the processes."""
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
        """Lets backward passes average gradients over the processes.

        The parameters that need gradients must not change afterwards: wrap the network again when they do.

        Args:
            network: The same in all processes, or they get the main process's weights.
            broadcast_buffers: Whether buffers change in training, such as running statistics that are not frozen.
        """
        if self.world == 1:
            return network
        # Gradients live in the buckets that are sent while the backward pass still computes others.
        return DistributedDataParallel(network, broadcast_buffers=broadcast_buffers, gradient_as_bucket_view=True)

    def exchange(self, network: nn.Module, now: bool) -> AbstractContextManager[None]:
        """The context of a backward pass of a wrapped network: gradients are averaged now, or with a later pass."""
        return nullcontext() if now or self.world == 1 else cast(DistributedDataParallel, network).no_sync()

    def even(self, accumulate: int, batch_size: int) -> int:
        """Rounds a number of micro-batches up, as far as there are rows, so that each process has equally many."""
        return min(-(-accumulate // self.world), batch_size // self.world) * self.world

    def micro_batches(self, batch_size: int, accumulate: int) -> dict[int, np.ndarray]:
        """This process's micro-batches: by number, which its randomness follows from, their places in the batch."""
        parts = np.array_split(np.arange(batch_size), accumulate)
        return {number: parts[number] for number in range(self.rank, accumulate, self.world)}

    def share(self, count: int, batch_size: int) -> slice:
        """This process's part of `count` places: whole batches, the same as a single process would form."""
        batches = -(-count // batch_size)
        first, last = (batches * rank // self.world for rank in (self.rank, self.rank + 1))
        return slice(first * batch_size, last * batch_size)


@contextmanager
def together(batch_size: int) -> Iterator[Processes]:
    """Joins the other processes of the launcher for a block, if there is a launcher.

    An error within the block ends this process. The first process to fail reports why; the others, which fail because
    of it, end silently, and without waiting for a GPU that itself waits for the lost process.

    Raises:
        UserError: If there are more processes than rows in a batch, or than GPUs.
    """
    if "LOCAL_RANK" not in os.environ:
        yield Processes()
        return
    if (world := int(os.environ.get("WORLD_SIZE", "1"))) > batch_size:
        raise UserError(f"train.batch_size: {batch_size} rows a step cannot be shared by {world} processes")
    device = choose_device()
    if not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
        atexit.register(distributed.destroy_process_group)  # not sooner: another run may follow
    groups = [distributed.new_group(backend="gloo", timeout=timeout) for timeout in (TIMEOUT, PATIENCE)]
    processes = Processes(distributed.get_rank(), distributed.get_world_size(), *groups)
    try:
        yield processes
    except (Exception, KeyboardInterrupt) as error:
        _leave(error, processes)


def _leave(error: BaseException, processes: Processes) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM):  # the launcher stops all as soon as one is gone
        signal.signal(number, signal.SIG_IGN)
    if _is_lost(error):
        error = StoppedError("a training process died or no longer answers", 1, "the last checkpoint is kept")
    elif isinstance(error, StoppedError):  # agreed on: the others come here too
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
    os._exit(code)  # an ordinary exit would wait for what is still running on a GPU


def _is_lost(error: BaseException) -> bool:
    """Whether an error means that another process is gone."""
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo/" in str(error))


def _is_first_to_fail() -> bool:
    """Asks the launcher's store, which outlives the processes."""
    try:
        return distributed.distributed_c10d._get_default_store().add(FAILED, 1) == 1
    except RuntimeError:  # the store was in the process that is gone
        return True
