"""benchmarks/gpu.py with --small, on whatever this machine has: every part runs and reports what it should."""

import importlib
import json
import os
import re
import runpy
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from processes import fork

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The benchmark, with its results going to a temporary folder."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(importlib.import_module("results"), "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.chdir(tmp_path)
    return importlib.import_module("gpu")


def test_speed_has_each_rate_beside_its_limit_and_timms(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.gpu_speed, "SMALL", gpu.gpu_speed.SMALL[:1])
    monkeypatch.setattr(gpu.gpu_speed, "product_rate", lambda *_: 1e12)  # in bf16, a CPU needs many seconds
    gpu.main(["--small", "--only", "speed", "--seconds", "0.01", "--out", "out.json"])
    rows = json.loads(Path("out.json").read_text())["speed"]
    assert {(row["task"], row["precision"]) for row in rows} >= {("training", "fp32"), ("prediction", "fp32")}
    assert {row["crops"] for row in rows if row["task"] == "training"} == {"cpu", "gpu"}
    for row in rows:
        assert row["own_over_resident"] == pytest.approx(row["own"] / row["resident"])
        assert row["own_over_timm"] == pytest.approx(row["own"] / row["timm"])
        assert row["flop_utilisation"] > 0  # relative to a matrix product timed separately, so it may exceed 1


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def forked(self: Any, command: list[str], until: str = "", **environment: str) -> str:
    """Stands in for Trials.call: a forked process need not import torch again."""
    log = self.folder / "log"
    log.write_bytes(b"")

    def work() -> None:
        os.chdir(self.folder)
        os.environ.update(environment)
        if command[1] == "-c":
            sys.argv = ["-c", *command[3:]]
            exec(command[2], {"__name__": "__main__"})
            return
        arguments = command[1:]
        if arguments[0] == "-m":  # a launcher, whose own startup would take longer than the rest
            arguments = command[command.index("1") + 1 :]
            os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1")
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")

    child = fork(work, log)
    killed = False
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if until and not killed and re.search(until, log.read_text()):
            os.kill(child, signal.SIGKILL)
            killed = True
        time.sleep(0.002)
    if ended[1] and not killed:
        raise RuntimeError(f"{command[1:3]}: {log.read_text()[-2000:]}")
    return log.read_text()


def test_every_check_passes(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():  # CUDA does not survive a fork
        monkeypatch.setattr(gpu.gpu_checks.Trials, "call", forked)
    gpu.main(["--small", "--only", "checks", "--out", "out.json"])
    checks = json.loads(Path("out.json").read_text())["checks"]
    assert list(checks) == list(gpu.gpu_checks.CHECKS)
    assert [name for name, found in checks.items() if found["passed"] is False] == []


def test_a_check_that_fails_is_reported_beside_the_others(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: object) -> Any:
        raise RuntimeError("exited with 1")

    monkeypatch.setattr(gpu.gpu_checks, "CHECKS", {"first": broken, "second": lambda _: (True, "as it should be")})
    with pytest.raises(SystemExit) as end:
        gpu.main(["--small", "--only", "checks", "--out", "out.json"])
    assert end.value.code == 1
    checks = json.loads(Path("out.json").read_text())["checks"]
    assert (checks["first"]["passed"], checks["second"]["passed"]) == (False, True)
    assert "exited with 1" in checks["first"]["seen"] and "exited with 1" in capsys.readouterr().out
