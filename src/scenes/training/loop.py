"""One fold, top to bottom: start or resume, train step by step, predict the held-out rows."""

import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from scenes.competition.metric import accuracy, log_losses
from scenes.competition.task import class_task
from scenes.console import Meter, StopRequest, UserError, say
from scenes.data.augment import AugmentedImages
from scenes.data.batches import Schedule, StepSampler, train_loader
from scenes.data.folds import FULL, fold_name
from scenes.files import write_atomic, write_text
from scenes.inference.predict import PLAIN, VIEWS, predict_as_configured
from scenes.model.backbone import Classifier
from scenes.model.weights import save_classifier
from scenes.randomness import key, seed_all
from scenes.runs import Run, write_json
from scenes.training import checkpoint, recipe
from scenes.training.distributed import Processes
from scenes.training.job import Job
from scenes.training.probe import fit_head
from scenes.training.stopwatch import Stopwatch
from scenes.training.trackers import Trackers

# Reading a loss back from a GPU waits for it, so it is looked at only so often; always before anything is saved.
LOOK_STEPS = 20


class Speed(NamedTuple):
    """What a fold achieved, in images per second."""

    train: float
    predict: float


class FoldTraining:
    """Trains one fold, or goes on where it was stopped, and predicts the rows it never saw.

    Everything random in a step follows from (seed, fold, step), so that a resumed run ends in the same bytes. Several
    processes do each step together: each its micro-batches forward and back, then all the same update.
    """

    def __init__(
        self,
        job: Job,
        run: Run,
        fold: int,
        deadline: float = math.inf,
        step_limit: int | None = None,
        processes: Processes | None = None,
    ) -> None:
        """Builds the fold's start.

        Args:
            job: What the run's folds share.
            run: Where to write.
            fold: Its number, or FULL.
            deadline: When to stop in good order, in seconds of the monotonic clock.
            step_limit: For a dry run: stop after so many steps and predict as many batches.
            processes: Those that train it together; by default this one alone.
        """
        self.processes = processes or Processes()
        self.job, self.run, self.fold, self.deadline, self.step_limit = job, run, fold, deadline, step_limit
        self.config, self.train = job.config, job.config.train
        self.name, self.folder = fold_name(fold), run.fold_folder(fold)
        self.train_rows, self.held_rows = job.data.rows(fold)
        if step_limit is not None:
            self.held_rows = self.held_rows[: step_limit * self.config.infer.batch_size]
        rows, targets = job.data.training_targets(fold)
        self.schedule = Schedule(rows, self.train.epochs, self.train.batch_size, self.config.seed, fold)
        self.targets = torch.from_numpy(targets).to(job.device)
        self.class_weights = recipe.class_weights(
            self.train, job.data.labels.targets[self.train_rows], len(job.data.labels.classes)
        )
        # What a checkpoint holds, beside the networks and the optimiser.
        self.step = 0
        self.accumulate = self.processes.even(self.train.accumulate, self.train.batch_size)
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.loss_sum = torch.zeros((), device=job.device)  # of this process's rows, see `_total_loss`
        self.watch = Stopwatch(job.device)

    def fit(self) -> Speed:
        """Trains and predicts the fold.

        Raises:
            UserError: If the loss is no longer finite, or a saved state cannot be used.
            StoppedError: If a signal or the deadline stopped it between two steps, all saved.
        """
        self._start()
        self._resume()
        steps = self.schedule.steps if self.step_limit is None else min(self.step_limit, self.schedule.steps)
        meter = Meter(steps, self.name, "img", self.train.batch_size, done=self.step)
        is_tracked = self.processes.is_main and self.step_limit is None
        trackers = Trackers(self.config, self.folder, self.name) if is_tracked else None
        try:
            if trackers:
                trackers.log_history(self.history)
            try:
                self._train(steps, meter, trackers)
            finally:
                meter.close()
            return Speed(meter.rate, self._finish(trackers))
        finally:
            if trackers:
                trackers.close()

    def _train(self, steps: int, meter: Meter, trackers: Trackers | None) -> None:
        """Goes through the steps, judging and saving at the end of each epoch."""
        batches, loss = self._batches(), math.nan
        last_save = time.monotonic()
        is_new_epoch = True
        with StopRequest(self.deadline, self.processes.largest) as stop:
            while self.step < steps and not self._stops_early():
                if is_new_epoch:  # modes follow from the epoch alone, so that a resumed run has them too
                    self._set_modes()
                rate = self._train_step(batches)
                if self.step % LOOK_STEPS == 0 or self.job.device.type == "cpu":
                    loss = float(self._total_loss()) / self._steps_of_epoch()
                meter.advance(f"loss {loss:.3f}  rate {rate:.1e}")
                epoch = self.schedule.ends_epoch(self.step - 1)
                is_new_epoch = epoch is not None and self.step_limit is None
                if is_new_epoch:
                    self._end_epoch(epoch, rate, trackers, meter.rate)
                reason = stop.reason
                due = self.processes.any(time.monotonic() - last_save > self.train.checkpoint_minutes * 60)
                if is_new_epoch or ((due or reason) and self.step_limit is None):
                    self._save()
                    last_save = time.monotonic()
                    meter.restart()
                elif self.step_limit and self.step == 1:
                    meter.restart()  # the first step of all warms up
                if reason:
                    raise reason

    def _start(self) -> None:
        """Makes the networks and the optimiser as they are before the first step."""
        job, train = self.job, self.train
        seed_all(key("init", self.config.seed, self.fold))
        self.model = job.new_model()
        if job.starts_with_probe:
            self._start_head_as_probe()
        self._share_batch_norms()
        self.processes.copy_main_(self.model.state_dict().values())
        self.averaged = recipe.make_average(self.model, train)
        self.accelerator = Accelerator(
            mixed_precision="no" if job.precision == "fp32" else job.precision, cpu=job.device.type == "cpu"
        )
        trained = self.model.head if job.trains_on_features else self.model
        # Without DistributedDataParallel: within its way back no process can say that its memory ran out.
        self.network = self.accelerator.prepare_model(trained, evaluation_mode=True)
        self.optimizer = self.accelerator.prepare_optimizer(recipe.make_optimizer(self.model, train))
        if job.trains_on_features:
            self._compute_features()  # before the steps are timed
        if self.class_weights is not None:
            self.class_weights = self.class_weights.to(job.device)

    def _share_batch_norms(self) -> None:
        """Lets batch norms that learn see the rows of all processes, where torch can do that: on GPUs."""
        is_frozen = recipe.freezes_batch_norm(self.train, self.job.pretrained is not None)
        self.shares_batch_norms = self.processes.world > 1 and not is_frozen and recipe.has_batch_norm(self.model)
        if self.shares_batch_norms and self.job.device.type == "cuda":
            recipe.synchronise_batch_norms(self.model)
        elif self.shares_batch_norms:
            say(f"  {self.name}: batch norm learns from each process's rows apart, as one process would not")

    def _compute_features(self) -> None:
        with self.watch.stage("features"), self.processes.main_first():
            self.job.compute_features()

    def _start_head_as_probe(self) -> None:
        """Replaces the random head by a logistic regression (LP-FT, Kumar et al. 2022, arXiv:2202.10054)."""
        labels, rows, seed = self.job.data.labels, self.train_rows, key("probe", self.config.seed, self.fold)
        self._compute_features()
        features = self.job.features
        with self.watch.stage("probe"):
            weights, biases, strength = self.processes.from_main(
                lambda: fit_head(features[rows], labels.targets[rows], len(labels.classes), seed)
            )
        linear = self.model.head[-1]
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weights))
            linear.bias.copy_(torch.from_numpy(biases))
        if len(self.held_rows):
            logits = torch.from_numpy(features[self.held_rows] @ weights.T + biases)
            row = self._scores(logits.softmax(1).numpy(), self.held_rows)
            self.history.append({"epoch": 0, "steps": 0, "accumulate": 0, "lr": 0.0, "train_loss": None, **row})
            say(f"  {self.name} probe: held-out accuracy {row['val_accuracy']:.4f}, strength C = {strength:g}")

    def _resume(self) -> None:
        """Goes on from the last checkpoint, if there is one."""
        if self.step_limit is not None:
            return
        saved = self.processes.from_main(lambda: checkpoint.load(self.folder, self._identity))
        if not saved:
            return
        try:
            self._restore(saved)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            last = self.folder / "last.pt"
            raise UserError(
                f"{last}: does not fit this network and optimiser ({type(error).__name__})\n"
                f"  → delete {last} and previous.pt beside it to start this fold anew"
            ) from None
        say(f"  {self.name} goes on at step {self.step} of {self.schedule.steps}")

    def _restore(self, saved: dict[str, Any]) -> None:
        """Takes over what a checkpoint holds."""
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.averaged:
            self.averaged.module.load_state_dict(saved["averaged"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        self.step = int(saved["step"])
        self.accumulate = self.processes.even(int(saved["accumulate"]), self.train.batch_size)
        self.history, self.best = saved["history"], saved["best"]
        if self.processes.is_main:
            self.loss_sum = saved["loss_sum"].to(self.job.device)
        self.watch.go_on(saved["watch"])

    def _save(self) -> None:
        """Writes the checkpoint and history.csv; never a state whose loss is not finite."""
        self._check_finite()
        loss_sum = self._total_loss()
        if self.processes.is_main:
            checkpoint.save(self.folder, self._state(loss_sum))
            self._write_records()
        self.processes.wait()  # who left earlier to stop would have the launcher stop the main one while it writes

    def _state(self, loss_sum: Tensor) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "identity": self._identity,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averaged": self.averaged.module.state_dict() if self.averaged else None,
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            "step": self.step,
            "accumulate": self.accumulate,
            "history": self.history,
            "best": self.best,
            "loss_sum": loss_sum,
            "watch": self.watch.state(),
        }

    @property
    def _identity(self) -> str:
        """What a checkpoint must belong to; the config itself is compared when a run begins."""
        return f"{self.config.name} {self.name} {self.config.model.name} {len(self.job.data.labels.classes)} classes"

    @property
    def _micro_batches(self) -> dict[int, np.ndarray]:
        """This process's micro-batches of a step: each one's number, and its places in the batch."""
        return self.processes.micro_batches(self.train.batch_size, self.accumulate)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields this process's (input, rows) of each step from the present one on; of the same again after a split."""
        while self.step < self.schedule.steps:
            accumulate = self.accumulate
            places = np.concatenate([*self._micro_batches.values()]).tolist()
            for inputs, rows in self._inputs(StepSampler(self.schedule, self.step, places)):
                yield inputs, rows
                if self.accumulate != accumulate:
                    break

    def _inputs(self, sampler: StepSampler) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields inputs, images or features of a frozen body, and their rows."""
        job, config = self.job, self.config
        if job.trains_on_features:
            features = torch.from_numpy(job.features)
            for samples in sampler:
                rows = torch.tensor([sample.row for sample in samples])
                yield features[rows], rows
            return
        pictures = AugmentedImages(
            job.data.training_images, config.augment, config.image_size, config.seed, self.fold, config.train.sizes
        )
        for batch in train_loader(pictures, sampler, config.loader.workers, job.device):
            yield batch.images.permute(0, 3, 1, 2), batch.rows

    def _set_modes(self) -> None:
        stages = recipe.trainable_stages(self.train, self.schedule.epoch(self.step))
        is_frozen = recipe.freezes_batch_norm(self.train, self.job.pretrained is not None)
        recipe.set_modes(self.model, stages, is_frozen)

    def _train_step(self, batches: Iterator[tuple[Tensor, Tensor]]) -> float:
        """Does one optimiser step; returns its rate."""
        rate = recipe.learning_rate(self.step, self.schedule, self.train, self.history)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        inputs, rows = next(batches)
        while not self._add_gradients(inputs, rows):
            self._halve_micro_batches()
            inputs, rows = next(batches)
        if self.train.clip_norm:
            self.accelerator.clip_grad_norm_(self.network.parameters(), self.train.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.shares_batch_norms and self.job.device.type == "cpu":
            self.processes.average_(tensor for tensor in self.model.body.buffers() if tensor.is_floating_point())
        if self.averaged:
            self.averaged.update(self.model, step=self.step)
        self.step += 1
        if self.step % LOOK_STEPS == 0:
            self._check_finite()
        return rate

    def _add_gradients(self, inputs: Tensor, rows: Tensor) -> bool:
        """Runs a batch forward and back in micro-batches; False, and nothing added, if any process's memory ran out."""
        loss_before = self.loss_sum.clone()
        micro_batches = self._micro_batches
        sizes = [len(places) for places in micro_batches.values()]
        try:
            for micro, part, part_rows in zip(micro_batches, inputs.split(sizes), rows.split(sizes), strict=True):
                self.accelerator.backward(self._loss(micro, part, part_rows))
            is_short = False
        except torch.OutOfMemoryError:
            is_short = True
        if is_short and self.shares_batch_norms:  # the others wait within the network
            raise UserError(
                f"{self.name}: out of memory while batch norm learns from all processes' rows; begin anew in smaller "
                f"parts: --set train.accumulate={2 * self.accumulate} name=NEW"
            )
        if self.processes.any(is_short):
            self.optimizer.zero_grad()
            self.loss_sum.copy_(loss_before)
            return False
        self.processes.add_up_([weight.grad for weight in self.network.parameters() if weight.grad is not None])
        return True

    def _loss(self, micro: int, inputs: Tensor, rows: Tensor) -> Tensor:
        """Runs a micro-batch forward; its part of the batch's mean loss."""
        device, train = self.job.device, self.train
        seed_all(key("step", self.config.seed, self.fold, self.step, micro))  # for dropout and drop path
        inputs = inputs.to(device, non_blocking=True)
        targets = self.targets[rows.to(device, non_blocking=True)]
        if train.mixup or train.cutmix:
            if targets.ndim == 1:
                targets = functional.one_hot(targets, len(self.job.data.labels.classes)).float()
            inputs, targets = recipe.mix(inputs, targets, train)
        with self.accelerator.autocast():
            logits = self.network(inputs)
        losses = functional.cross_entropy(
            logits.float(), targets, self.class_weights, reduction="none", label_smoothing=train.label_smoothing
        )
        # Divided by the whole batch, so that the split into micro-batches does not change the gradient.
        loss = losses.sum() / train.batch_size
        self.loss_sum += loss.detach()
        return loss

    def _halve_micro_batches(self) -> None:
        """Splits batches into twice as many parts, which gives the same gradients in half the memory."""
        halved = self.processes.even(2 * self.accumulate, self.train.batch_size)
        if halved == self.accumulate:
            raise UserError(f"{self.name}: not even one image fits into memory; lower image_size or take another model")
        self.accumulate = halved
        say(f"  {self.name}: out of memory; from step {self.step} on batches are split in {self.accumulate}")
        if self.job.device.type == "cuda":
            torch.cuda.empty_cache()

    def _total_loss(self) -> Tensor:
        """The sum of the mean losses of the epoch's steps so far."""
        return self.processes.total(self.loss_sum)

    def _check_finite(self) -> None:
        """Stops before a loss or a weight that is not finite can be saved."""
        if not all(torch.isfinite(tensor).all() for tensor in (self._total_loss(), *self.model.parameters())):
            raise UserError(
                f"{self.name}: the loss is no longer finite at step {self.step}; the last good state is kept. "
                f"Lower train.lr ({self.train.lr:g}) or train in full precision: --set train.precision=fp32"
            )

    def _steps_of_epoch(self) -> int:
        """How many steps the present epoch has had so far."""
        return self.step - sum(row["steps"] for row in self.history)

    def _end_epoch(self, epoch: int | None, rate: float, trackers: Trackers | None, speed: float) -> None:
        """Adds the epoch to the history and judges it."""
        self._check_finite()
        steps = self._steps_of_epoch()
        row = {
            "epoch": epoch,
            "steps": steps,
            "accumulate": self.accumulate,
            "lr": rate,
            "train_loss": float(self._total_loss()) / steps,
            "images_per_second": round(speed, 1),
        }
        self.loss_sum.zero_()
        if len(self.held_rows) and (self.step < self.schedule.steps or self.train.early_stopping):
            with self.watch.stage("judging"):
                row |= self._validate()
        row = self.processes.from_main(lambda: row)  # to the last digit: later decisions follow from it
        self.history.append(row)
        if self.train.early_stopping:
            self._track_best(row)
        if trackers:
            trackers.log(row, self.step)
        scores = f", held-out accuracy {row['val_accuracy']:.4f}" if "val_accuracy" in row else ""
        say(f"  {self.name} epoch {epoch}: loss {row['train_loss']:.4f}{scores}, {speed:.0f} img/s")

    @property
    def _judged(self) -> Classifier:
        """The network whose predictions count: the averaged one if there is one."""
        return self.averaged.module if self.averaged else self.model

    def _validate(self) -> dict[str, float]:
        """Scores the held-out rows under the plain view."""
        model = self._judged
        if self.job.trains_on_features:
            with torch.inference_mode():
                held = torch.from_numpy(self.job.features[self.held_rows]).to(self.job.device)
                return self._scores(model.head.eval()(held).float().softmax(1).cpu().numpy(), self.held_rows)
        scores = self._scores(self._predict(model, [PLAIN])[0], self.held_rows)
        if self.averaged:  # whether averaging pays, epoch by epoch
            raw = self._scores(self._predict(self.model, [PLAIN])[0], self.held_rows)
            scores |= {f"raw_{name}": value for name, value in raw.items()}
        return scores

    def _scores(self, probabilities: np.ndarray, rows: np.ndarray) -> dict[str, float]:
        targets = self.job.data.labels.targets[rows]
        loss = float(log_losses(probabilities, targets).mean())
        return {"val_loss": loss, "val_accuracy": accuracy(probabilities, targets)[0]}

    def _track_best(self, row: dict[str, Any]) -> None:
        """Keeps the weights of the epoch with the lowest held-out loss."""
        if self.best is None or row["val_loss"] < self.best["val_loss"]:
            state = {name: tensor.detach().cpu().clone() for name, tensor in self._judged.state_dict().items()}
            self.best = {"val_loss": row["val_loss"], "epoch": row["epoch"], "waited": 0, "model": state}
        else:
            self.best["waited"] += 1

    def _stops_early(self) -> bool:
        patience = self.train.early_stopping
        return bool(patience and self.best and self.best["waited"] >= patience)

    def _predict(self, model: Classifier, views: list[Any]) -> np.ndarray:
        """Probabilities of the held-out rows, each by one of the processes: float32, shape (views, n, classes)."""
        job, config = self.job, self.config
        label = f"predicting {self.name}" if len(views) > 1 else ""
        rows = self.held_rows[self.processes.share(len(self.held_rows), config.infer.batch_size)]
        own = (
            predict_as_configured(config, [model], job.data.images, rows, views, job.device, label)
            if len(rows)
            else None
        )
        return np.concatenate([part[0] for part in self.processes.gather(own) if part is not None], 1)

    def _finish(self, trackers: Trackers | None) -> float:
        """Predicts the held-out rows, saves that and the final weights; returns the prediction speed."""
        self._check_finite()
        model = self._judged
        if self.best:
            model.load_state_dict(self.best["model"])
            say(f"  {self.name}: restored epoch {self.best['epoch']}, the best on its held-out rows")
        classes = self.job.data.labels.classes
        prior = np.bincount(self.job.data.labels.targets[self.train_rows], minlength=len(classes)) / len(
            self.train_rows
        )
        if self.processes.is_main:
            save_classifier(
                model, self.run.weights_file(self.fold), class_task(classes), self.config.name, prior.tolist()
            )
        if self.fold == FULL:
            self._write_records()
            return 0.0
        views = VIEWS[self.config.infer.tta]
        with self.watch.stage("predicting"):
            probabilities = self._predict(model, views)
        speed = len(self.held_rows) * len(views) / self.watch.seconds["predicting"]
        if self.history and "val_loss" not in self.history[-1]:
            scores = self._scores(probabilities[0], self.held_rows)
            self.history[-1] |= scores
            if trackers:
                trackers.log(scores, self.step)
        self._write_records()
        content = {"probabilities": torch.from_numpy(probabilities), "rows": torch.from_numpy(self.held_rows)}
        metadata = {"views": ",".join(view.name for view in views)}
        if self.processes.is_main:
            write_atomic(self.run.fold_oof_file(self.fold), lambda path: save_file(content, path, metadata))
        return speed

    def _write_records(self) -> None:
        """Writes history.csv anew, the time taken and the memory needed."""
        if not self.processes.is_main:
            return
        write_json(self.run.time_file(self.fold), self.watch.state())
        if self.history:
            text = pd.DataFrame(self.history).to_csv(index=False, lineterminator="\n")
            write_text(self.folder / "history.csv", text)
