"""How a script runs: common options, exit codes, stopping on a signal."""

import argparse
import errno
import gc
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic

from scenes.console import StoppedError, UserError, say

COLLECT_AFTER = 50_000  # new objects: at Python's default of 700, collecting garbage takes a sixth of import time
ONE_SIGNAL_SECONDS = 1.0  # a scheduler may signal both a process and its parent, which passes the signal on


def add_settings_option(parser: argparse.ArgumentParser, about: str = "change settings, e.g. data.root=DIR") -> None:
    """Adds the option --set KEY=VALUE …, which may be repeated, to a script."""
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=about)


def add_parallel_options(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds the options --parallel and --ray-address to a script; `what` names what runs in parallel."""
    parser.add_argument(
        "--parallel", metavar="N", help=f"{what} at a time: a number, auto (one per GPU) or ray (on a Ray cluster)"
    )
    parser.add_argument("--ray-address", metavar="ADDRESS", help="the Ray cluster's, by default this machine's")


def run(main: Callable[[], None]) -> None:
    """Runs a script's main function and exits: 0 done, 2 user's mistake, 3 out of time, 130 interrupted, 1 other."""
    gc.set_threshold(COLLECT_AFTER)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a character the terminal cannot show must not end a run
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (Exception, KeyboardInterrupt) as error:
        # Every process hits a mistake in the command; one per machine reports it.
        sys.exit(report(error, quiet=os.environ.get("LOCAL_RANK", "0") != "0"))


def report(error: BaseException, quiet: bool = False) -> int:
    """Prints, unless `quiet`, why the work ended early and what to do.

    Returns:
        The exit code.

    Raises:
        BaseException: The error itself, if a user cannot fix it.
    """
    if isinstance(error, UserError):
        message, code = f"error: {error}", 2
    elif isinstance(error, StoppedError):
        message, code = str(error), error.exit_code
    elif isinstance(error, KeyboardInterrupt):
        message, code = "\ninterrupted: what was saved is kept; give the same command again to resume", 130
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        where = f" ({error.filename})" if error.filename else ""
        remedy = "what was saved is intact; free some space or allow writing, then run the same command again"
        message, code = f"error: {error.strerror}{where}; {remedy}", 2
    else:
        raise error
    if not quiet:
        print(message, file=sys.stderr)
    return code


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM within its block into a request to stop between two steps."""

    def __init__(self, deadline: float, agree: Callable[[int], int] = int) -> None:
        """Sets the deadline, and how processes agree to stop together.

        Args:
            deadline: In seconds of the monotonic clock.
            agree: Turns this process's request (an exit code, or 0 for none) into that of all processes.
        """
        self.deadline, self.agree = deadline, agree
        self.signalled, self.first = False, 0.0
        self._may_interrupt = False

    @property
    def reason(self) -> StoppedError | None:
        """The reason to stop now, if there is one."""
        code = self.agree(130 if self.signalled else 3 if monotonic() >= self.deadline else 0)
        whys = {130: "interrupted", 3: "the time budget is used up"}
        return StoppedError(whys[code], code) if code else None

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Lets a signal end this block at once, for waits during which nothing can be lost.

        Raises:
            StoppedError: If a signal arrives.
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
                with suppress(RuntimeError):  # the signal interrupted another print
                    say("stopping after this step …")
            elif monotonic() >= self.first + ONE_SIGNAL_SECONDS:  # a second one stops at once
                raise KeyboardInterrupt

        try:
            self._old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread
            self._old = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
