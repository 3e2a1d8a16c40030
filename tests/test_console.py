"""What a user sees: exit codes, plain messages, progress that suits a pipe."""

import errno
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import scenes.console as console
import scenes.script as script_module
from scenes.console import (
    Meter,
    Problem,
    StoppedError,
    UserError,
    print_table,
    progress,
    raise_problems,
)
from scenes.script import StopRequest, run

SOURCE = Path(console.__file__).parents[1]


@pytest.fixture(autouse=True)
def _own_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """`run` sets SIGTERM's handler permanently; this restores it."""
    monkeypatch.setattr(signal, "signal", lambda number, handler, real=signal.signal: real(number, handler))
    old = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, old)


def script(code: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    imports = "from scenes.console import *; from scenes.script import *"
    program = f"import sys; sys.path.insert(0, {str(SOURCE)!r})\n{imports}\n{code}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, env={**os.environ, **environment})


def fail(error: BaseException) -> None:
    raise error


# -------------------------------------------------------------------------------------------------- problems


def test_problems_are_numbered_with_place_and_remedy() -> None:
    with pytest.raises(UserError) as caught:
        raise_problems([Problem("a.csv", "is odd", "fix it"), Problem("b.csv", "is worse")])
    assert str(caught.value) == (
        "The data cannot be used: 2 problems\n  1. a.csv: is odd\n      → fix it\n  2. b.csv: is worse"
    )


def test_one_problem_is_not_plural_and_none_raises_nothing() -> None:
    raise_problems([])
    with pytest.raises(UserError, match=r"^Oh: 1 problem\n"):
        raise_problems([Problem("a", "b")], "Oh")


# ------------------------------------------------------------------------------------------------------- run


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (UserError("two\nlines"), 2, "error: two\nlines\n"),
        (StoppedError("interrupted", 130), 130, "interrupted: everything is saved"),
        (StoppedError("the time budget is used up", 3), 3, "give the same command again to resume"),
        (KeyboardInterrupt(), 130, "give the same command again"),
        (OSError(errno.ENOSPC, "No space left on device", "x.pt"), 2, "error: No space left on device (x.pt)"),
        (OSError(errno.EACCES, "Permission denied", "runs"), 2, "error: Permission denied (runs)"),
        (OSError(errno.EROFS, "Read-only file system"), 2, "error: Read-only file system; what was saved"),
    ],
)
def test_run_turns_what_a_user_can_fix_into_a_message(
    error: BaseException, code: int, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        run(lambda: fail(error))
    assert exit.value.code == code
    printed = capsys.readouterr()
    assert part in printed.err
    assert "Traceback" not in printed.err + printed.out


@pytest.mark.parametrize("error", [ValueError("bug"), OSError(errno.EIO, "broken disk")])
def test_run_keeps_the_traceback_of_anything_else(error: Exception) -> None:
    with pytest.raises(type(error)):
        run(lambda: fail(error))


def test_run_returns_when_all_is_well() -> None:
    run(lambda: None)


def test_a_terminated_script_exits_as_an_interrupted_one() -> None:
    done = script("import os, signal\nrun(lambda: os.kill(os.getpid(), signal.SIGTERM) or __import__('time').sleep(9))")
    assert (done.returncode, b"interrupted" in done.stderr, b"Traceback" in done.stderr) == (130, True, False)


def test_a_closed_pipe_ends_a_script_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    imports = "from scenes.console import *; from scenes.script import run"
    program = f"import sys; sys.path.insert(0, {str(SOURCE)!r})\n{imports}\nrun(lambda: say('x'))"
    done = subprocess.run([sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_letters_that_the_terminal_lacks_do_not_end_a_script() -> None:
    code = r"run(lambda: (say('3 × 日本 \udc80'), print_table(['ä'], [['ö']]), fail()))" + "\n"
    done = script("def fail(): raise UserError('→ é')\n" + code, PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert rb"3 \xd7 \u65e5\u672c \udc80" in done.stdout
    assert rb"error: \u2192 \xe9" in done.stderr


# ---------------------------------------------------------------------------------------------------- tables


def test_a_table_in_a_pipe_is_not_folded_and_right_aligns_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["class", "n"], [("x" * 150, 1), ("sea", 1000)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.rstrip()[-4:] for line in lines if "x" * 150 in line or "sea" in line] == ["   1", "1000"]


@pytest.mark.parametrize("name", ["[red]", "[/x]", ":sea:", "[b]bold[/b]", "日本", "a\\[b"])
def test_a_table_shows_names_as_they_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_table([name, "n"], [(name, 1)])
    assert capsys.readouterr().out.count(name) == 2


# -------------------------------------------------------------------------------------------------- progress


def test_progress_yields_all_and_is_silent_when_quick(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(iter("abc"), 3, "letters")) == ["a", "b", "c"]
    assert list(progress([], 0, "nothing")) == []
    assert capsys.readouterr().out == ""


def test_a_slow_task_prints_a_plain_line_every_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(console, "monotonic", lambda: now)
    now = next(clock)
    meter = Meter(20, "decoding", "img", per_item=10)
    for _ in range(20):
        now = next(clock)
        meter.advance("loss 0.5")
    meter.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "  decoding: 5/20  5 img/s  loss 0.5  30 s left",
        "  decoding: 10/20  5 img/s  loss 0.5  20 s left",
        "  decoding: 15/20  5 img/s  loss 0.5  10 s left",
    ]


def test_work_done_before_does_not_count_for_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(console, "monotonic", lambda: now)
    meter = Meter(100, "x", done=90)
    now = 2.0
    meter.advance()
    assert (meter.done, meter.rate) == (91, 0.5)


# ------------------------------------------------------------------------------------------------------ stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_to_stop_and_the_second_interrupts(
    number: signal.Signals, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(number)
    now = 50.0
    monkeypatch.setattr(script_module, "monotonic", lambda: now)
    with pytest.raises(KeyboardInterrupt), StopRequest(math.inf) as stop:
        assert stop.reason is None
        signal.raise_signal(number)
        assert stop.reason
        assert stop.reason.exit_code == 130
        signal.raise_signal(number)  # the same one, passed on by another process
        assert capsys.readouterr().out.count("stopping after this step") == 1
        now += 1
        signal.raise_signal(number)
    assert signal.getsignal(number) is before
    assert StopRequest(math.inf).reason is None


def test_a_deadline_is_a_reason_to_stop_too(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 99.0
    monkeypatch.setattr(script_module, "monotonic", lambda: now)
    stop = StopRequest(100.0)
    assert stop.reason is None
    now = 100.0
    assert stop.reason
    assert stop.reason.exit_code == 3


def test_a_stop_request_outside_the_main_thread_leaves_signals_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def work() -> None:
        with StopRequest(math.inf) as stop:
            seen.extend([stop.reason, signal.getsignal(signal.SIGINT)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None, before]
