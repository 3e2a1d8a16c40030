"""What a person sees: errors with a remedy, tables, progress."""

import argparse
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from time import monotonic
from typing import NamedTuple, TypeVar

T = TypeVar("T")
PLAIN_LINE_SECONDS = 10.0
NOTE_SECONDS = 0.5
ONE_SIGNAL_SECONDS = 1.0  # a scheduler signals a process and the one that passes it on: the same wish comes twice


class Problem(NamedTuple):
    """One thing that is wrong: where it is, what it is, what to do about it."""

    where: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"\n      → {self.remedy}" if self.remedy else "")


class UserError(Exception):
    """A mistake the user can mend: printed without a traceback, exit code 2."""


class StoppedError(Exception):
    """Work that stopped in good order before its end, by a signal or for want of time."""

    def __init__(self, why: str, exit_code: int, kept: str = "everything is saved") -> None:
        super().__init__(f"{why}: {kept}; give the same command again to go on")
        self.exit_code = exit_code


def raise_problems(problems: Sequence[Problem], title: str = "") -> None:
    """Raises one error that lists every problem; does nothing when there are none.

    Raises:
        UserError: If `problems` is not empty.
    """
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        lines = "\n".join(f"  {i}. {problem}" for i, problem in enumerate(problems, 1))
        raise UserError(f"{title or 'The data cannot be used'}: {count}\n{lines}")


def is_main_process() -> bool:
    """Whether this process speaks and writes: of those that torchrun or accelerate start together, the first does."""
    return "LOCAL_RANK" not in os.environ or os.environ.get("RANK") == "0"


def say(message: str = "") -> None:
    """Prints a line at once, also into a pipe."""
    if is_main_process():
        print(message, flush=True)


def add_settings_option(parser: argparse.ArgumentParser, about: str = "change settings, e.g. data.root=DIR") -> None:
    """Gives a script the option --set KEY=VALUE …, which may come several times."""
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=about)


def add_parallel_options(parser: argparse.ArgumentParser, what: str) -> None:
    """Gives a script the options --parallel and --ray-address; `what` is done at the same time."""
    parser.add_argument(
        "--parallel", metavar="N", help=f"{what} at a time: a number, auto (one a GPU) or ray (on a Ray cluster)"
    )
    parser.add_argument("--ray-address", metavar="ADDRESS", help="the cluster's, by default that of this machine")


def run(main: Callable[[], None]) -> None:
    """Runs a script's main function and exits: 0 done, 2 a user's mistake, 3 out of time, 130 interrupted, 1 else."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a letter that the terminal cannot show must not end a training
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (Exception, KeyboardInterrupt) as error:
        # A mistake in the command is every process's; one on each machine says so.
        sys.exit(report(error, quiet=os.environ.get("LOCAL_RANK", "0") != "0"))


def report(error: BaseException, quiet: bool = False) -> int:
    """Says, unless `quiet`, why work ended before its end and what to do.

    Returns:
        The exit code.

    Raises:
        BaseException: The error itself, if it is none that a user can mend.
    """
    if isinstance(error, UserError):
        message, code = f"error: {error}", 2
    elif isinstance(error, StoppedError):
        message, code = str(error), error.exit_code
    elif isinstance(error, KeyboardInterrupt):
        message, code = "\ninterrupted: what was saved is kept; give the same command again to go on", 130
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        where = f" ({error.filename})" if error.filename else ""
        remedy = "the last saved state is kept: make room or allow writing, and give the same command again"
        message, code = f"error: {error.strerror}{where}; {remedy}", 2
    else:
        raise error
    if not quiet:
        print(message, file=sys.stderr)
    return code


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Prints a table, numbers right-aligned; in a pipe as wide as its content."""
    if not is_main_process():
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Text, because a plain string is taken for markup: a class named [red] or :sea: would vanish.
    table = Table(title=Text(title) if title else None, box=box.SIMPLE_HEAD, title_justify="left")
    for i, name in enumerate(header):
        table.add_column(Text(name), justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)


def progress(items: Iterable[T], total: int, label: str, unit: str = "it", per_item: int = 1) -> Iterator[T]:
    """Yields `items` while showing how far, how fast and how long still.

    On a terminal a bar; elsewhere a plain line at most every ten seconds.

    Args:
        items: What to go through.
        total: How many items there are.
        label: What is being done.
        unit: What is counted in the rate.
        per_item: How many units an item holds.
    """
    meter = Meter(total, label, unit, per_item)
    try:
        for item in items:
            yield item
            meter.advance()
    finally:
        meter.close()


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM within its block into a request to stop between two steps."""

    def __init__(self, deadline: float, agree: Callable[[int], int] = int) -> None:
        """Takes when to stop in any case, and who else is asked.

        Args:
            deadline: In seconds of the monotonic clock.
            agree: Turns this process's request, an exit code or 0 for none, into that of all that must stop together.
        """
        self.deadline, self.agree = deadline, agree
        self.signalled, self.first = False, 0.0
        self._may_interrupt = False

    @property
    def reason(self) -> StoppedError | None:
        """Why to stop now, if there is a reason."""
        code = self.agree(130 if self.signalled else 3 if monotonic() >= self.deadline else 0)
        whys = {130: "interrupted", 3: "the time budget is used up"}
        return StoppedError(whys[code], code) if code else None

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Lets a signal end this block at once: for waiting, during which nothing can be lost.

        Raises:
            StoppedError: If a signal came.
        """
        self._may_interrupt = True
        try:
            yield
        except KeyboardInterrupt:
            raise StoppedError("interrupted", 130) from None
        finally:
            self._may_interrupt = False

    def __enter__(self) -> "StopRequest":
        def ask(number: int, _: object) -> None:
            if not self.signalled:
                self.signalled, self.first = True, monotonic()
                if self._may_interrupt:
                    raise KeyboardInterrupt
                with suppress(RuntimeError):  # the signal came in the middle of another print
                    say("stopping after this step …")
            elif monotonic() >= self.first + ONE_SIGNAL_SECONDS:  # a second one does not wait
                raise KeyboardInterrupt

        try:
            self._old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread
            self._old = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


class Meter:
    """Progress that is advanced by hand and can carry values such as the loss."""

    def __init__(self, total: int, label: str, unit: str = "it", per_item: int = 1, done: int = 0) -> None:
        self.total, self.label, self.unit, self.per_item = total, label, unit, per_item
        self.done = self.first = done
        self.start = self.last_line = monotonic()
        self.last_note = 0.0
        self.bar = None
        if sys.stdout.isatty() and is_main_process():
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
            self.bar = Progress(*columns, TimeRemainingColumn(), transient=True)
            self.bar.start()
            self.task = self.bar.add_task(label, total=total, completed=done, note="")

    @property
    def rate(self) -> float:
        """Units per second since the start or the last restart."""
        return (self.done - self.first) * self.per_item / max(monotonic() - self.start, 1e-9)

    def advance(self, note: str | Callable[[], str] = "", count: int = 1) -> None:
        """Counts items and shows a note beside the rate; a function is called only when its note is shown."""
        self.done += count
        if self.bar:
            self.bar.update(self.task, completed=self.done)
            if monotonic() - self.last_note >= NOTE_SECONDS:
                self.bar.update(self.task, note=self._text(note))
        elif monotonic() - self.last_line >= PLAIN_LINE_SECONDS and self.done < self.total:
            self.last_line = monotonic()
            left = (self.total - self.done) * self.per_item / max(self.rate, 1e-9)
            say(f"  {self.label}: {self.done}/{self.total}  {self._text(note)}  {left:.0f} s left")

    def _text(self, note: str | Callable[[], str]) -> str:
        self.last_note = monotonic()
        return f"{self.rate:.0f} {self.unit}/s  {note() if callable(note) else note}".rstrip()

    def restart(self) -> None:
        """Forgets the time so far, which something else took."""
        self.first, self.start = self.done, monotonic()

    def close(self) -> None:
        """Removes the bar."""
        if self.bar:
            self.bar.stop()
            self.bar = None
