"""Exports a run as one ONNX file: images of any size in, infer.py's probabilities out."""

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from scenes.competition.rows import read_train_rows
from scenes.competition.task import Number
from scenes.config import Config
from scenes.console import UserError, print_table, say
from scenes.data.batches import resize, resize_weights
from scenes.data.decode import BadImageError, decode
from scenes.data.images import kept_short_side
from scenes.files import check_file, keep_different, write_atomic
from scenes.inference.models import ChosenEnsemble, chosen_ensemble, load_folds
from scenes.inference.predict import predict
from scenes.model.backbone import Classifier
from scenes.model.device import choose_device
from scenes.runs import Run, fold_name

if TYPE_CHECKING:
    from onnx import ModelProto

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
OPSET = 18  # from 2023: supported by every onnxruntime since 1.14
LARGEST_FILE = 2**31 - 2**24  # protobuf's limit is 2 GiB, including the graph
CHECKED = 256  # training images whose probabilities are compared
ALTERED = 16  # of these, also compared cropped and enlarged, so that resizing is checked on any data
# For images of the model's size: summing float32 in another order moves a probability by about 1e-6.
LARGEST_DIFFERENCE = 1e-3
# For resized images, on average: OpenCV interpolates in fixed point, so one pixel in ten is off by one level of 255.
# That moves EfficientNet-Lite0's probabilities by 0.002 on average, and by 0.03 at most, where two classes are close.
MEAN_DIFFERENCE = 1e-2


class Pipeline(nn.Module):
    """`predict` as one graph, in which a body shared by several folds is stored once."""

    def __init__(self, models: Sequence[Classifier], chosen: ChosenEnsemble, size: int) -> None:
        super().__init__()
        self.models, self.chosen, self.size = nn.ModuleList(models), chosen, size

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps uint8 RGB images (n, h, w, 3) to predictions (n, outputs).

        Returns:
            The calibrated mean over views and folds, then each fold's own calibrated mean over views.
        """
        views = self.chosen.views
        canvases = {side: fit(images, side) for side in {view.canvas(self.size) for view in views}}
        found = []
        for view in views:
            seen = view.apply(canvases[view.canvas(self.size)], self.size).permute(0, 3, 1, 2)
            models = cast(Sequence[Classifier], self.models)
            features = {body: model.features(seen) for body, model in {id(m.body): m for m in models}.items()}
            found += [torch.stack([model.predictions(features[id(model.body)]) for model in models])]
        folds = torch.stack(found).mean(0)
        return (self._calibrate(folds.mean(0)), *map(self._calibrate, folds))

    def _calibrate(self, mean: Tensor) -> Tensor:
        """`Calibration.apply` for the graph."""
        if not self.chosen.calibration.temperatures:
            return mean
        temperatures, tiny = torch.tensor(self.chosen.calibration.temperatures), torch.finfo(torch.float32).tiny
        logs = mean.clamp(min=tiny).log()
        if self.chosen.calibration.kind == "labels":
            return ((logs - (1 - mean).clamp(min=tiny).log()) / temperatures).sigmoid()
        return (logs / temperatures).softmax(-1)


def fit(images: Tensor, side: int) -> Tensor:
    """Resizes as `data.batches.resize` does, within one level of 255.

    Both of OpenCV's interpolations weight rows and columns independently, so each is a product with two matrices.
    ONNX's own Resize has no area interpolation, and choosing between the two would need branches in the graph.

    Args:
        images: uint8, shape (n, h, w, 3).
        side: The new side in pixels.

    Returns:
        float32, whole numbers 0 … 255, shape (n, side, side, 3).
    """
    height, width = images.shape[1:3]
    # Compared as tensors: a Python comparison would bake the example image's result into the graph.
    shrinks = (torch.arange(height)[-1] >= side) & (torch.arange(width)[-1] >= side)
    rows, columns = _weights(height, side, shrinks), _weights(width, side, shrinks)
    resized = rows @ images.permute(0, 3, 1, 2).float() @ columns.T
    return (resized + 0.5).floor().permute(0, 2, 3, 1)


def _weights(length: int, side: int, shrinks: Tensor) -> Tensor:
    """The weight of each old pixel in each new one: float32, shape (side, length), rows sum to 1."""
    ratio = length / side
    new, old = torch.arange(side, dtype=torch.float32)[:, None], torch.arange(length, dtype=torch.float32)[None]
    return resize_weights(new, old, ratio, old[:, -1:], shrinks)


def export_onnx(run: Run, config: Config, folds: Sequence[int], out: Path | None = None) -> tuple[Path, "ModelProto"]:
    """Writes the file if its probabilities match PyTorch's on training images.

    Args:
        run: A run with these folds trained.
        config: The run's config; its views go into the graph.
        folds: Which models to use.
        out: The output file; by default ``NAME.onnx`` in the run's folder.

    Returns:
        The file's path; and its graph with each fold's own predictions as further outputs, named after the fold.

    Raises:
        UserError: If a package is missing, the network cannot be exported, or the probabilities differ; then nothing
            is written.
    """
    if missing := [name for name in PACKAGES if not find_spec(name)]:
        raise UserError(f"--to onnx needs {', '.join(missing)}: pip install {' '.join(PACKAGES)}")
    out = out or run.folder / f"{run.name}.onnx"
    check_file(out)
    choose_device()  # sets up memory on a CPU; the comparison runs on the CPU, as onnxruntime does
    models = load_folds(run, config, folds, torch.device("cpu"))
    task, chosen = models[0].task, chosen_ensemble(run, config)
    metadata = {
        "classes": json.dumps(task.columns, ensure_ascii=False),
        "class_names": json.dumps(task.names, ensure_ascii=False),
        "views": ",".join(view.name for view in chosen.views),
        "image_size": str(config.predict_size),
        "run": run.name,
        "folds": ",".join(map(fold_name, folds)),
    }
    images = _training_images(config)
    graph = make_graph(Pipeline(models, chosen, config.predict_size).eval(), [fold_name(fold) for fold in folds])

    def write(temporary: Path) -> None:
        save_graph(part_of(graph, "probabilities"), metadata, temporary)
        _compare(temporary, models, chosen, images, config)
        keep_different(out, temporary)

    write_atomic(out, write)
    say(f"wrote {out} ({out.stat().st_size / 2**20:.1f} MiB; {metadata['folds']}; views: {metadata['views']})")
    return out, graph


def _training_images(config: Config) -> list[np.ndarray]:
    """Decodes up to `CHECKED` readable training images, spread evenly over the CSV."""
    table, _ = read_train_rows(config.data)
    chosen = np.unique(np.linspace(0, len(table) - 1, CHECKED).astype(int))
    images = []
    for row in chosen:
        try:
            short_side = kept_short_side(config.largest_size)
            images.append(decode(table.paths[row], short_side, config.data.pixel_range).pixels)
        except BadImageError:
            continue
    if not images:
        raise UserError(f"{table.file}: none of its images can be read, so the export cannot be checked")
    return images


def make_graph(pipeline: Pipeline, folds: Sequence[str]) -> "ModelProto":
    """Makes the graph with torch's dynamo-based exporter.

    Args:
        pipeline: In evaluation mode.
        folds: Names for each fold's own predictions; those of all folds are called ``probabilities``.

    Raises:
        UserError: If the network is too large for one file, or ONNX has no operator for something in it.
    """
    unique = {id(tensor): tensor for tensor in pipeline.state_dict(keep_vars=True).values()}
    size = sum(tensor.numel() * tensor.element_size() for tensor in unique.values())
    if size > LARGEST_FILE:
        raise UserError(f"{size / 2**30:.1f} GiB of weights do not fit into one ONNX file (2 GiB): use fewer --folds")
    example = torch.zeros(2, pipeline.size + 3, pipeline.size + 5, 3, dtype=torch.uint8)
    dynamic = dict.fromkeys((0, 1, 2), torch.export.Dim.DYNAMIC)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's own code
            program = torch.onnx.export(
                pipeline,
                (example,),
                input_names=["images"],
                output_names=["probabilities", *folds],
                dynamic_shapes={"images": dynamic},
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the tracer, exporter and optimiser each raise their own types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        name = pipeline.models[0].config.name
        raise UserError(f"{name} cannot be exported to ONNX by torch {torch.__version__}: {reason}") from None
    assert program is not None
    return cast("ModelProto", program.model_proto)


def part_of(graph: "ModelProto", output: str) -> "ModelProto":
    """Extracts the part of a graph that computes one of its outputs."""
    from onnx.utils import Extractor

    return Extractor(graph).extract_model(["images"], [output])


def save_graph(graph: "ModelProto", metadata: Mapping[str, str], path: Path) -> None:
    """Writes a graph with its metadata."""
    import onnx

    onnx.helper.set_model_props(graph, dict(metadata))
    onnx.save(graph, path)


def predict_with(session: Any, images: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
    """Predicts with onnxruntime, batching consecutive images of equal size: the first output, shape (n, outputs)."""
    batches: list[list[np.ndarray]] = []
    for _, same in groupby(images, key=np.shape):
        listed = list(same)
        batches += [listed[start : start + batch_size] for start in range(0, len(listed), batch_size)]
    return np.concatenate([session.run(None, {"images": np.stack(batch)})[0] for batch in batches])


def _compare(
    path: Path, models: Sequence[Classifier], chosen: ChosenEnsemble, images: list[np.ndarray], config: Config
) -> None:
    """Compares a file's probabilities with PyTorch's and prints the differences.

    Raises:
        UserError: If they differ by more than rounding explains.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    size, batch_size, cpu = config.predict_size, config.infer.batch_size, torch.device("cpu")
    sides = {view.canvas(size) for view in chosen.views}
    some = [resize(image, size) for image in images[:ALTERED]]
    altered = [image[: size - size // 4] for image in some] + [resize(image, size + size // 3) for image in some]
    strict = [image for image in images if len(sides) == 1 and {*image.shape[:2]} == sides]
    resized = [image for image in images if len(sides) > 1 or {*image.shape[:2]} != sides] + altered
    task = models[0].task
    unit = task.deviation if isinstance(task, Number) else 1.0  # probabilities are compared as they are
    rows = []
    for name, compared in (("unresized", strict), ("resized", resized)):
        if not compared:
            continue
        everything = np.arange(len(compared))
        ours = chosen.combine(predict(models, compared, everything, chosen.views, size, batch_size, cpu, workers=0))
        theirs = predict_with(session, compared, batch_size)
        differences = np.abs(ours - theirs).max(1) / unit
        mean, largest = float(differences.mean()), float(differences.max())
        is_close = largest <= LARGEST_DIFFERENCE if compared is strict else mean <= MEAN_DIFFERENCE
        if not is_close:  # also if one is NaN
            raise UserError(
                f"the graph's probabilities differ from PyTorch's on {name} images: by {mean:.1e} on average, by "
                f"{largest:.1e} at most; nothing was written (torch {torch.__version__}). Try --folds with one fold to "
                "see which one it is, or another version of torch or onnxruntime"
            )
        same = float((ours.argmax(1) == theirs.argmax(1)).mean())
        rows.append((name, len(compared), f"{mean:.1e}", f"{largest:.1e}", f"{same:.2%}"))
    print_table(["training images", "n", "mean |Δp|", "largest", "same class"], rows)
