"""What must hold on a GPU besides speed, checked with the commands that users run: for gpu.py.

A check returns whether it passed and what was seen. Instead of a result, it returns None if a requirement is not
installed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load_file

from scenes.competition.experiment import load_experiment
from scenes.competition.metric import standard_error
from scenes.data.augment import FLIPS, PRESETS, AugmentedImages
from scenes.data.batches import Sample
from scenes.data.dataset import read_dataset
from scenes.data.resident import DrawnCrops, ResidentImages
from scenes.model.device import choose_device
from scenes.runs import Run

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/effnet_lite0.yaml"
Result = tuple[bool | None, str]

# train.py with little GPU memory. Without a GPU, large batches fail as if they did not fit.
LITTLE_MEMORY = """
import sys
sys.path.insert(0, sys.argv[1])
from scenes.environment import import_timm
import_timm()
import torch
if torch.cuda.is_available():
    torch.cuda.set_per_process_memory_fraction(float(sys.argv[2]))
else:
    from scenes.model.backbone import Classifier
    forward = Classifier.forward
    def limited(self, images):
        if self.training and len(images) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, images)
    Classifier.forward = limited
import train
train.main(sys.argv[3:])
"""


@dataclass
class Trials:
    """Trains one fold with different settings, each in its own process and under its own name.

    Attributes:
        folder: Where runs/ is.
        settings: Settings for all trials, as for ``--set``.
    """

    folder: Path
    settings: list[str]

    def command(self, name: str, *settings: str) -> list[str]:
        """Returns the arguments of train.py for a trial."""
        given = [*self.settings, f"name={name}", "report=false", *settings]
        return [str(CONFIG), "--folds", "0", "--set", *given]

    def train(self, name: str, *settings: str, launcher: tuple[str, ...] = (sys.executable,)) -> Run:
        """Trains unless the trial is finished; a failure reports what the process printed last."""
        run = Run(self.folder / "runs" / name)
        if not run.is_finished(0):
            self.call([*launcher, str(ROOT / "src/train.py"), *self.command(name, *settings)])
        return run

    def call(self, command: list[str], until: str = "", **environment: str) -> str:
        """Runs a command to its end, or kills it as soon as it prints a line that matches a pattern.

        Returns:
            The command's output.

        Raises:
            RuntimeError: If it failed, or ended before it could be killed.
        """
        printed, killed = [], False
        with subprocess.Popen(
            command,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **environment},
        ) as process:
            assert process.stdout
            for line in process.stdout:
                printed.append(line)
                if until and not killed and re.search(until, line):
                    process.kill()
                    killed = True
        if killed != bool(until) or (process.returncode and not killed):
            last = "".join(printed)[-2000:]
            raise RuntimeError(f"{' '.join(command[:3])} … exited with {process.returncode}:\n{last}")
        return "".join(printed)

    def correct(self, run: Run) -> np.ndarray:
        """Returns whether each held-out row is predicted correctly, 0 or 1, in row order."""
        found = load_file(run.fold_oof_file(0))
        order = np.argsort(found["rows"])
        data = read_dataset(load_experiment(CONFIG, self.settings))
        predicted = found["probabilities"].mean(0).argmax(1)
        return (predicted == data.targets[found["rows"]])[order].astype(float)


def precisions(trials: Trials) -> Result:
    """Accuracy in each precision is within two paired standard errors of fp32."""
    names = ["fp32", "bf16", "fp16"] if torch.cuda.is_available() else ["fp32", "bf16"]
    correct = {}
    for name in names:
        correct[name] = trials.correct(trials.train(name, f"train.precision={name}", f"infer.precision={name}"))
    parts, passed = [f"fp32 {correct['fp32'].mean():.4f}"], True
    for name in names[1:]:
        difference = correct[name] - correct["fp32"]
        error = standard_error(difference)
        passed &= bool(abs(difference.mean()) <= 2 * error)
        parts.append(f"{name} {correct[name].mean():.4f} (difference {difference.mean():+.4f} ± {error:.4f})")
    return passed, ", ".join(parts)


def crops(trials: Trials) -> Result:
    """Images cropped on the device match the CPU's, and networks trained on either are equally accurate."""
    config = load_experiment(CONFIG, [*trials.settings, "augment=light"])
    data, device = read_dataset(config), choose_device()
    augmented = AugmentedImages(data.images, config.augment, config.image_size, 0, 0, symmetry=config.symmetry)
    samples = [Sample(row, 0) for row in range(min(64, len(data.table)))]
    drawn = DrawnCrops(augmented, data.images.shapes).__getitems__(samples).images.to(device)
    made = ResidentImages(data.images, data.images.shapes, device).crops(drawn, config.image_size)
    difference = made.permute(0, 2, 3, 1).cpu().int() - augmented.__getitems__(samples).images.int()
    shrinks = drawn[:, 3:5].cpu() - drawn[:, 1:3].cpu() > config.image_size
    largest = int(difference[shrinks[:, 0] == shrinks[:, 1]].abs().max())  # OpenCV has its own rules for a mixture
    seen = f"pixels differ by {largest} at most"
    if device.type == "cpu":
        return largest <= 1, seen
    own_steps = json.dumps([*PRESETS["light"], *FLIPS[config.symmetry]])  # a list of transforms runs on the CPU
    here = trials.correct(trials.train("fp32", "train.precision=fp32", "infer.precision=fp32"))
    there = trials.train("cpu_crops", "train.precision=fp32", "infer.precision=fp32", f"augment={own_steps}")
    gain = here - trials.correct(there)
    error = standard_error(gain)
    passed = largest <= 1 and abs(gain.mean()) <= 2 * error
    return bool(passed), f"{seen}; accuracy differs by {gain.mean():+.4f} ± {error:.4f}"


def resume(trials: Trials) -> Result:
    """A killed run resumes to the same bytes with train.deterministic."""
    settings = ("train.deterministic=true",)
    whole = trials.train("whole", *settings)
    command = [sys.executable, str(ROOT / "src/train.py"), *trials.command("killed", *settings)]
    trials.call(command, until=r"epoch 1\b")
    resumed = trials.train("killed", *settings)
    digests = [sha256(run.weights_file(0).read_bytes()).hexdigest() for run in (whole, resumed)]
    same_predictions = np.array_equal(
        load_file(whole.fold_oof_file(0))["probabilities"], load_file(resumed.fold_oof_file(0))["probabilities"]
    )
    # The weights files contain the run's name, so tensors are compared if the files differ.
    one, other = load_file(whole.weights_file(0)), load_file(resumed.weights_file(0))
    same = digests[0] == digests[1] or all(np.array_equal(one[name], other[name]) for name in one)
    return same and same_predictions, f"same weights: {same}, same predictions: {same_predictions}"


def out_of_memory(trials: Trials) -> Result:
    """Batches that are too large are split, and training continues."""
    fraction = "1"
    if torch.cuda.is_available():
        peak = memory_peak(trials)
        fraction = str(0.6 * peak / (torch.cuda.get_device_properties(0).total_memory / 2**20))
    command = [sys.executable, "-c", LITTLE_MEMORY, str(ROOT / "src"), fraction, *trials.command("split")]
    trials.call(command)
    history = pd.read_csv(trials.folder / "runs/split/fold0/history.csv")
    parts = int(history["accumulate"].iloc[-1])
    return parts > 1, f"batches were split into {parts} parts"


def memory_peak(trials: Trials) -> float:
    """Returns the MiB that training in fp32 takes on the GPU."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from scenes.environment import import_timm; import_timm()\n"
        "import torch, train; train.main(sys.argv[2:])\n"
        "print('peak', torch.cuda.max_memory_allocated() / 2**20)"
    )
    printed = trials.call([sys.executable, "-c", code, str(ROOT / "src"), *trials.command("peak", "train.epochs=1")])
    return float(printed.rpartition("peak ")[2])


def distributed(trials: Trials) -> Result:
    """A single process started by a launcher trains what a process does without one."""
    alone = trials.train("whole", "train.deterministic=true")
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1")
    launched = trials.train("launched", "train.deterministic=true", launcher=launcher)
    one, other = (load_file(run.fold_oof_file(0))["probabilities"] for run in (alone, launched))
    largest = float(np.abs(one - other).max())
    return largest < 1e-3, f"largest difference in a probability {largest:.1e}"


def notebook(trials: Trials) -> Result:
    """A run's Kaggle kernel writes the same submission as infer.py."""
    run = trials.train("whole", "train.deterministic=true")
    python = sys.executable
    trials.call([python, str(ROOT / "src/infer.py"), "--run", str(run.folder), "--folds", "0", "--out", "home.csv"])
    build = [python, str(ROOT / "src/kernel.py"), "build", "--run", str(run.folder), "--folds", "0", "--script"]
    trials.call([*build, "--owner", "someone", "--competition", "scenes"])
    stage = trials.folder / "kaggle"
    shutil.rmtree(stage, ignore_errors=True)
    working = stage / "working"
    working.mkdir(parents=True)
    root = load_experiment(CONFIG, trials.settings).data.root
    shutil.copytree(
        run.folder / "kaggle/dataset", stage / "input/bundle", ignore=shutil.ignore_patterns("*-metadata.json")
    )
    shutil.copytree(root, stage / "input/scenes")
    script = next((run.folder / "kaggle/kernel").glob("*.py"))
    places = {"SCENES_KAGGLE_INPUT": str(stage / "input"), "SCENES_KAGGLE_WORKING": str(working)}
    trials.call([python, str(script)], **places)
    same = (working / "submission.csv").read_bytes() == (trials.folder / "home.csv").read_bytes()
    return same, f"the same bytes as infer.py: {same}"


def onnx(trials: Trials) -> Result:
    """The ONNX file runs on the device and agrees with PyTorch, which export.py checks on the CPU."""
    if not all(find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript")):
        return None, "onnx, onnxruntime and onnxscript are not installed"
    import onnxruntime

    wanted = "CUDAExecutionProvider" if torch.cuda.is_available() else "CPUExecutionProvider"
    if wanted not in onnxruntime.get_available_providers():
        return None, f"this onnxruntime has no {wanted}"
    run = trials.train("whole", "train.deterministic=true")
    file = trials.folder / "model.onnx"
    trials.call([sys.executable, str(ROOT / "src/export.py"), str(run.folder), "--to", "onnx", "--out", str(file)])
    image = np.random.default_rng(0).integers(0, 256, (1, 200, 180, 3), np.uint8)
    outputs = []
    for provider in ("CPUExecutionProvider", wanted):
        session = onnxruntime.InferenceSession(str(file), providers=[provider])
        outputs.append(session.run(None, {session.get_inputs()[0].name: image})[0])
    largest = float(np.abs(outputs[0] - outputs[1]).max())
    return largest < 1e-2, f"{wanted}: largest difference from the CPU {largest:.1e}"


CHECKS: dict[str, Callable[[Trials], Result]] = {
    "accuracy by precision": precisions,
    "crops on the device": crops,
    "kill and resume": resume,
    "out of memory": out_of_memory,
    "a launcher's process": distributed,
    "Kaggle kernel": notebook,
    "ONNX": onnx,
}


def check(trials: Trials, names: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Runs all checks, or those named; one that fails does not stop the others."""
    found: dict[str, dict[str, Any]] = {}
    for name in names or list(CHECKS):
        try:
            passed, seen = CHECKS[name](trials)
        except Exception as error:  # any error means that this check failed
            passed, seen = False, f"{type(error).__name__}: {error}"
        found[name] = {"passed": passed, "seen": seen}
        print(
            f"{name}: {'not possible here' if passed is None else 'passed' if passed else 'FAILED'}; {seen}", flush=True
        )
    return found
