"""Console output: problems with their remedies, tables, progress."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from time import monotonic
from typing import NamedTuple, TypeVar

T = TypeVar("T")
PLAIN_LINE_SECONDS = 10.0
NOTE_SECONDS = 0.5


class Problem(NamedTuple):
    """One problem: where it is, what is wrong, and what to do about it."""

    where: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"\n      → {self.remedy}" if self.remedy else "")


class UserError(Exception):
    """A user's mistake: printed without a traceback, exit code 2."""


class StoppedError(Exception):
    """Work that stopped early but cleanly, on a signal or when its time budget ran out."""

    def __init__(self, why: str, exit_code: int, kept: str = "everything is saved") -> None:
        super().__init__(f"{why}: {kept}; give the same command again to resume")
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
    """Whether this process logs and writes files: the only one, or the first that torchrun or accelerate started."""
    return "LOCAL_RANK" not in os.environ or os.environ.get("RANK") == "0"


def say(message: str = "") -> None:
    """Prints a line and flushes it."""
    if is_main_process():
        print(message, flush=True)


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table with numbers right-aligned; in a pipe it is as wide as its content."""
    if not is_main_process():
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Text, because plain strings are parsed as markup: a class named [red] or :sea: would vanish.
    table = Table(box=box.SIMPLE_HEAD)
    for i, name in enumerate(header):
        table.add_column(Text(name), justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)


def progress(items: Iterable[T], total: int, label: str, unit: str = "it", per_item: int = 1) -> Iterator[T]:
    """Yields `items` and shows progress, speed and the time left.

    A bar on a terminal; elsewhere at most one plain line every ten seconds.

    Args:
        items: The items.
        total: How many items there are.
        label: What is being done.
        unit: The unit of the rate.
        per_item: Units per item.
    """
    meter = Meter(total, label, unit, per_item)
    try:
        for item in items:
            yield item
            meter.advance()
    finally:
        meter.close()


class Meter:
    """A progress bar that is advanced manually and can show values such as the loss."""

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
        """Counts items and shows a note next to the rate; a function is called only when its note is shown."""
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
        """Restarts the clock, because the time so far was spent on something else."""
        self.first, self.start = self.done, monotonic()

    def close(self) -> None:
        """Removes the bar."""
        if self.bar:
            self.bar.stop()
            self.bar = None
