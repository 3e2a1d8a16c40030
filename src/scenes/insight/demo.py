"""A page for trying out a run: predictions, Grad-CAM and the nearest training images for any image."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from scenes.competition.task import Task
from scenes.config import Config
from scenes.config_file import dump, portable
from scenes.console import UserError, say
from scenes.data.batches import resize
from scenes.data.dataset import reopen_dataset
from scenes.data.decode import BadImageError, decode
from scenes.data.images import kept_short_side
from scenes.environment import ROOT
from scenes.files import make_folder, write_text
from scenes.inference.models import ChosenEnsemble, chosen_ensemble, load_folds
from scenes.inference.predict import predict
from scenes.insight import page, saliency
from scenes.insight.neighbours import Neighbours, find_neighbours, load_neighbours, save_neighbours
from scenes.model.backbone import Classifier
from scenes.model.device import choose_device, choose_precision
from scenes.runs import Run

GRADIO = "gradio==6.31.0"
SHOWN = 5  # classes or labels
SIDE = 320  # pixels of the images on the page


@dataclass(frozen=True)
class Demo:
    """A run that is ready to explain images.

    Attributes:
        name: The run's name in training; in a Space, the folder's name differs.
        config: Its config.
        task: What it predicts, with readable names.
        models: The networks, on one device.
        chosen: How their predictions are combined.
        layer: The first network's last spatial layer, for Grad-CAM; None if there is none.
        neighbours: Training images to compare with; None if there are none.
    """

    name: str
    config: Config
    task: Task
    models: list[Classifier]
    chosen: ChosenEnsemble
    layer: nn.Module | None
    neighbours: Neighbours | None

    def explain(self, file: Path) -> dict[str, Any]:
        """Predicts and explains one image file.

        Returns:
            What demo.html shows; for an unreadable file, its name and the problem.
        """
        size = self.config.predict_size
        try:
            image = decode(file, kept_short_side(self.config.largest_size), self.config.data.pixel_range).pixels
        except BadImageError as error:
            return {"name": file.name, "problem": f"cannot be read as an image ({error})"}
        model = self.models[0]
        device = model.mean.device
        precision = choose_precision(self.config.infer.precision, device)
        predicted = predict(self.models, [image], np.arange(1), self.chosen.views, size, 1, device, precision, 0)
        values = self.chosen.combine(predicted)
        pixels = resize(image, size)[None]
        shown: dict[str, Any] = {"name": file.name, "problem": "", "image": page.thumbnail(image, SIDE), "heat": ""}
        shown |= self._describe(values[0], self.chosen.decoding.apply(values)[0])
        if self.layer is not None and saliency.is_available():
            heat = saliency.grad_cam(model, self.layer, pixels, values.argmax(1))
            shown["heat"] = page.thumbnail(saliency.overlay(image, heat[0]), SIDE)
        if self.neighbours:
            with torch.inference_mode():
                inputs = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)
                features = model.features(inputs)[0].float().cpu().numpy()
            shown["neighbours"] = self.neighbours.nearest(features)
        return shown

    def _describe(self, values: np.ndarray, decisions: np.ndarray) -> dict[str, Any]:
        """The prediction in words and its bars: (name, probability)."""
        task = self.task
        if task.kind == "number":
            return {"answer": f"{task.names[0]}: {decisions[0]:.4g}", "bars": []}
        best = np.argsort(-values, kind="stable")[:SHOWN]
        bars = [(task.names[at], float(values[at])) for at in best]
        if task.kind == "classes":
            return {"answer": task.names[int(decisions.argmax())], "bars": bars}
        given = [task.names[at] for at in np.flatnonzero(decisions >= 0.5)]
        return {"answer": ", ".join(given) or "no label", "bars": bars}

    def show(self, files: Sequence[str] | None) -> str:
        """The HTML that explains uploaded files."""
        return page.fragment("demo.html", images=[self.explain(Path(file)) for file in files or []])


def load_demo(run: Run, config: Config, folds: Sequence[int]) -> Demo:
    """Loads a run's networks and, if its training images are available, the neighbours to compare images with.

    Raises:
        UserError: If a fold's weights cannot be used.
    """
    models = load_folds(run, config, folds, choose_device())
    task = models[0].task
    layer = saliency.spatial_layer(models[0], config.predict_size)
    neighbours = _neighbours(run, config, models[0], task)
    return Demo(config.name, config, task, models, chosen_ensemble(run, config), layer, neighbours)


def _neighbours(run: Run, config: Config, model: Classifier, task: Task) -> Neighbours | None:
    """The training images that were saved with a Space, or those of the run's data."""
    if (kept := load_neighbours(run.folder)) is not None:
        return kept
    try:
        return find_neighbours(model, config, reopen_dataset(run, config), task)
    except UserError as error:
        say(f"nearest training images are not shown: {error}")
        return None


def serve(demo: Demo, host: str, port: int) -> None:
    """Serves the page until interrupted.

    Raises:
        UserError: If Gradio is not installed, or the port is taken.
    """
    if not find_spec("gradio"):
        raise UserError(f"demo.py needs Gradio: pip install {GRADIO}")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

    import gradio

    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # no web fonts
    with gradio.Blocks(title=demo.name, analytics_enabled=False) as blocks:
        gradio.Markdown(f"# {demo.name}\n{demo.config.model.name}, {demo.config.predict_size} px")
        files = gradio.File(file_count="multiple", file_types=["image"], label="Images")
        found = gradio.HTML()
        files.change(demo.show, files, found, show_progress="minimal")
    try:
        blocks.launch(server_name=host, server_port=port, theme=theme, share=False, footer_links=[])
    except OSError as error:
        raise UserError(f"port {port}: {error}; choose another one with --port") from None


APP = '''"""The page of this Space."""

from pathlib import Path

from scenes.insight.demo import load_demo, serve
from scenes.runs import Run

run = Run(Path(__file__).with_name("run"))
config = run.load_config()
serve(load_demo(run, config, run.chosen_folds(None, config.data.folds)), "0.0.0.0", 7860)
'''


def export_space(run: Run, config: Config, folds: Sequence[int], out: Path) -> None:
    """Writes the files of a Hugging Face Space: the app, the run, the code, thumbnails of training images.

    Raises:
        UserError: If `out` is not empty, or a fold's weights cannot be used.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already exists; name a new or empty folder")
    demo = load_demo(run, config, folds)
    kept = Run(out / "run")
    write_text(kept.config_file, dump(portable(config)))
    for file, copy in (
        (run.metrics_file, kept.metrics_file),
        *((run.weights_file(fold), kept.weights_file(fold)) for fold in folds),
    ):
        if file.exists():
            make_folder(copy.parent)
            shutil.copyfile(file, copy)
    for fold in folds:
        kept.fold_oof_file(fold).touch()  # marks the fold as trained
    if demo.neighbours:
        save_neighbours(demo.neighbours, kept.folder)
        say(f"{kept.folder} holds small training images with their labels: publish them only if the rules allow it")
    package = ROOT / "src/scenes"
    shutil.copytree(package, out / "scenes", ignore=shutil.ignore_patterns("__pycache__"))
    write_text(out / "app.py", APP)
    write_text(out / "requirements.txt", _requirements())
    write_text(out / "README.md", _read_me(demo))


def _requirements() -> str:
    """The project's pinned packages, without pretrained weights, plus Gradio."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.partition("#")[0].strip() for line in lines]
    kept = [pin for pin in pins if pin and "pytorch-model" not in pin]
    return "\n".join(["--extra-index-url https://download.pytorch.org/whl/cpu", *kept, GRADIO, ""])


def _read_me(demo: Demo) -> str:
    """The card of a Space: settings for Hugging Face, and a line about the model."""
    return (
        f"---\ntitle: {demo.name}\nsdk: gradio\nsdk_version: {GRADIO.partition('==')[2]}\napp_file: app.py\n"
        'python_version: "3.12"\n---\n\n'
        f"Drop in an image to see what {demo.config.model.name} predicts ({demo.task.kind}: "
        f"{', '.join(demo.task.names[:20])}), which parts of the image decide it, and the nearest training images.\n"
    )
