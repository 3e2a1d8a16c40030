"""What can go wrong in a step: memory that runs out, numbers that are no longer finite."""

import torch
from torch import nn

from scenes.console import UserError, say
from scenes.training.checkpoint import State
from scenes.training.job import Fold


def split_further(fold: Fold, state: State) -> None:
    """Splits batches into twice as many parts, which gives the same gradients in half the memory.

    But for batch norms that learn: their statistics are those of a part.

    Raises:
        UserError: If the parts cannot be smaller.
    """
    halved = fold.processes.even(2 * state.accumulate, fold.job.most_parts)
    if halved <= state.accumulate:
        rows = -(-fold.train.batch_size // state.accumulate)
        what = "one image fits" if rows == 1 else f"{rows} images fit"
        raise UserError(f"{fold.name}: not even {what} into memory; lower image_size or take another model")
    state.accumulate = halved
    say(f"  {fold.name}: out of memory; from step {state.step} on batches are split in {state.accumulate}")
    if fold.job.device.type == "cuda":
        torch.cuda.empty_cache()


def out_of_memory(fold: Fold, state: State, where: str) -> UserError:
    """The error for memory that ran out where a batch cannot simply be split and tried again."""
    more = min(2 * state.accumulate, fold.job.most_parts)
    return UserError(
        f"{fold.name}: out of memory {where}, at step {state.step}; the last checkpoint is kept. Resume with batches "
        f"in smaller parts: --set train.accumulate={more}; or train a smaller model under another name"
    )


def check_finite(fold: Fold, state: State) -> None:
    """Stops a training before a loss or a weight that is not finite is saved.

    Raises:
        UserError: If there is one.
    """
    weights = nn.utils.get_total_norm(state.model.parameters())  # in one number, which is read from a GPU once
    if not torch.isfinite(fold.processes.total(state.loss_sum) + weights):
        raise UserError(
            f"{fold.name}: the loss is no longer finite at step {state.step}; the last good state is kept. "
            f"Lower train.lr ({fold.train.lr:g}) or train in full precision: --set train.precision=fp32"
        )
