"""How fast networks train and predict from files, compared with their own limit and with timm's scripts: for gpu.py.

Rows are measured in order of importance, so that a time limit costs as little as possible.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from measure import forward_flops, gpu_use, image_files, per_second, product_rate, random_images, timed
from peers.timm_loops import TimmLoops

from scenes.competition.experiment import load_experiment
from scenes.config import Config
from scenes.inference.predict import autocast, predict_as_configured
from scenes.inference.views import PLAIN
from scenes.model.backbone import Classifier
from scenes.model.depthwise import fast_gradients
from scenes.model.device import choose_precision
from scenes.model.fusion import fuse_batch_norms
from scenes.runs import Run
from scenes.training import recipe
from scenes.training.job import Job
from scenes.training.loop import train_fold
from scenes.training.prepare import prepare

ROOT = Path(__file__).resolve().parents[1]
CHECK_STEPS = 20  # the training loop waits for the GPU this often


class Network(NamedTuple):
    """A network to measure, with its image and batch size."""

    name: str
    size: int
    batch: int
    compiles: bool = False  # whether to measure it compiled too, which takes a minute or more


NETWORKS = (
    Network("tf_efficientnet_b3.ns_jft_in1k", 300, 128, compiles=True),
    Network("tf_efficientnet_lite0.in1k", 150, 256, compiles=True),
    Network("vit_small_patch16_224.augreg_in21k_ft_in1k", 224, 256),
    Network("vgg16.tv_in1k", 224, 128),
)
SMALL = (Network("test_efficientnet", 32, 8, compiles=False), Network("test_vit", 160, 4))


class Case(NamedTuple):
    """One way to compute; `crops` says where training images are cropped, as in Job."""

    precision: str
    compiled: bool = False
    crops: str = "gpu"
    predicts: bool = True


def cases(device: torch.device, network: Network) -> list[Case]:
    """Returns the cases that a device can compute, the automatic choices first."""
    if device.type != "cuda":
        bf16 = [Case("bf16")] if choose_precision("auto", device) == "bf16" else []  # very slow where it is emulated
        return [Case("fp32"), Case("fp32", crops="cpu", predicts=False), *bf16]
    compiled = [Case("bf16", compiled=True)] if network.compiles else []
    return [Case("bf16"), Case("bf16", crops="cpu", predicts=False), Case("fp32"), *compiled, Case("fp16")]


def measure(
    networks: tuple[Network, ...], settings: list[str], scratch: Path, seconds: float, deadline: float
) -> Iterator[dict[str, Any]]:
    """Yields a row for each case, network and task (training, prediction), until the deadline.

    Args:
        networks: What to measure.
        settings: Where the data is, as for ``--set``.
        scratch: An empty folder.
        seconds: How long each measurement takes at least.
        deadline: When to stop, in seconds of the monotonic clock.
    """
    benches = [(network, _bench(network, settings, scratch, seconds)) for network in networks]
    every = [(network, bench, cases(bench.device, network)) for network, bench in benches]
    for turn in range(max(len(listed) for *_, listed in every)):
        for network, bench, listed in every:
            for row in bench.rows(listed[turn]) if turn < len(listed) else ():
                yield {"network": network.name, "size": network.size, "batch": network.batch, **row}
            if time.monotonic() > deadline:
                return


def _bench(network: Network, settings: list[str], scratch: Path, seconds: float) -> "Bench":
    own = [
        f"model.name={network.name}",
        "model.weights=none",  # speed does not depend on the weights
        f"image_size={network.size}",
        "infer.image_size=null",
        f"train.batch_size={network.batch}",
        f"infer.batch_size={2 * network.batch}",
        "train.trainable_stages=all",
        "train.linear_probe=false",
        "train.epochs=1000",  # more than enough steps
        "infer.tta=none",
        f"data.cache={scratch / 'cache'}",
    ]
    return Bench(prepare(load_experiment(ROOT / "configs/effnet_lite0.yaml", [*settings, *own]), [0]), scratch, seconds)


def _forget(case: Case) -> None:
    """Makes room for new compilations: torch keeps a limited number of variants of one function."""
    if case.compiled:
        torch.compiler.reset()


class Bench:
    """One network on one set of images; all rates are in images per second."""

    def __init__(self, job: Job, scratch: Path, seconds: float) -> None:
        self.job, self.scratch, self.seconds, self.device = job, scratch, seconds, job.device
        self.others: dict[Any, float] = {}  # measured once, because they do not depend on where images are cropped
        model = job.new_model().eval()
        self.flops = forward_flops(model, job.config.image_size, self.device)
        paths = image_files(job.config.data.root)
        workers = torch.get_num_threads() if self.device.type == "cuda" else 0
        config = job.config
        self.timm = TimmLoops(
            config.model.name,
            config.image_size,
            config.train.batch_size,
            job.data.task.outputs,
            paths,
            workers,
            self.device,
        )

    def rows(self, case: Case) -> Iterator[dict[str, Any]]:
        """Measures training, then prediction."""
        config, way = self._config(case), (case.precision, case.compiled)
        limit = self._once(("limit", *way), lambda: self.train_limit(config, case))
        steps = self._steps(limit, config.train.batch_size)
        job = self._job(config, case.crops)
        with gpu_use() as busy:
            own, memory = self._with_memory(
                lambda: train_fold(job, Run(self.scratch / "run"), 0, step_limit=steps).train
            )
        _forget(case)
        timm = self._once(("timm", *way), lambda: self.timm.train(*way, steps))
        crops = "gpu" if job.resident else "cpu"
        yield {"crops": crops, **self._row("training", case, own, limit, timm, 3 * self.flops, memory, busy)}
        if not case.predicts:
            return
        limit = self.predict_limit(config, case)
        steps = self._steps(limit, config.infer.batch_size)
        with gpu_use() as busy:
            own, memory = self._with_memory(lambda: self.predict(config, case, steps))
        _forget(case)
        timm = self.timm.validate(*way, steps)
        _forget(case)
        yield {"crops": None, **self._row("prediction", case, own, limit, timm, self.flops, memory, busy)}

    def _once(self, name: Any, measure: Callable[[], float]) -> float:
        if name not in self.others:
            self.others[name] = measure()
        return self.others[name]

    def train_limit(self, config: Config, case: Case) -> float:
        """The recipe's steps on one resident batch."""
        model, job, train = self._model(config, case), self.job, config.train
        recipe.set_modes(model, "all", recipe.freezes_batch_norm(train, is_pretrained=False))
        optimizer = recipe.make_optimizer(model, train)
        scaler = torch.amp.GradScaler(self.device.type, enabled=case.precision == "fp16")
        images = random_images(train.batch_size, config.image_size, self.device)
        rows = np.arange(train.batch_size) % len(job.data.table)
        targets = torch.from_numpy(job.data.task.as_outputs(job.data.targets[rows])).to(self.device)

        def step() -> None:
            with autocast(self.device, case.precision), fast_gradients(self.device):
                logits = model(images)
            loss = job.data.task.loss(logits, targets, train.label_smoothing, None).mean()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            if train.clip_norm:
                torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()

        return train.batch_size * per_second(self.device, step, self.seconds)

    def predict_limit(self, config: Config, case: Case) -> float:
        """The network on one resident batch."""
        model = self._predictor(config, case)
        images = random_images(config.infer.batch_size, config.predict_size, self.device)
        with torch.inference_mode(), autocast(self.device, case.precision):
            rate = per_second(self.device, lambda: model.predictions(model.features(images)), self.seconds)
        return config.infer.batch_size * rate

    def predict(self, config: Config, case: Case, steps: int) -> float:
        """The plain view of cached images."""
        model = self._predictor(config, case)
        rows = np.resize(np.arange(len(self.job.data.table)), steps * config.infer.batch_size)

        def work(rows: np.ndarray) -> None:
            predict_as_configured(config, [model], self.job.data.images, rows, [PLAIN], self.device)

        work(rows[: config.infer.batch_size])
        return len(rows) / timed(self.device, lambda: work(rows))

    def _config(self, case: Case) -> Config:
        config = self.job.config
        train = config.train.model_copy(update={"precision": case.precision, "compile": case.compiled})
        infer = config.infer.model_copy(update={"precision": case.precision})
        return config.model_copy(update={"train": train, "infer": infer})

    def _job(self, config: Config, crops: str = "cpu") -> Job:
        return Job(config, self.job.data, self.job.pretrained, self.device, crops)

    def _model(self, config: Config, case: Case) -> Classifier:
        model = self._job(config).new_model()
        if case.compiled:
            model.body.compile()
        return model

    def _predictor(self, config: Config, case: Case) -> Classifier:
        model = self._job(config).new_model().eval()
        model.body = fuse_batch_norms(model.body, config.predict_size)  # as infer.py does
        if case.compiled:
            model.body.compile()
        return model

    def _steps(self, rate: float, batch: int) -> int:
        """Returns how many batches take the requested time, rounded to a multiple of CHECK_STEPS on a GPU."""
        steps = self.seconds * rate / batch
        return CHECK_STEPS * max(1, round(steps / CHECK_STEPS)) if self.device.type == "cuda" else max(2, round(steps))

    def _with_memory(self, work: Callable[[], float]) -> tuple[float, float | None]:
        """Runs work; returns its result and the GPU's peak memory in MiB beyond what was in use before."""
        if self.device.type != "cuda":
            return work(), None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        return work(), (torch.cuda.max_memory_allocated(self.device) - before) / 2**20

    def _row(
        self,
        task: str,
        case: Case,
        own: float,
        limit: float,
        timm: float,
        flops: float,
        memory: float | None,
        busy: list[float],
    ) -> dict[str, Any]:
        return {
            "task": task,
            "precision": case.precision,
            "compiled": case.compiled,
            "own": own,
            "resident": limit,
            "timm": timm,
            "own_over_resident": own / limit,
            "own_over_timm": own / timm,
            "flop_utilisation": own * flops / product_rate(case.precision, self.device),
            "gpu_busy_percent": float(np.mean(busy)) if busy else None,
            "peak_mib": memory,
        }
