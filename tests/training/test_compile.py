"""What train.compile compiles; uses only torch's tracer, whose graphs compute exactly what the layers do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from tiny import fit


def test_compiled_training_and_prediction_give_what_the_plain_ones_give(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: set[str] = set()

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        def run(*inputs: Any) -> Any:
            ran.add("prediction" if torch.is_inference_mode_enabled() else "training")
            return graph(*inputs)

        return run

    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_module(module, backend=backend))
    settings = ["model.name=simple_cnn", "train.epochs=2", "train.average_epochs=2"]
    files = {}
    for name in ("plain", "compiled"):
        fit("--folds=0", *settings, f"name={name}", f"train.compile={str(name == 'compiled').lower()}")
        folder = Path("runs") / name / "fold0"
        files[name] = [load_file(folder / "weights.safetensors"), load_file(folder / "oof.safetensors")]
        checkpoint = torch.load(folder / "last.pt", weights_only=True)
        files[name].append({key: tensor.numpy() for key, tensor in checkpoint["averaged"].items()})
        assert ran == (set() if name == "plain" else {"training", "prediction"})
    for one, other in zip(files["plain"], files["compiled"], strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_allclose(one[key], other[key], atol=1e-6, err_msg=key)
