"""Quantises an ONNX file to 8-bit integers, for phones, and measures the cost on the rows that each fold held out."""

import logging
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scenes.competition.decoding import Decoding
from scenes.competition.scores import with_error
from scenes.config import Config
from scenes.console import print_table, say
from scenes.data.dataset import Dataset, reopen_dataset
from scenes.data.images import Images
from scenes.files import keep_different, write_atomic
from scenes.inference.export import part_of, predict_with, save_graph
from scenes.inference.models import chosen_ensemble
from scenes.randomness import key
from scenes.runs import Run, fold_name, write_json

if TYPE_CHECKING:
    from onnx import ModelProto

CALIBRATED_ON = 256  # training images, at most a quarter of them, that the activation ranges are measured on
# Everything else computes in float32, including the head.
LAYERS = ("Conv", "MatMul", "Gemm")
OPERATORS = [*LAYERS, "Add"]
BODY = re.compile(r"models\.\d+\.body")  # a fold's body, in the scopes that torch's exporter records
BATCH = 32


def export_int8(run: Run, config: Config, folds: Sequence[int], file: Path, floats: "ModelProto") -> Path:
    """Writes an ONNX file's network in 8-bit integers, with the cost as JSON beside it.

    Weights have a scale per channel, activations one per tensor, from their range on a sample of the training images.
    Each fold's network in both files then predicts the rows that the fold held out, except those in the sample.

    Args:
        run: A run with these folds trained.
        config: The run's config.
        folds: Which models to use.
        file: The file that `export_onnx` wrote of them.
        floats: The graph that it returned.

    Returns:
        The path of the new file, NAME.int8.onnx.

    Raises:
        UserError: If the training data are missing or are not those of the run.
    """
    import onnx

    data = reopen_dataset(run, config)
    count = min(CALIBRATED_ON, max(1, len(data.table) // 4))
    sample = np.sort(np.random.default_rng(key("int8", config.seed)).permutation(len(data.table))[:count])
    graphs = {"float32": floats, "int8": _quantise(floats, data.images.take(sample.tolist()))}
    out = file.with_suffix(".int8.onnx")

    def write(temporary: Path) -> None:
        about = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
        save_graph(part_of(graphs["int8"], "probabilities"), about, temporary)
        keep_different(out, temporary)

    write_atomic(out, write)
    mib = {name: path.stat().st_size / 2**20 for name, path in zip(graphs, (file, out), strict=True)}
    say(
        f"wrote {out} ({mib['int8']:.1f} MiB; {mib['float32']:.1f} MiB as float32; ranges from {count} training images)"
    )
    held_out = {fold: np.setdiff1d(data.rows(fold)[1], sample) for fold in folds}
    if sum(map(len, held_out.values())):
        cost = _cost(graphs, data, held_out, chosen_ensemble(run, config).decoding) | {"mib": mib, "ranges_from": count}
        write_json(out.with_suffix(".json"), cost)
    else:
        say(f"the cost of int8 is not measured: {', '.join(map(fold_name, folds))} held out no rows")
    return out


def _cost(
    graphs: Mapping[str, "ModelProto"], data: Dataset, held_out: Mapping[int, np.ndarray], decoding: Decoding
) -> dict[str, Any]:
    """Scores both graphs on the rows that each fold held out and prints the paired difference."""
    metric, targets = data.metric, data.targets[np.concatenate(list(held_out.values()))]
    found = {name: _predict(graph, data.images, held_out) for name, graph in graphs.items()}
    decided = {name: decoding.apply(predictions) for name, (predictions, _) in found.items()}
    scores = {name: metric.score(decisions, targets) for name, decisions in decided.items()}
    speeds = {name: len(targets) / seconds for name, (_, seconds) in found.items()}
    rows = [(name, len(targets), with_error(*scores[name]), f"{speeds[name]:.1f}") for name in found]
    print_table(["held-out rows", "n", f"{metric.name} ± s.e.", "images per second here"], rows)
    gain, error = metric.gain(decided["float32"], decided["int8"], targets)
    verb = "gains" if gain > 0 else "costs"
    say(f"int8 {verb} {abs(gain):.4f} ± {error:.4f} in {metric.name}")
    change = gain if metric.larger_is_better else -gain
    about = {"metric": metric.name, "n": len(targets), "change": change, "change_se": error}
    return about | {"scores": scores, "images_per_second": speeds}


def _quantise(floats: "ModelProto", images: Images) -> "ModelProto":
    """Quantises the bodies in a graph, given the ranges of their activations on these images."""
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        """Yields the images one at a time, because they may differ in size."""

        def __init__(self) -> None:
            self.rows = iter(range(len(images)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            """The next input of the graph; None after the last one."""
            row = next(self.rows, None)
            return None if row is None else {"images": np.asarray(images[row])[None]}

    logging.disable(logging.WARNING)  # it recommends preprocessing that the exporter has already done
    try:
        with tempfile.TemporaryDirectory() as scratch:
            file, out = Path(scratch, "floats.onnx"), Path(scratch, "int8.onnx")
            onnx.save(floats, file)  # given a graph in memory, quantisation would change its weights
            quantization.quantize_static(
                file,
                out,
                Reader(),
                per_channel=True,
                reduce_range=True,  # 7-bit weights: with 8 bits, sums overflow on processors without VNNI
                op_types_to_quantize=OPERATORS,
                nodes_to_quantize=_body_nodes(floats),
                extra_options={"MatMulConstBOnly": True},  # attention's products of activations would lose too much
            )
            return onnx.load(out)
    finally:
        logging.disable(logging.NOTSET)


def _body_nodes(graph: "ModelProto") -> list[str]:
    """The names of the nodes in the folds' bodies, except each body's first and last layer, which lose the most."""
    constants = {tensor.name for tensor in graph.graph.initializer}
    nodes, layers = [], defaultdict(list)
    for node in graph.graph.node:
        about = {entry.key: entry.value for entry in node.metadata_props}
        body = BODY.search(about.get("pkg.torch.onnx.name_scopes", ""))
        if body:
            nodes.append(node)
            if node.op_type in LAYERS and node.input[1] in constants:
                layers[body[0]].append(node.input[1])
    floats = {weights for used in layers.values() for weights in (used[0], used[-1])}
    return [node.name for node in nodes if floats.isdisjoint(node.input)]


def _predict(graph: "ModelProto", images: Images, held_out: Mapping[int, np.ndarray]) -> tuple[np.ndarray, float]:
    """Predicts the rows that each fold held out, with the fold's own network.

    Returns:
        float32, shape (n, outputs), fold by fold; and the seconds it took.
    """
    import onnxruntime

    predictions, seconds = [], 0.0
    for fold, rows in held_out.items():
        if not len(rows):
            continue
        part = part_of(graph, fold_name(fold)).SerializeToString()
        session = onnxruntime.InferenceSession(part, providers=["CPUExecutionProvider"])
        for start in range(0, len(rows), 8 * BATCH):
            some = [images[row] for row in rows[start : start + 8 * BATCH]]
            began = time.perf_counter()
            predictions.append(predict_with(session, some, BATCH))
            seconds += time.perf_counter() - began
    return np.concatenate(predictions), seconds
