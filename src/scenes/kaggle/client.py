"""Uploads dataset and kernel and fetches the results, step by step; completed steps are not repeated."""

import csv
import hashlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from scenes.console import UserError, say
from scenes.files import keep_old
from scenes.kaggle.bootstrap import sha256
from scenes.kaggle_cli import KaggleError, call, require_credentials
from scenes.runs import read_json, write_json

T = TypeVar("T", bound=Mapping[str, Any])
RUNNING = ("newscript", "queued", "running", "cancelrequested")
MOST_FAILURES = 10  # polls in a row: not all of Kaggle's servers know at once what was just created
LOG_LINES = 15
LINE_SECONDS = 120.0  # while waiting, print a line at least this often


class Place:
    """A folder made by `build`, and the state of its upload."""

    def __init__(self, folder: Path) -> None:
        """Reads the metadata and the state.

        Raises:
            UserError: If nothing was built there.
        """
        metadata = folder / "kernel" / "kernel-metadata.json"
        if not metadata.exists():
            raise UserError(f"{folder}: nothing was built there; run python src/kernel.py build first")
        self.folder = folder
        self.metadata = _read(metadata)
        self.manifest = _read(folder / "dataset" / "manifest.json")
        self._file = folder / "state.json"
        whose = {"of": [self.dataset, self.kernel]}  # the state of another owner's build is ignored
        known = read_json(self._file) if self._file.exists() else {}
        self.state: dict[str, Any] = known if whose.items() <= known.items() else whose

    @property
    def dataset(self) -> str:
        """OWNER/SLUG of the dataset."""
        return self.metadata["dataset_sources"][0]

    @property
    def kernel(self) -> str:
        """OWNER/SLUG of the kernel."""
        return self.metadata["id"]

    @property
    def competition(self) -> str:
        """The competition's name."""
        return self.metadata["competition_sources"][0]

    @property
    def output(self) -> Path:
        """Where the kernel's output goes."""
        return self.folder / "output"

    @property
    def submission(self) -> Path:
        """The kernel's submission, once fetched."""
        return self.output / "submission.csv"

    def save(self, **changes: Any) -> None:
        """Records completed steps."""
        self.state |= changes
        write_json(self._file, self.state)


def _read(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable ({error}); run python src/kernel.py build again") from None
    return content


def push(place: Place, interval: float, again: bool = False) -> None:
    """Uploads the dataset, waits until it is ready, pushes the kernel, follows it and fetches its output.

    Args:
        place: What was built.
        interval: Seconds between two requests.
        again: Run the kernel again even if nothing changed.

    Raises:
        UserError: If Kaggle refuses a step, or the kernel fails.
    """
    require_credentials()
    _upload(place)
    _wait_for_dataset(place, interval)
    _start(place, again)
    _follow(place, interval)
    _fetch(place)


def submit(place: Place, interval: float, file: Path | None = None, message: str | None = None) -> None:
    """Submits and prints the score when it is known; does not submit anything twice.

    Args:
        place: What was pushed.
        interval: Seconds between two requests.
        file: The submission file; by default the kernel itself, as code competitions require.
        message: Its description; by default a unique one.

    Raises:
        UserError: If there is nothing to submit, Kaggle refuses it or cannot score it.
    """
    require_credentials()
    if file:
        if not file.is_file():
            raise UserError(f"{file}: no such file; python src/kernel.py push fetches the kernel's submission.csv")
        mark, options = sha256(file)[:8], ["-f", str(file)]
    else:
        version = place.state.get("kernel", {}).get("version")
        if place.state.get("kernel", {}).get("status") != "complete" or not version:
            raise UserError(f"{place.kernel}: no version is complete; run python src/kernel.py push first")
        mark, options = f"version {version}", ["-k", place.kernel, "-v", str(version), "-f", "submission.csv"]
    message = " ".join((message or f"{place.metadata['title']}, {mark}").split())  # as Kaggle lists it
    if _submission(place, message):  # the number per day is limited
        say(f"{message!r} was submitted before")
    else:
        _check(
            call(["competitions", "submit", place.competition, *options, "-m", message], _remedies(place)), "could not"
        )
        say(f"submitted as {message!r}")
    row = _poll(
        lambda: _submission(place, message), lambda row: _plain(row["status"]) != "pending", interval, "scoring"
    )
    if _plain(row["status"]) != "complete":
        raise UserError(
            f"Kaggle could not score {message!r}: see https://www.kaggle.com/competitions/{place.competition}; "
            "to submit it again, use another --message"
        )
    private = f", private {row['privateScore']}" if row.get("privateScore") else ""
    say(f"score: public {row.get('publicScore') or 'not published'}{private}")


def _upload(place: Place) -> None:
    """Creates the dataset, or a new version of it, unless the same content was uploaded before."""
    folder = place.folder / "dataset"
    digest = sha256(folder / "manifest.json")
    if place.state.get("dataset", {}).get("manifest") == digest:
        say(f"dataset {place.dataset}: uploaded before")
        return
    before = _dataset_status(place)
    if before is None:
        lines = call(["datasets", "create", "-p", str(folder), "-r", "zip"], _remedies(place))
    else:
        note = f"{place.manifest['name']} {digest[:8]}"
        lines = call(["datasets", "version", "-p", str(folder), "-r", "zip", "-m", note], _remedies(place))
    _check(lines, "creation error")
    place.save(dataset={"manifest": digest, "before": (before or {}).get("current_version_number") or 0})


def _wait_for_dataset(place: Place, interval: float) -> None:
    """Waits until Kaggle has unpacked the version that was uploaded."""
    known = place.state["dataset"]
    if known.get("ready"):
        return

    def is_done(status: Mapping[str, Any]) -> bool:
        newer = (status.get("current_version_number") or 1) > known["before"]
        return _plain(status["status"]) in ("failed", "deleted") or (_plain(status["status"]) == "ready" and newer)

    status = _poll(lambda: _dataset_status(place), is_done, interval, f"dataset {place.dataset}")
    if _plain(status["status"]) != "ready":
        place.save(dataset={})
        raise UserError(
            f"Kaggle could not process the dataset ({status['status']}): see https://www.kaggle.com/datasets/"
            f"{place.dataset}; the same command uploads it again"
        )
    place.save(dataset=known | {"ready": True})


def _dataset_status(place: Place) -> dict[str, Any] | None:
    """Asks for the dataset's status and version; None if it does not exist, which Kaggle may report as forbidden."""
    try:
        lines = call(["datasets", "status", place.dataset, "--format", "json"], quiet=True)
    except KaggleError as error:
        if error.kind in ("missing", "forbidden"):
            return None
        raise
    return json.loads(lines[-1])


def _start(place: Place, again: bool) -> None:
    """Pushes the kernel, unless the same kernel is running or complete."""
    files = sorted((place.folder / "kernel").iterdir())
    parts = [place.state["dataset"]["manifest"], *(f"{file.name} {sha256(file)}" for file in files)]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    known = place.state.get("kernel", {})
    if known.get("pushed") == digest and known["status"] in (*RUNNING, "complete") and not again:
        say(f"kernel {place.kernel}: version {known['version']} was pushed before ({known['status']})")
        return
    ran_before = known.get("completed", False)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(shutil.copytree(place.folder / "kernel", Path(scratch) / "kernel"))
        if place.manifest["kind"] == "train" and ran_before:  # it resumes from its own output
            write_json(folder / "kernel-metadata.json", place.metadata | {"kernel_sources": [place.kernel]})
        lines = call(["kernels", "push", "-p", str(folder)], _remedies(place))
    _check(lines, "push error|not valid (dataset|competition|kernel) sources")
    found = re.search(r"Kernel version (\d+) successfully pushed", "\n".join(lines))
    if not found:
        raise KaggleError("the kaggle command did not say which version it pushed:\n" + "\n".join(lines))
    if kept := keep_old(place.output):
        say(f"the output of the previous version is now {kept}")
    place.save(
        kernel={
            "pushed": digest,
            "version": int(found[1]),
            "status": "queued",
            "completed": ran_before,
            "fetched": False,
        }
    )


def _follow(place: Place, interval: float) -> None:
    """Waits until the kernel has ended."""
    known = place.state["kernel"]
    if known["status"] not in RUNNING:
        return

    def ask() -> dict[str, str] | None:
        try:
            text = "\n".join(call(["kernels", "status", f"{place.kernel}/{known['version']}"], quiet=True))
        except KaggleError as error:
            if error.kind in ("missing", "forbidden"):  # Kaggle's answer for a version it does not know yet
                return None
            raise
        status = re.search(r'has status "(?:\w+\.)?(\w+)"', text)
        failure = re.search(r'Failure message: "(.*)"', text, re.DOTALL)
        return {"status": status[1], "failure": failure[1] if failure else ""} if status else None

    about = f"kernel {place.kernel} version {known['version']}"
    answer = _poll(ask, lambda answer: _plain(answer["status"]) not in RUNNING, interval, about)
    status = _plain(answer["status"])
    completed = known["completed"] or status == "complete"
    place.save(kernel=known | {"status": status, "failure": answer["failure"], "completed": completed})


def _fetch(place: Place) -> None:
    """Downloads the kernel's output and log, and reports how it ended.

    Raises:
        UserError: If the kernel failed; with the end of its log.
    """
    known = place.state["kernel"]
    if not known["fetched"]:
        version = f"{place.kernel}/{known['version']}"
        try:
            call(["kernels", "output", version, "-p", str(place.output)], _remedies(place))
        except KaggleError:
            if known["status"] == "complete":
                raise
            say("its output could not be fetched")  # why it failed matters more
        known = known | {"fetched": True}
        place.save(kernel=known)
    log = place.output / f"{place.kernel.rpartition('/')[2]}.log"
    if known["status"] != "complete":
        raise UserError(
            f"{place.kernel} version {known['version']} ended as {known['status']}: "
            f"{known['failure'] or 'no reason given'}; its log, {log}, ends\n{_end_of(log)}\n"
            "the same command runs it again"
        )
    say(f"{place.kernel} version {known['version']} is complete; its output and log: {place.output}/")
    if place.submission.exists():
        say(f"next: python src/kernel.py submit …, or look at {place.submission} first")


def _end_of(log: Path) -> str:
    """Returns the last lines of a kernel's log, which Kaggle writes as JSON entries."""
    if not log.exists():
        return "  (there is no log)"
    text = log.read_text(encoding="utf-8", errors="replace")
    with suppress(ValueError, TypeError, KeyError):
        text = "".join(entry["data"] for entry in json.loads(text))
    return "\n".join(f"  {line}" for line in text.splitlines()[-LOG_LINES:])


def _submission(place: Place, message: str) -> dict[str, str] | None:
    """Returns the newest submission with this description."""
    lines = call(["competitions", "submissions", place.competition, "-v"], _remedies(place), quiet=True)
    start = next((at for at, line in enumerate(lines) if line.startswith("ref,")), len(lines))
    return next((row for row in csv.DictReader(lines[start:]) if row["description"] == message), None)


def _poll(ask: Callable[[], T | None], is_done: Callable[[T], bool], interval: float, what: str) -> T:
    """Asks until the answer is final and prints the status. A missing answer or network is retried for a while."""
    failures, shown, start, said = 0, "", time.monotonic(), 0.0
    while True:
        try:
            answer = ask()
        except KaggleError as error:
            if error.kind != "network" or failures >= MOST_FAILURES:
                raise
            answer = None
        failures = 0 if answer else failures + 1
        if answer is None and failures > MOST_FAILURES:
            raise UserError(f"{what}: Kaggle does not know it; run the same command again to continue")
        waited = time.monotonic() - start
        if answer and (_plain(answer["status"]) != shown or waited - said >= LINE_SECONDS):
            shown, said = _plain(answer["status"]), waited
            say(f"{what}: {shown}, {waited / 60:.0f} min")
        if answer and is_done(answer):
            return answer
        time.sleep(interval)


def _plain(status: str) -> str:
    """Simplifies a status: KernelWorkerStatus.CANCEL_REQUESTED becomes cancelrequested."""
    return status.rpartition(".")[2].lower().replace("_", "")


def _check(lines: list[str], words: str) -> None:
    """Raises a refusal that the kaggle command printed although it exited with code 0."""
    if found := [line for line in lines if re.search(words, line, re.IGNORECASE)]:
        raise KaggleError("Kaggle refused it: " + "; ".join(found))


def _remedies(place: Place) -> dict[str, str]:
    owner = place.kernel.partition("/")[0]
    return {
        "forbidden": f"Kaggle denies access: is {owner} the account your token belongs to, and has it accepted the "
        f"rules, https://www.kaggle.com/competitions/{place.competition}/rules ?",
        "missing": f"Kaggle does not know one of these names ({place.dataset}, {place.kernel}, {place.competition})",
    }
