"""Several processes train a fold as one would; if stopped, killed or out of memory, all end in the same way.

Most are forked from this process, which saves their imports, and share a launcher's store that lives here.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import chdir
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from torch import distributed, nn

import train
from processes import exit_code, fork
from scenes.console import StoppedError, UserError
from scenes.inference.views import View
from scenes.model.backbone import Classifier
from scenes.script import run
from scenes.training import loop, recipe, validate
from scenes.training.distributed import Processes, together
from scenes.training.job import Fold
from tiny import TINY, make_workspace

SCRIPT = Path(train.__file__)
LONGEST = 100  # seconds
# Everything that is random or depends on the epoch; 14 steps, in batches that span epochs.
SETTINGS = [
    *TINY,
    "train.batch_norm=frozen",
    "train.epochs=4",
    "train.batch_size=14",
    "train.accumulate=2",
    "train.mixup=0.2",
    "train.average_epochs=2",
    "train.trainable_stages={0: 0, 1: 2, 3: all}",
    "model.dropout=0.1",
    "model.drop_path=0.1",
    "infer.batch_size=15",
]
COMMAND = ["tiny.yaml", "--folds", "0", "--submit", "--set", *SETTINGS]


def launch(world: int, command: list[str], prepare: Callable[[int], object] = lambda rank: None) -> list[int]:
    """Runs train.py in that many forked processes, as torchrun would; returns their exit codes.

    What each prints is added to RANK.log. `prepare` is called in each before it starts.
    """
    store = distributed.TCPStore("localhost", 0, is_master=True)
    common = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "localhost", "MASTER_PORT": store.port}
    common |= {"TORCHELASTIC_USE_AGENT_STORE": True, "OMP_NUM_THREADS": 1}

    def work(rank: int) -> None:
        signal.alarm(LONGEST)  # so that none waits forever
        own = common | {"RANK": rank, "LOCAL_RANK": rank}
        os.environ |= {name: str(value) for name, value in own.items()}
        prepare(rank)
        run(lambda: train.main(command))

    children = [fork(partial(work, rank), f"{rank}.log") for rank in range(world)]
    return [exit_code(child) for child in children]


def logs(folder: Path = Path()) -> list[str]:
    logs = [Path(folder, f"{rank}.log").read_text() for rank in range(2)]
    return [re.sub(r"^\[Gloo\].*\n", "", log, flags=re.MULTILINE) for log in logs]  # older versions of torch log these


def weights(folder: Path = Path()) -> dict[str, np.ndarray]:
    return load_file(folder / "runs/tiny/fold0/weights.safetensors")


def assert_close(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    assert max(np.abs(one[name].astype(float) - other[name]).max() for name in one) < 1e-5


def signal_at(at: int) -> None:
    """Makes this process signal itself in a step, when it asks for the learning rate."""
    learning_rate = recipe.learning_rate

    def watched(step: int, *arguments: Any) -> float:
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return learning_rate(step, *arguments)

    recipe.learning_rate = watched


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Path:
    """What one process produces with COMMAND."""
    with chdir(make_workspace(tmp_path_factory.mktemp("alone"), sample)):
        train.main(COMMAND)
        return Path.cwd()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Path:
    """What two processes produce with COMMAND."""
    with chdir(make_workspace(tmp_path_factory.mktemp("shared"), sample)):
        assert launch(2, COMMAND) == [0, 0]
        return Path.cwd()


def test_two_processes_do_what_one_does(alone: Path, shared: Path) -> None:
    assert_close(weights(shared), weights(alone))
    oof, expected = (pd.read_csv(root / "runs/tiny/oof.csv") for root in (shared, alone))
    pd.testing.assert_frame_equal(oof, expected, rtol=0, atol=1e-5)
    columns = ["epoch", "steps", "accumulate", "lr", "train_loss", "val_loss", "val_accuracy"]
    history, other = (pd.read_csv(root / "runs/tiny/fold0/history.csv")[columns] for root in (shared, alone))
    pd.testing.assert_frame_equal(history, other, rtol=1e-5)


def test_files_and_messages_are_the_main_processs(alone: Path, shared: Path) -> None:
    told, silent = logs(shared)
    assert "2 processes" in told
    assert told.count("epoch 3:") == 1
    assert not silent
    made, expected = (
        sorted(file.relative_to(root) for top in ("runs", "submissions") for file in (root / top).rglob("*.*"))
        for root in (shared, alone)
    )
    assert [file for file in made if "tfevents" not in file.name] == [
        file for file in expected if "tfevents" not in file.name
    ]


def test_a_stopped_run_resumes_with_another_number_of_processes(alone: Path, workspace: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(recipe, "learning_rate", recipe.learning_rate)  # to be restored
        signal_at(4)
        train.main(COMMAND)
    assert launch(2, COMMAND, lambda rank: signal_at(9) if rank == 1 else None) == [130, 130]
    assert "resumes at step 5 of 14" in logs()[0]
    assert "".join(logs()).count("everything is saved") == 1
    assert len(pd.read_csv("runs/tiny/fold0/history.csv")) == 2
    train.main(COMMAND)
    assert_close(weights(), weights(alone))


def test_a_time_budget_stops_all(workspace: Path) -> None:
    command = [*COMMAND, "train.time_budget_minutes=1e-9"]
    assert launch(2, command) == [3, 3]
    assert "".join(logs()).count("the time budget is used up") == 1


def test_a_killed_process_ends_all_with_one_message(alone: Path, workspace: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT)]
    with Path("log").open("w") as log:
        process = subprocess.Popen(
            [*launcher, *COMMAND, "train.checkpoint_minutes=1e-9"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    while not Path("runs/tiny/fold0/last.pt").exists() and process.poll() is None:
        time.sleep(0.05)
    victims = [each for each in psutil.Process(process.pid).children() if each.environ().get("RANK") == "1"]
    victims[0].kill()
    assert process.wait(60) != 0
    told = Path("log").read_text()
    assert told.count("a training process died") == 1
    assert "give the same command again" in told
    assert told.count("Traceback") == 1  # the launcher's own
    assert not Path("runs/tiny/fold0/weights.safetensors").exists()
    train.main(COMMAND)
    assert_close(weights(), weights(alone))


def test_out_of_memory_all_end_with_one_message_and_resume_in_smaller_parts(workspace: Path) -> None:
    command = [*COMMAND, "train.trainable_stages=all", "train.epochs=2"]
    forward = Classifier.forward

    def prepare(rank: int) -> None:
        def small_memory(self: Classifier, images: torch.Tensor) -> torch.Tensor:
            if rank == 1 and self.training and len(images) > 5:
                raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
            return forward(self, images)

        Classifier.forward = small_memory  # type: ignore[method-assign]

    assert 2 in launch(2, command, prepare)
    told = "".join(logs())
    assert told.count("out of memory") == told.count("--set train.accumulate=4") == 1
    assert "Traceback" not in told
    assert launch(2, [*command, "train.accumulate=4"], prepare) == [0, 0]
    split = weights()
    shutil.rmtree("runs")
    train.main([*command, "train.accumulate=4"])
    assert_close(split, weights())


def test_a_mistake_is_reported_once(workspace: Path) -> None:
    image = next(Path("input/SceneImages").iterdir())
    image.write_bytes(b"")
    assert 2 in launch(2, COMMAND)
    assert "".join(logs()).count("empty file") == 1
    assert image.name in "".join(logs())
    assert "Traceback" not in "".join(logs())
    assert "died" not in "".join(logs())


def test_batch_norm_that_learns_ends_as_the_main_processs_everywhere(workspace: Path) -> None:
    def prepare(rank: int) -> None:
        predict = validate.predict_held_rows

        def compared(fold: Fold, model: Classifier, views: Sequence[View]) -> np.ndarray:
            predictions = predict(fold, model, views)
            states = fold.processes.gather({name: value.numpy() for name, value in model.state_dict().items()})
            assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0])
            assert not np.array_equal(states[0]["body.bn1.running_mean"], np.zeros_like(states[0]["body.bn1.bias"]))
            return predictions

        loop.predict_held_rows = compared

    command = [*COMMAND, "train.batch_norm=batch", "train.epochs=1", "train.trainable_stages=all"]
    assert launch(2, command, prepare) == [0, 0]


def test_a_dry_run_and_a_head_on_features_know_processes(workspace: Path) -> None:
    head = ["augment=none", "train.trainable_stages=0", "train.mixup=0", "train.average_epochs=1"]
    assert launch(2, [*COMMAND[:3], "--dry-run", "--set", *SETTINGS, *head]) == [0, 0]
    told, silent = logs()
    assert told.count("would take about") == 1
    assert not silent
    assert not Path("runs").exists()


def test_more_processes_than_rows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(UserError, match="7 rows a step are too few for 8 processes"), together(7):
        pass


# ------------------------------------------------------------------------------------------------ who does what


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 8), st.integers(1, 60), st.integers(1, 70))
def test_micro_batches_are_shared_evenly(world: int, batch_size: int, accumulate: int) -> None:
    batch_size = max(world, batch_size)
    count = Processes(0, world).even(accumulate, batch_size)
    shares = [Processes(rank, world).micro_batches(batch_size, count) for rank in range(world)]
    assert {len(share) for share in shares} == {count // world}
    together = {number: places for share in shares for number, places in share.items()}
    split = torch.arange(batch_size).tensor_split(count)
    assert [together[number].tolist() for number in range(count)] == [part.tolist() for part in split]
    assert all(len(part) for part in split)
    if accumulate <= batch_size // world * world:
        assert accumulate <= count < accumulate + world


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 8), st.integers(0, 100), st.integers(1, 30))
def test_rows_to_predict_are_shared_in_whole_batches(world: int, count: int, batch_size: int) -> None:
    shares = [list(range(count))[Processes(rank, world).share(count, batch_size)] for rank in range(world)]
    assert [*chain(*shares)] == list(range(count))
    assert all(share[0] % batch_size == 0 for share in shares if share)
    assert max(map(len, shares)) - min(map(len, shares)) <= 2 * batch_size


def test_synchronised_batch_norms_keep_names_activations_and_outputs(trained: Path) -> None:
    from scenes.config import ModelConfig

    torch.manual_seed(0)
    model = Classifier(ModelConfig(name="test_efficientnet", weights="none"), 32, 3).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        before, names = model(images), list(model.state_dict())
        recipe.synchronise_batch_norms(model)
        assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules())
        assert list(model.state_dict()) == names
        torch.testing.assert_close(model.eval()(images), before)


def test_gradients_travel_once_a_step_while_others_are_still_computed() -> None:
    events: list[str] = []

    def travel(_: object, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        events.append("sent")
        sent: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        sent.set_result(bucket.buffer())
        return sent

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        processes = Processes(0, 2)
        layers = nn.Sequential(nn.Linear(8, 600), nn.Linear(600, 600), nn.Linear(600, 600))  # two buckets or more
        network = processes.wrap(layers, broadcast_buffers=False)
        network.register_comm_hook(None, travel)  # type: ignore[operator]
        layers[0].bias.register_hook(lambda _: events.append("first layer"))
        for _ in range(2):  # torch assigns gradients to buckets once it has seen the order in which they arrive
            events.clear()
            network.zero_grad()
            for number in (0, 2, 4):
                with processes.exchange(network, now=number == 4):
                    network(torch.ones(2, 8)).sum().backward()
        assert events[:2] == ["first layer"] * 2
        assert events.index("sent") < events.index("first layer", 2)
        assert layers[-1].bias.grad is not None
        assert layers[-1].bias.grad.eq(6).all()  # three micro-batches of two rows
    finally:
        distributed.destroy_process_group()
