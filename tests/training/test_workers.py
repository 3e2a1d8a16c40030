"""Folds in parallel: the same files as a sequential run; failures, signals, a parent's death."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import train
from processes import STEADY, logged, meanwhile, steady, until
from scenes.console import StoppedError, UserError
from scenes.training import workers
from scenes.training.workers import Slot, Task, failure, make_slots, run_tasks
from tiny import TINY, fit, results


@pytest.fixture(autouse=True)
def _one_thread_in_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def two_slots() -> list[Slot]:
    return [Slot(name, {"SLOT": name}) for name in "ab"]


# ---------------------------------------------------------------------------------------------- train.py end to end


def test_a_fold_that_fails_leaves_the_others_alone_and_then_the_files_are_those_of_a_sequential_run(
    trained: Path, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Path("runs/tiny/fold0/last.pt")
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"damaged")
    with pytest.raises(UserError) as caught:
        fit("--parallel=2")
    message = str(caught.value)
    assert "fold0" in message and "exit code 2" in message and "runs/tiny/fold0/log.txt" in message
    assert "last.pt: damaged" in message and "fold1" not in message
    assert Path("runs/tiny/fold1/weights.safetensors").exists()
    assert not Path("runs/tiny/metrics.json").exists()
    assert "[fold1]   fold1 epoch 2" in capsys.readouterr().out
    broken.unlink()
    fit()  # in this process, which is faster
    assert results(workspace) == results(trained)
    for name in ("config.yaml", "folds.csv", "environment.json"):
        assert Path("runs/tiny", name).read_bytes() == (trained / "runs/tiny" / name).read_bytes(), name


def test_a_signal_lets_the_folds_of_all_configs_save_and_the_same_command_resumes(workspace: Path) -> None:
    Path("other.yaml").write_text("seed: 1\n")
    logs = ["runs/tiny/fold0", "runs/other/fold0"]

    def interrupt() -> None:
        until(lambda: any(logged("epoch 1:", log)() for log in logs))
        os.kill(os.getpid(), signal.SIGTERM)

    command = ["tiny.yaml", "other.yaml", "--folds=0", "--set", *TINY, "train.epochs=20"]
    with meanwhile(interrupt), pytest.raises(StoppedError, match="interrupted") as stopped:
        train.main([*command, "--parallel=2"])
    assert stopped.value.exit_code == 130
    assert any(Path(log, "last.pt").exists() for log in logs)
    assert not any(Path(log, "weights.safetensors").exists() for log in logs)
    train.main(command)  # one after another in this process, which is faster
    assert sorted(file.parent.name for file in Path("runs").glob("*/metrics.json")) == ["other", "tiny"]


def test_one_slot_and_finished_folds_need_no_process(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit("--parallel=2")
    assert "CV accuracy" in capsys.readouterr().out
    fit("--parallel=auto")
    assert "no GPU" in capsys.readouterr().out
    assert not list(Path("runs").glob("*/*/log.txt"))


def test_a_run_that_has_no_time_left_starts_nothing(workspace: Path) -> None:
    with pytest.raises(StoppedError) as stopped:
        fit("--parallel=2", "train.time_budget_minutes=1e-9")
    assert stopped.value.exit_code == 3
    assert not list(Path("runs").glob("*/*/log.txt"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--parallel=0"], "a number, auto"),
        (["--parallel=-1"], "a number, auto"),
        (["--parallel=many"], "a number, auto"),
        (["--parallel=2", "--ray-address=auto"], "works only with --parallel ray"),
        (["--ray-address=auto"], "works only with --parallel ray"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: list[str], says: str, workspace: Path) -> None:
    with pytest.raises(UserError, match=says):
        fit(*options)
    assert not Path("runs").exists()


def test_two_configs_of_one_name_are_refused(workspace: Path) -> None:
    with pytest.raises(UserError, match="several of these experiments would write to runs/same"):
        train.main(["tiny.yaml", "tiny.yaml", "--set", "name=same"])


def test_processes_of_a_launcher_start_no_processes(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")  # set by a launcher; the folds' processes would take it for theirs
    with pytest.raises(UserError, match="torchrun"):
        make_slots("2", 5)


# ------------------------------------------------------------------------------------------------------------ slots


def test_gpus_are_assigned_round_robin_and_cores_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-7f")
    monkeypatch.setattr(workers, "gpu_count", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)))
    slots = make_slots("3", 10)
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["4", "GPU-7f", "4"]
    assert [slot.environment["OMP_NUM_THREADS"] for slot in slots] == ["2", "2", "2"]  # equal, for the same bytes
    assert [list(slot.cores) for slot in slots] == [[0, 1], [2, 3], [4, 5, 6]]
    assert len(make_slots("auto", 10)) == 2
    assert make_slots("8", 1) == []
    monkeypatch.setattr(workers, "gpu_count", lambda: 1)
    assert make_slots("auto", 10) == []  # this process trains one fold after another
    monkeypatch.setattr(workers, "gpu_count", lambda: 0)
    assert ["CUDA_VISIBLE_DEVICES" in slot.environment for slot in make_slots("2", 2)] == [False, False]


def test_a_free_slot_takes_the_next_task_and_a_killed_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "import os, sys; print(os.environ['SLOT'], len(os.sched_getaffinity(0))); {}"
    does = ["pass", "sys.exit(3)", "os.kill(os.getpid(), 9)", "pass", "sys.exit('why')"]
    tasks = [Task(f"t{i}", Path(f"t{i}/log.txt"), ["-c", code.format(what)]) for i, what in enumerate(does)]
    left, codes = list(tasks), {}

    def ended(task: Task, code: int, lines: object) -> None:
        codes[task.label] = code
        if code < 0:
            problem = failure(task, code, list(lines))  # type: ignore[call-overload]
            assert "killed by signal 9" in str(problem) and "memory" in str(problem)

    assert not run_tasks(two_slots(), lambda _: left.pop(0) if left else None, ended)
    assert codes == {"t0": 0, "t1": 3, "t2": -9, "t3": 0, "t4": 1}
    assert "[t4] why" in capsys.readouterr().out


def test_a_second_signal_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('begun', flush=True); time.sleep(90)"
    )
    tasks = [Task("deaf", Path("deaf/log.txt"), ["-c", deaf])]

    def interrupt_twice() -> None:
        until(logged("begun", "deaf"))
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1.1)
        os.kill(os.getpid(), signal.SIGINT)

    start = time.monotonic()
    with meanwhile(interrupt_twice), pytest.raises(KeyboardInterrupt):
        run_tasks(two_slots(), lambda _: tasks.pop() if tasks else None, lambda *_: None)
    assert time.monotonic() < start + 60


def test_an_error_of_the_parent_lets_the_processes_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tasks = [steady("one")]

    def next_task(_: Slot) -> Task:
        if tasks:
            return tasks.pop()
        until(logged("begun", "one"))
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run_tasks(two_slots(), next_task, lambda *_: None)
    until(logged("interrupted", "one"))


def test_a_killed_parent_leaves_no_process_at_work(tmp_path: Path) -> None:
    parent = (
        f"import sys, pathlib; sys.path.insert(0, {str(Path(train.__file__).parent)!r})\n"
        "from scenes.training.workers import Child, Task\n"
        f"task = Task('steady', pathlib.Path('log.txt'), ['-c', {STEADY!r}, '.'])\n"
        "print(Child(task, {}, 'here').pid, flush=True)\n"
        "sys.stdin.read()"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", parent], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert started.stdout
    child = int(started.stdout.readline())
    until(lambda: "begun" in (tmp_path / "log.txt").read_text())
    started.kill()
    started.wait()
    until(lambda: "interrupted" in (tmp_path / "log.txt").read_text(), 20)
    until(lambda: not is_at_work(child), 20)


def is_at_work(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_without_ray_the_message_says_how_to_get_it(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scenes.ray_cluster.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install ray=="):
        fit("--parallel=ray")
    assert not Path("runs").exists()
