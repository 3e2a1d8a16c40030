"""Several processes train a fold together, as torchrun or accelerate starts them; for one alone, nothing here costs.

Each goes through the same program. What decides where it goes, such as a wish to stop, is agreed on first: else one
would wait for ever for what the others no longer do.
"""

import atexit
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NoReturn, TypeVar, cast

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor, distributed

from scenes.console import StoppedError, UserError, report
from scenes.model.device import choose_device

# For a process that hangs; one that dies closes its connections, which the others notice at once.
TIMEOUT = timedelta(minutes=30)
PATIENCE = timedelta(days=1)  # while the main process decodes a large competition's images
FAILED = "scenes/failed"

T = TypeVar("T")


class Processes:
    """The processes that train together, each with this object; what is agreed on stays off the GPU (gloo)."""

    def __init__(self, rank: int = 0, world: int = 1, group: Any = None, patient: Any = None) -> None:
        """Takes this process's number, how many there are, the group they agree in, and one that waits for long."""
        self.rank, self.world, self._group, self._patient = rank, world, group, patient

    @property
    def is_main(self) -> bool:
        """Whether this is the process that reads and writes the run's files."""
        return self.rank == 0

    def wait(self) -> None:
        """Goes on when all are here."""
        if self.world > 1:
            distributed.barrier(self._patient)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Lets the main process through its block before the others, who then find its work in the caches."""
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
        """Lists what each process gives, in their order."""
        values: list[Any] = [value] * self.world
        if self.world > 1:
            distributed.all_gather_object(values, value, self._group)
        return values

    def largest(self, value: int) -> int:
        """The largest of what the processes give."""
        if self.world == 1:
            return value
        number = torch.tensor(value)
        distributed.all_reduce(number, distributed.ReduceOp.MAX, self._group)
        return int(number)

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return bool(self.largest(flag))

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of the processes' tensors, on their device."""
        if self.world == 1:
            return tensor
        tensor = tensor.clone()
        distributed.all_reduce(tensor)
        return tensor

    def add_up_(self, tensors: Sequence[Tensor]) -> None:
        """Sets each tensor to its sum over the processes, all in one exchange."""
        if self.world > 1:
            sums = self.total(torch.cat([tensor.flatten() for tensor in tensors]))
            for tensor, part in zip(tensors, sums.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def copy_main_(self, tensors: Iterable[Tensor]) -> None:
        """Sets each tensor to the main process's."""
        for tensor in tensors if self.world > 1 else ():
            distributed.broadcast(tensor, 0)

    def average_(self, tensors: Iterable[Tensor]) -> None:
        """Sets each tensor to its mean over the processes."""
        for tensor in tensors:
            tensor.copy_(self.total(tensor) / self.world)

    def even(self, accumulate: int, batch_size: int) -> int:
        """The number of micro-batches, at least so many if there are rows, of which each process has as many."""
        return min(-(-accumulate // self.world), batch_size // self.world) * self.world

    def micro_batches(self, batch_size: int, accumulate: int) -> dict[int, np.ndarray]:
        """This process's micro-batches: each one's number, from which its randomness follows, and places in a batch."""
        parts = np.array_split(np.arange(batch_size), accumulate)
        return {number: parts[number] for number in range(self.rank, accumulate, self.world)}

    def share(self, count: int, batch_size: int) -> slice:
        """Which of `count` places are this process's: whole batches, just as one process alone would see them."""
        batches = -(-count // batch_size)
        first, last = (batches * rank // self.world for rank in (self.rank, self.rank + 1))
        return slice(first * batch_size, last * batch_size)


@contextmanager
def together(batch_size: int) -> Iterator[Processes]:
    """Joins the other processes of the launcher for a block, if there is a launcher.

    An error within the block ends this process: the first that fails says why, the others, who fail because of it, end
    without a word. They do not wait for a GPU that waits for the one that is gone.

    Raises:
        UserError: If there are more processes than rows in a batch, or than GPUs.
    """
    if "LOCAL_RANK" not in os.environ:
        yield Processes()
        return
    if (world := int(os.environ.get("WORLD_SIZE", "1"))) > batch_size:
        raise UserError(f"train.batch_size: {batch_size} rows a step cannot be shared by {world} processes")
    is_new = not distributed.is_initialized()
    state = PartialState(cpu=choose_device().type == "cpu", timeout=TIMEOUT)
    if is_new:
        atexit.register(distributed.destroy_process_group)  # not sooner: another run may follow
    groups = [distributed.new_group(backend="gloo", timeout=timeout) for timeout in (TIMEOUT, PATIENCE)]
    processes = Processes(state.process_index, state.num_processes, *groups)
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
    os._exit(code)  # an ordinary end would wait for what is still under way on a GPU


def _is_lost(error: BaseException) -> bool:
    """Whether an error means that another process is not there any more."""
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo/" in str(error))


def _is_first_to_fail() -> bool:
    """Asks the launcher's store, which outlives the processes."""
    try:
        return distributed.distributed_c10d._get_default_store().add(FAILED, 1) == 1
    except RuntimeError:  # it was in the process that is gone
        return True
