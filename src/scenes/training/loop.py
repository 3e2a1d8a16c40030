"""One fold, top to bottom: start or resume, train step by step, validate after each epoch, predict, save.

Everything random in a step depends only on (seed, fold, step, micro-batch), so a resumed run ends in the same bytes.
Several processes take each step together: each runs its own micro-batches, then all make the same update.
"""

import math
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from scenes.console import Meter, StoppedError, say
from scenes.data.batches import StepSampler, train_loader
from scenes.data.resident import DRAWN, DrawnCrops
from scenes.files import write_atomic
from scenes.inference.predict import autocast
from scenes.inference.views import PLAIN, views_of
from scenes.model.depthwise import fast_gradients
from scenes.model.device import is_out_of_memory, set_determinism, synchronise
from scenes.model.prefetch import prefetched
from scenes.model.weights import save_classifier
from scenes.randomness import key, seed_all
from scenes.runs import Run
from scenes.script import StopRequest
from scenes.training import checkpoint, recipe
from scenes.training.checkpoint import State, write_records
from scenes.training.distributed import Processes
from scenes.training.guards import check_finite, out_of_memory, split_further
from scenes.training.job import Fold, Job
from scenes.training.probe import start_head_as_probe
from scenes.training.stopwatch import Stopwatch
from scenes.training.trackers import Trackers
from scenes.training.validate import in_words, predict_held_rows, scores, validate

CHECK_STEPS = 20  # how often to check that the loss is finite, which waits for the GPU


class Speed(NamedTuple):
    """What a fold achieved, in images per second."""

    train: float
    predict: float


def train_fold(
    job: Job,
    run: Run,
    number: int,
    deadline: float = math.inf,
    step_limit: int | None = None,
    processes: Processes | None = None,
) -> Speed:
    """Trains one fold, or resumes it, and predicts the rows it never saw.

    Args:
        job: What the run's folds share.
        run: Where to write.
        number: The fold's number, or FULL.
        deadline: When to save and stop, in seconds of the monotonic clock.
        step_limit: For a dry run: stop after this many steps and predict as many batches.
        processes: The processes that train it together; by default this one alone.

    Raises:
        UserError: If the loss is no longer finite, memory runs out, or a checkpoint cannot be used.
        StoppedError: If a signal or the deadline stopped it between two steps, with everything saved.
    """
    fold = Fold(job, run, number, processes or Processes(), step_limit)
    set_determinism(job.config.train.deterministic)
    state = _start(fold)
    if step_limit is None:
        checkpoint.resume(fold, state)
    is_tracked = fold.processes.is_main and step_limit is None
    with closing(Trackers(job.config, fold.folder, fold.name, is_tracked)) as trackers:
        trackers.log_history(state.history)
        rate = _train(fold, state, trackers, deadline)
        return Speed(rate, _finish(fold, state, trackers))


def _start(fold: Fold) -> State:
    """Makes the network and the optimiser in their state before the first step."""
    job, train, processes = fold.job, fold.train, fold.processes
    watch = Stopwatch(job.device)
    with watch.stage("features"), processes.main_first():
        job.compute_features()
    seed_all(key("init", job.config.seed, fold.number))
    model, history = job.new_model(), []
    model.name = fold.name
    if job.starts_with_probe:
        with watch.stage("probe"):
            history = start_head_as_probe(fold, model)
    if processes.world > 1 and job.device.type == "cuda" and not fold.freezes_batch_norm:
        recipe.synchronise_batch_norms(model)
    processes.copy_main_(model.state_dict().values())
    averaged = recipe.make_average(model, train)
    if train.compile:  # only the body, which training and prediction share; names in checkpoints stay the same
        torch.compiler.reset()  # torch limits the variants it compiles of a function, and earlier folds used some up
        for network in (model, averaged.module) if averaged else (model,):
            network.body.compile()
    return State(
        model,
        recipe.make_optimizer(model, train) if fold.schedule.steps else None,  # importing it imports torch's compiler
        torch.amp.GradScaler(job.device.type, enabled=job.precision == "fp16"),
        averaged,
        watch,
        torch.zeros((), device=job.device),
        processes.even(train.accumulate, train.batch_size),
        history=history,
    )


def _train(fold: Fold, state: State, trackers: Trackers, deadline: float) -> float:
    """Takes all steps, saving periodically; returns the images per second."""
    train, processes, is_kept = fold.train, fold.processes, fold.step_limit is None
    steps = fold.schedule.steps if is_kept else min(fold.step_limit or 0, fold.schedule.steps)
    meter = Meter(steps, fold.name, "img", train.batch_size, done=state.step)
    saved_at, network = time.monotonic(), None
    stop = StopRequest(deadline, processes.largest)
    with closing(meter), closing(prefetched(_batches(fold, state), fold.job.device)) as batches, stop:
        while state.step < steps and not state.stops_early(train.early_stopping):
            if network is None:  # a new epoch, whose number decides which parts train
                network = _network(fold, state)
            inputs, targets = _next(fold, state, batches, stop)
            rate = _step(fold, state, network, inputs, targets)
            meter.advance(lambda: f"loss {float(state.loss_sum) * processes.world / state.steps_of_epoch:.3f}")
            epoch = fold.schedule.ends_epoch(state.step - 1)
            if epoch is not None and is_kept:
                synchronise(fold.job.device)
                _end_epoch(fold, state, epoch, rate, trackers, meter.rate)
                network = None
            elif not is_kept and state.step == 1 < steps:  # the first step is a warm-up and not timed
                synchronise(fold.job.device)
                meter.restart()
            reason = stop.reason
            is_due = processes.any(time.monotonic() - saved_at > 60 * train.checkpoint_minutes)
            if is_kept and (network is None or is_due or reason):
                _save(fold, state)
                saved_at = time.monotonic()
                meter.restart()
            if reason:
                raise reason
        synchronise(fold.job.device)
        return meter.rate


def _batches(fold: Fold, state: State) -> Generator[tuple[Tensor, Tensor]]:
    """Yields this process's inputs (images, crops still to be made, or a frozen body's features) and their targets."""
    job, config = fold.job, fold.job.config
    parts = fold.processes.micro_batches(config.train.batch_size, state.accumulate)
    sampler = StepSampler(fold.schedule, state.step, np.concatenate([*parts.values()]).tolist())
    if job.trains_on_features:
        features = torch.from_numpy(job.features)
        for samples in sampler:
            rows = torch.tensor([sample.row for sample in samples])
            yield features[rows], fold.targets(rows)
        return
    if job.resident:
        crops = DrawnCrops(fold.augmented, job.data.training_images.shapes)
        for batch in train_loader(crops, sampler, config.loader.workers, job.device, DRAWN * 8):
            yield batch.images, fold.targets(batch.rows)
        return
    image_bytes = 3 * fold.augmented.size**2
    for batch in train_loader(fold.augmented, sampler, config.loader.workers, job.device, image_bytes):
        yield batch.images.permute(0, 3, 1, 2), fold.targets(batch.rows)


def _next(
    fold: Fold, state: State, batches: Iterator[tuple[Tensor, Tensor]], stop: StopRequest
) -> tuple[Tensor, Tensor]:
    """Waits for a batch; on a stop request in the meantime, a single process saves and stops at once."""
    if fold.processes.world > 1:
        return next(batches)
    try:
        with stop.interrupting():
            return next(batches)
    except StoppedError:
        if fold.step_limit is None:
            _save(fold, state)
        raise


def _network(fold: Fold, state: State) -> nn.Module:
    """The network with the epoch's modes and frozen parts, wrapped for training by several processes."""
    stages = recipe.trainable_stages(fold.train, fold.schedule.epoch(state.step))
    recipe.set_modes(state.model, stages, fold.freezes_batch_norm)
    network = state.model.head if fold.job.trains_on_features else state.model
    return fold.processes.wrap(network, broadcast_buffers=not fold.freezes_batch_norm)


def _step(fold: Fold, state: State, network: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Takes one optimiser step; returns its learning rate."""
    train, optimizer, scaler = fold.train, state.optimizer, state.scaler
    assert optimizer is not None  # there are steps
    costs = [fold.cost(row) for row in state.history] if train.schedule == "plateau" else []
    rate = recipe.learning_rate(state.step, fold.schedule, train, costs)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
    while not _add_gradients(fold, state, network, inputs, targets):
        split_further(fold, state)
    scaler.unscale_(optimizer)
    if train.clip_norm:
        nn.utils.clip_grad_norm_(network.parameters(), train.clip_norm)
    try:
        scaler.step(optimizer)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(fold, state, "in the optimiser step") from None
    scaler.update()
    optimizer.zero_grad()
    state.step += 1
    if state.step % CHECK_STEPS == 0:
        check_finite(fold, state)
    return rate


def _add_gradients(fold: Fold, state: State, network: nn.Module, inputs: Tensor, targets: Tensor) -> bool:
    """Runs the forward and backward pass in micro-batches; False, with nothing added, if memory ran out."""
    micro_batches = fold.processes.micro_batches(fold.train.batch_size, state.accumulate)
    sizes = [len(places) for places in micro_batches.values()]
    loss_before = state.loss_sum.clone()
    try:
        for number, *part in zip(micro_batches, inputs.split(sizes), targets.split(sizes), strict=True):
            with fold.processes.exchange(network, now=number == max(micro_batches)):
                loss = _loss(fold, state, network, number, *part)
                state.scaler.scale(loss * fold.processes.world).backward()  # averaged over the processes
            state.loss_sum += loss.detach()
        return True
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if fold.processes.world > 1:  # the others are waiting for this process's gradients
            raise out_of_memory(fold, state, "in one of the processes") from None
    # Outside the except clause, where the error would keep the failed step's memory alive.
    network.zero_grad()
    state.loss_sum.copy_(loss_before)
    return False


def _loss(fold: Fold, state: State, network: nn.Module, number: int, inputs: Tensor, targets: Tensor) -> Tensor:
    """Runs a micro-batch's forward pass; returns its share of the batch's mean loss."""
    job, train = fold.job, fold.train
    seed_all(key("step", job.config.seed, fold.number, state.step, number))  # for mixing, dropout and drop path
    inputs, targets = (tensor.to(job.device, non_blocking=True) for tensor in (inputs, targets))
    if job.resident:
        inputs = job.resident.crops(inputs, fold.augmented.size)
    if train.mixup or train.cutmix:
        inputs, targets = recipe.mix(inputs, targets, train)
    with autocast(job.device, job.precision), fast_gradients(job.device, train.compile):
        logits = network(inputs)
    losses = job.data.task.loss(logits, targets, train.label_smoothing, fold.class_weights)
    return losses.sum() / train.batch_size  # the whole batch's size, so that splitting does not change the gradient


def _end_epoch(fold: Fold, state: State, epoch: int, rate: float, trackers: Trackers, speed: float) -> None:
    """Validates and adds the epoch to the history."""
    check_finite(fold, state)
    steps = state.steps_of_epoch
    row = {
        "epoch": epoch,
        "steps": steps,
        "accumulate": state.accumulate,
        "lr": rate,
        "train_loss": float(fold.processes.total(state.loss_sum)) / steps,
        "images_per_second": round(speed, 1),
    }
    state.loss_sum.zero_()
    if state.averaged and epoch > fold.train.epochs - fold.train.average_epochs:
        state.averaged.update_parameters(state.model)
    is_last = state.step == fold.schedule.steps
    if len(fold.held_rows) and not (is_last and fold.predicts_plain_view and not fold.train.early_stopping):
        with state.watch.stage("validation"):
            row |= validate(fold, state)
    row = fold.processes.from_main(lambda: row)  # exactly the same everywhere: later decisions depend on it
    state.history.append(row)
    if fold.train.early_stopping:
        state.track_best(epoch, fold.cost(row))
    trackers.log(row, state.step)
    say(f"  {fold.name} epoch {epoch}: loss {row['train_loss']:.4f}{in_words(row)}, {speed:.0f} img/s")


def _save(fold: Fold, state: State) -> None:
    """Writes the checkpoint and the records, but never a state whose loss is not finite."""
    check_finite(fold, state)
    loss_sum = fold.processes.total(state.loss_sum)
    if fold.processes.is_main:
        checkpoint.save(fold.folder, state.state_dict() | {"loss_sum": loss_sum, "identity": fold.identity})
        write_records(fold, state)
    fold.processes.wait()  # if one exited now, the launcher would stop the main process while it writes


def _finish(fold: Fold, state: State, trackers: Trackers) -> float:
    """Saves the final weights and predicts the held-out rows; returns the images predicted per second."""
    check_finite(fold, state)
    model, data = state.eval_model, fold.job.data
    if state.best:
        model.load_state_dict(state.best["model"])
        say(f"  {fold.name}: restored epoch {state.best['epoch']}, the best on its held-out rows")
    if fold.processes.is_main:
        prior = data.task.prior(data.targets[data.rows(fold.number)[0]]).tolist()
        save_classifier(model, fold.run.weights_file(fold.number), data.task, fold.job.config.name, prior)
    if not len(fold.held_rows):
        write_records(fold, state)
        return 0.0
    views = views_of(fold.job.config)
    with state.watch.stage("prediction"):
        predictions = predict_held_rows(fold, model, views)
    if state.history and "val_loss" not in state.history[-1]:  # the last epoch skipped validation
        state.history[-1] |= scores(fold, predictions[views.index(PLAIN)])
        trackers.log(state.history[-1], state.step)
    write_records(fold, state)
    if fold.processes.is_main:
        content = {"probabilities": torch.from_numpy(predictions), "rows": torch.from_numpy(fold.held_rows)}
        metadata = {"views": ",".join(view.name for view in views)}
        write_atomic(fold.run.fold_oof_file(fold.number), lambda path: save_file(content, path, metadata))
    return len(fold.held_rows) * len(views) / state.watch.seconds["prediction"]
