"""Handles what can go wrong in a step: out of memory, values that are no longer finite."""

import torch
from torch import nn

from scenes.console import UserError, say
from scenes.training.checkpoint import State
from scenes.training.job import Fold


def split_further(fold: Fold, state: State) -> None:
    """Splits batches into twice as many micro-batches, for the same gradients in half the memory.

    The gradients change only if batch norms learn, because their statistics are then those of a micro-batch.

    Raises:
        UserError: If micro-batches cannot get any smaller.
    """
    doubled = fold.processes.even(2 * state.accumulate, fold.job.max_accumulate)
    if doubled <= state.accumulate:
        rows = -(-fold.train.batch_size // state.accumulate)
        what = "one image fits" if rows == 1 else f"{rows} images fit"
        raise UserError(f"{fold.name}: not even {what} into memory; lower image_size or use a smaller model")
    state.accumulate = doubled
    say(f"  {fold.name}: out of memory; from step {state.step} on, batches are split into {state.accumulate} parts")
    if fold.job.device.type == "cuda":
        torch.cuda.empty_cache()


def out_of_memory(fold: Fold, state: State, where: str) -> UserError:
    """The error for running out of memory where the batch cannot simply be split and retried."""
    more = min(2 * state.accumulate, fold.job.max_accumulate)
    return UserError(
        f"{fold.name}: out of memory {where}, at step {state.step}; the last checkpoint is kept. Resume with smaller "
        f"micro-batches: --set train.accumulate={more}; or train a smaller model under another name"
    )


def check_finite(fold: Fold, state: State) -> None:
    """Stops training before a loss or weight that is not finite gets saved.

    Raises:
        UserError: If the loss or a weight is not finite.
    """
    weights = nn.utils.get_total_norm(state.model.parameters())  # a single number, so a GPU is read once
    if not torch.isfinite(fold.processes.total(state.loss_sum) + weights):
        raise UserError(
            f"{fold.name}: the loss is no longer finite at step {state.step}; the last good state is kept. "
            f"Lower train.lr ({fold.train.lr:g}) or train in full precision: --set train.precision=fp32"
        )
