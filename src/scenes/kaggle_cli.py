"""Runs the kaggle command, shows its output and explains its failures."""

import io
import os
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from scenes.console import UserError

SHOWN_LINES = 5
# The order matters: a traceback about the network also mentions authentication.
FAILURES = {
    "network": r"failed to resolve|max retries|connection ?(error|refused|reset)|timed out|429 client|5\d\d server",
    "forbidden": "403 (client error|-)|forbidden|accept.*rules|permission.*denied",
    "credentials": r"401 (client error|-)|unauthorized|authenticat|credential|kaggle\.json",
    "missing": "404 (client error|-)|not found",
}
CREDENTIALS = (
    "no valid Kaggle credentials: create an API token at kaggle.com → Settings → API and set it as KAGGLE_API_TOKEN, "
    "or put the kaggle.json from there into ~/.kaggle/, or set KAGGLE_USERNAME and KAGGLE_KEY"
)


class KaggleError(UserError):
    """A failure of the kaggle command; `kind` is a key of `FAILURES`, or "other"."""

    def __init__(self, message: str, kind: str = "other") -> None:
        super().__init__(message)
        self.kind = kind


def call(arguments: Sequence[str], remedies: Mapping[str, str] | None = None, quiet: bool = False) -> list[str]:
    """Runs the kaggle command.

    Args:
        arguments: What follows `kaggle`.
        remedies: What to tell the user about each kind of failure, before the command's own output.
        quiet: Do not show its output.

    Returns:
        Its last non-empty lines.

    Raises:
        KaggleError: If its exit code is not 0.
        UserError: If it is not installed.
    """
    code, lines = _stream([command(), *arguments], quiet)
    if code:
        raise _explain(code, lines, remedies or {})
    return lines


def require_credentials() -> None:
    """Checks, without asking Kaggle, that there is a token or key.

    Raises:
        UserError: If there is none, or the command is not installed.
    """
    command()
    variables = {name for name, value in os.environ.items() if value}
    folder = Path(os.environ.get("KAGGLE_CONFIG_DIR") or Path.home() / ".kaggle")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "kaggle"
    files = [place / "kaggle.json" for place in (folder, config)]
    files += [Path.home() / ".kaggle" / name for name in ("access_token", "access_token.txt", "credentials.json")]
    known = "KAGGLE_API_TOKEN" in variables or {"KAGGLE_USERNAME", "KAGGLE_KEY"} <= variables
    if not known and not any(file.is_file() for file in files):
        raise KaggleError(CREDENTIALS, "credentials")


def command() -> str:
    """Finds the kaggle command on the path, or next to the running Python, whose environment may not be active.

    Raises:
        UserError: If it is not installed.
    """
    found = shutil.which("kaggle") or shutil.which("kaggle", path=str(Path(sys.executable).parent))
    if not found:
        raise UserError("the kaggle command is not installed: pip install kaggle==2.2.5")
    return found


def _stream(arguments: Sequence[str], quiet: bool) -> tuple[int, list[str]]:
    """Runs a command, shows its output as it comes, and returns its exit code and last lines."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    assert process.stdout
    lines: deque[str] = deque(maxlen=100)
    try:
        # newline="" also ends lines at carriage returns, which draw progress bars, and keeps them.
        for line in io.TextIOWrapper(process.stdout, encoding="utf-8", errors="replace", newline=""):
            lines.append(line.strip())
            if not quiet and (sys.stdout.isatty() or not line.endswith("\r")):
                print(line, end="", flush=True)
        return process.wait(), [line for line in lines if line]
    finally:
        process.kill()  # no effect if it has ended
        process.wait()


def _explain(code: int, lines: Sequence[str], remedies: Mapping[str, str]) -> KaggleError:
    """Explains a failure and what to do about it, based on what the command printed."""
    text = "\n".join(lines)
    said = "It said:\n" + "\n".join(f"  {line}" for line in lines[-SHOWN_LINES:])
    kind = next((name for name, words in FAILURES.items() if re.search(words, text, re.IGNORECASE)), "other")
    messages = {
        "network": f"Kaggle cannot be reached, or is busy: is there a network here? {said}",
        "credentials": CREDENTIALS,
        "forbidden": f"{remedies.get('forbidden', 'Kaggle denies access')}. {said}",
        "missing": f"{remedies.get('missing', 'Kaggle cannot find it')}. {said}",
    }
    return KaggleError(messages.get(kind, f"the kaggle command failed (exit code {code}). {said}"), kind)
