"""Push and submit against a stand-in for the kaggle command, and against the real one talking to a loopback server.

A failed step is resumed where it stopped; a finished step is not repeated.
"""

import io
import json
import os
import shlex
import shutil
import signal
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

import kernel
from scenes import script
from scenes.console import UserError
from scenes.kaggle.bootstrap import sha256
from tiny import TINY

STAND_IN = """#!{python} -IS
import json, pathlib, sys
folder = pathlib.Path(__file__).parent
with (folder / "calls").open("a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
answers = json.loads((folder / "answers.json").read_text())
queue = answers[" ".join(sys.argv[1:3])]
code, text, files = queue.pop(0) if len(queue) > 1 else queue[0]
(folder / "answers.json").write_text(json.dumps(answers))
for name, content in files.items():
    place = pathlib.Path(sys.argv[sys.argv.index("-p") + 1])
    place.mkdir(exist_ok=True)
    (place / name).write_text(content)
print(text)
sys.exit(code)
"""
MISSING = (1, "404 Client Error: Not Found for url: https://api.kaggle.com/v1/x")
NETWORK = (1, "ConnectionError: HTTPSConnectionPool(host='api.kaggle.com'): Max retries exceeded")
BUSY = (1, "503 Server Error: Service Unavailable for url: https://api.kaggle.com/v1/x")
DENIED = (1, "Cannot access kernel 'someone/scenes-tiny' (Permission 'kernels.get' was denied).")
UNKNOWN = (1, "Authentication required to call the Kaggle API.\n\nFirst, you will need a Kaggle account.")
PUSHED = "Kernel version {} successfully pushed.  Please check progress at https://www.kaggle.com/code/someone/x"
NONE_YET = (0, "No submissions found")
RUN = ["--run", "runs/tiny", "--interval", "0"]


def dataset(status: str, version: int) -> tuple[int, str]:
    answer = json.dumps({"status": status, "current_version_number": version})
    return 0, f"Warning: Your Kaggle API key is readable\n{answer}"


def status(name: str, failure: str = "") -> tuple[int, str]:
    text = f'someone/scenes-tiny has status "KernelWorkerStatus.{name}"'
    return 0, f'{text}\nFailure message: "{failure}"' if failure else text


def scored(state: str, public: str, description: str = "Scenes tiny, version 1") -> tuple[int, str]:
    header = "ref,fileName,date,description,status,publicScore,privateScore"
    return 0, f'{header}\n7,submission.csv,2026-01-01,"{description}",SubmissionStatus.{state},{public},\n'


class Command:
    """The stand-in: its successive answers to each verb, the last one repeated; and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        program = folder / "kaggle"
        program.write_text(STAND_IN.format(python=sys.executable))
        program.chmod(0o755)
        self.answers: dict[str, list[tuple[int, str, dict[str, str]]]] = {}
        self.will(
            ("datasets status", [MISSING, dataset("blobs_received", 1), dataset("ready", 1)]),
            ("datasets create", [(0, "Your private Dataset is being created. Please check progress at https://x")]),
            ("datasets version", [(0, "Dataset version is being created. Please check progress at https://x")]),
            ("kernels push", [(0, PUSHED.format(1))]),
            ("kernels status", [status("QUEUED"), status("RUNNING"), status("COMPLETE")]),
            ("kernels output", [(0, "done", {"submission.csv": "a,b\n", "scenes-tiny.log": "[]"})]),
            (
                "competitions submissions",
                [NONE_YET, scored("PENDING", ""), scored("COMPLETE", "0.95")],
            ),
            ("competitions submit", [(0, "Submission ref: 7\nSuccessfully submitted")]),
        )

    def will(self, *answers: tuple[str, list[Any]]) -> None:
        for verb, queue in answers:
            self.answers[verb] = [(*answer, {}) if len(answer) == 2 else answer for answer in queue]
        (self.folder / "answers.json").write_text(json.dumps(self.answers))
        (self.folder / "calls").write_text("")

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()

    def verbs(self) -> list[str]:
        """The verbs in order, without consecutive repetitions."""
        verbs = [" ".join(call.split()[:2]) for call in self.calls()]
        return [verb for at, verb in enumerate(verbs) if not at or verbs[at - 1] != verb]


@pytest.fixture
def place(built: Callable[..., Path]) -> Path:
    return built()


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("KAGGLE_API_TOKEN", "token")
    return Command(folder)


def push(*options: str) -> None:
    kernel.main(["push", *RUN, *options])


def submit(*options: str) -> None:
    kernel.main(["submit", *RUN, *options])


UPLOAD = ["datasets status", "datasets create", "datasets status"]
EVERYTHING = [*UPLOAD, "kernels push", "kernels status", "kernels output"]


def test_push_does_every_step_once(place: Path, kaggle: Command, capsys: pytest.CaptureFixture[str]) -> None:
    push()
    assert kaggle.verbs() == EVERYTHING
    assert f"datasets create -p {place.relative_to(Path.cwd())}/dataset -r zip" in kaggle.calls()
    assert kaggle.calls()[-1].startswith("kernels output someone/scenes-tiny/1 -p ")
    printed = capsys.readouterr().out
    for line in ("blobsreceived", "ready", "queued", "running", "complete; its output and log", "next: "):
        assert line in printed
    assert (place / "output/submission.csv").exists()

    kaggle.will()
    push()
    assert kaggle.calls() == []
    push("--again")
    assert kaggle.verbs() == ["kernels push", "kernels status", "kernels output"]


def test_other_content_becomes_a_version_and_the_old_output_is_kept(
    place: Path, kaggle: Command, built: Callable[..., Path]
) -> None:
    push()
    built("--folds", "0")
    (place / "output/submission.csv").write_text("first")
    # Ready, but still the previous version.
    versions = [dataset("ready", 1), dataset("ready", 1), dataset("reprocessing", 2), dataset("ready", 2)]
    kaggle.will(("datasets status", versions), ("kernels push", [(0, PUSHED.format(2))]))
    push()
    assert kaggle.verbs() == ["datasets status", "datasets version", *EVERYTHING[2:]]
    assert len([call for call in kaggle.calls() if call.startswith("datasets status")]) == 4
    assert (place / "output.1/submission.csv").read_text() == "first"
    assert "kernels output someone/scenes-tiny/2" in kaggle.calls()[-1]


def test_a_failed_kernel_shows_the_end_of_its_log_and_runs_again(place: Path, kaggle: Command) -> None:
    log = json.dumps([{"stream_name": "stderr", "time": 1.0, "data": "first\n"}, {"data": "UserError: no images\n"}])
    kaggle.will(
        ("kernels status", [status("RUNNING"), status("ERROR", "Your notebook threw an exception")]),
        ("kernels output", [(0, "", {"scenes-tiny.log": log})]),
    )
    with pytest.raises(UserError, match=r"ended as error: Your notebook threw[\s\S]*no images\n.*again"):
        push()
    kaggle.will(("kernels status", [status("COMPLETE")]), ("kernels push", [(0, PUSHED.format(2))]))
    push()
    assert kaggle.verbs() == ["kernels push", "kernels status", "kernels output"]


def test_a_dataset_that_fails_is_uploaded_again(place: Path, kaggle: Command) -> None:
    kaggle.will(("datasets status", [MISSING, dataset("blobs_received", 1), dataset("failed", 1)]))
    with pytest.raises(UserError, match=r"could not process the dataset \(failed\).*uploads it again"):
        push()
    kaggle.will(("datasets status", [dataset("failed", 1), dataset("ready", 2)]))
    push()
    assert kaggle.verbs() == ["datasets status", "datasets version", *EVERYTHING[2:]]


@pytest.mark.parametrize(
    ("verb", "answer", "says", "again"),
    [
        ("datasets create", (1, "Upload unsuccessful: src.zip"), "src.zip", EVERYTHING),
        ("datasets create", (0, "Dataset creation error: slug is taken"), "slug is taken", EVERYTHING),
        ("kernels push", (0, "Kernel push error: GPU quota exceeded"), "GPU quota", EVERYTHING[3:]),
        (
            "kernels push",
            (0, f"The following are not valid dataset sources: ['x']\n{PUSHED.format(1)}"),
            "not valid dataset sources",
            EVERYTHING[3:],
        ),
        ("kernels push", (0, "what a surprise"), "did not say which version", EVERYTHING[3:]),
        ("kernels status", NETWORK, "cannot be reached", EVERYTHING[4:]),
        ("kernels status", MISSING, "does not know it", EVERYTHING[4:]),
        (
            "kernels output",
            (1, "failed after 5 retries.", {"submission.csv": "a,"}),
            "5 retries",
            EVERYTHING[5:],
        ),
    ],
)
def test_a_step_that_fails_resumes_there(
    place: Path, kaggle: Command, verb: str, answer: tuple[int, str], says: str, again: list[str]
) -> None:
    good = kaggle.answers[verb]
    kaggle.will((verb, [answer]))
    with pytest.raises(UserError, match=says):
        push()
    kaggle.will((verb, good), ("datasets status", [MISSING, dataset("ready", 1)]))
    push()
    assert kaggle.verbs() == again
    assert (place / "output/submission.csv").read_text() == "a,b\n"


def test_a_network_that_fails_for_a_moment_is_retried(place: Path, kaggle: Command) -> None:
    kaggle.will(("kernels status", [DENIED, status("RUNNING"), NETWORK, BUSY, status("COMPLETE")]))
    push()
    assert (place / "output/submission.csv").exists()


def test_another_account_starts_from_the_beginning(place: Path, kaggle: Command, built: Callable[..., Path]) -> None:
    push()
    built("--owner", "another")
    kaggle.will(("datasets status", [MISSING, dataset("ready", 1)]))
    push()
    assert kaggle.verbs() == EVERYTHING


def test_an_experiment_under_another_name_is_found_again(
    workspace: Path, kaggle: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel.main(
        ["build", "--train", "tiny.yaml", "--owner", "someone", "--competition", "scenes", "--set", "name=other", *TINY]
    )
    next_step = capsys.readouterr().out.splitlines()[-1].partition("kernel.py ")[2]
    kernel.main([*shlex.split(next_step), "--interval", "0"])
    assert Path("runs/other/kaggle_train/output/submission.csv").exists()


def test_a_negative_interval_is_refused(place: Path, kaggle: Command) -> None:
    with pytest.raises(UserError, match="--interval"):
        push("--interval", "-1")


def test_damaged_metadata_is_named(place: Path, kaggle: Command) -> None:
    (place / "kernel/kernel-metadata.json").write_text("{")
    with pytest.raises(UserError, match=r"kernel-metadata\.json: .*build"):
        push()


def test_a_damaged_state_is_named(place: Path, kaggle: Command) -> None:
    (place / "state.json").write_text('{"of"')
    with pytest.raises(UserError, match=r"state\.json: damaged"):
        push()


def test_a_wrong_credential_is_reported_at_the_first_step(place: Path, kaggle: Command) -> None:
    kaggle.will(("datasets status", [UNKNOWN]))
    with pytest.raises(UserError, match=r"Settings → API.*KAGGLE_API_TOKEN"):
        push()
    assert kaggle.verbs() == ["datasets status"]
    assert not (place / "state.json").exists()


@pytest.mark.parametrize("verb", ["push", "submit"])
def test_without_credentials_nothing_is_asked(
    place: Path,
    kaggle: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    verb: str,
) -> None:
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_CONFIG_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as done:
        script.run(lambda: kernel.main([verb, *RUN]))
    signal.signal(signal.SIGTERM, handler)
    assert done.value.code == 2
    assert "API token" in capsys.readouterr().err
    assert kaggle.calls() == []
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle/kaggle.json").write_text("{}")
    with pytest.raises(UserError, match=r"kernel\.py push") if verb == "submit" else nullcontext():
        kernel.main([verb, *RUN])


def test_nothing_built_is_reported(finished: Path, kaggle: Command) -> None:
    with pytest.raises(UserError, match=r"kernel\.py build"):
        push()


# ------------------------------------------------------------------------------------------------------ submit


def test_the_kernel_is_submitted_once_and_scored(
    place: Path, kaggle: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"kernel\.py push"):
        submit()
    push()
    submit()
    sent = "competitions submit scenes -k someone/scenes-tiny -v 1 -f submission.csv -m Scenes tiny, version 1"
    assert sent in kaggle.calls()
    assert "score: public 0.95" in capsys.readouterr().out
    kaggle.will(("competitions submissions", [scored("COMPLETE", "0.95")]))
    submit()
    assert sent not in kaggle.calls()
    assert "submitted before" in capsys.readouterr().out


def test_a_file_is_submitted(place: Path, kaggle: Command) -> None:
    with pytest.raises(UserError, match=r"output/submission\.csv: no such file"):
        submit("--file")
    push()
    mark = sha256(place / "output/submission.csv")[:8]
    answers = [NONE_YET, scored("COMPLETE", "0.9", f"Scenes tiny, {mark}")]
    kaggle.will(("competitions submissions", answers))
    submit("--file")
    file = (place / "output/submission.csv").relative_to(Path.cwd())
    assert f"competitions submit scenes -f {file} -m Scenes tiny, {mark}" in kaggle.calls()
    with pytest.raises(
        UserError, match=r"^submission\.csv: no such file"
    ):  # a local file of this name, not the kernel's
        submit("--file", "submission.csv")


def test_a_submission_that_fails_is_reported(place: Path, kaggle: Command) -> None:
    push()
    kaggle.will(("competitions submissions", [NONE_YET, scored("ERROR", "", "mine")]))
    with pytest.raises(UserError, match=r"could not score 'mine'.*--message"):
        submit("--message", " mine\n")
    kaggle.will(("competitions submit", [(1, "400 Client Error: only accepts Submissions from Notebooks")]))
    with pytest.raises(UserError, match="only accepts Submissions from Notebooks"):
        submit("--message", "other")


# ------------------------------------------------------------------------------------- the real kaggle command


class Kaggle(BaseHTTPRequestHandler):
    """The part of Kaggle's API that push and submit need."""

    protocol_version = "HTTP/1.1"
    token: ClassVar[str] = "right"
    dataset: ClassVar[list[list[str]]] = []  # the uploaded names, one list per version
    blobs: ClassVar[dict[str, bytes]] = {}
    names: ClassVar[list[str]] = []
    polls: ClassVar[int] = 0
    cut: ClassVar[int] = 1
    ranges: ClassVar[list[str]] = []
    kernel: ClassVar[dict[str, Any]] = {}
    submission: ClassVar[dict[str, Any]] = {}
    address: ClassVar[str] = ""
    result = b"image_name,label\n" + b"x.jpg,1\n" * 4000

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
        method = self.path.rpartition("/")[2]
        kind = type(self)
        if method == "IntrospectToken":
            self.answer({"active": request["token"] == kind.token, "username": "someone"})
        elif method in ("GetDatasetStatus", "GetDataset"):
            kind.polls += method == "GetDatasetStatus"
            if not kind.dataset:
                self.answer({"code": 404, "message": "not found"}, 404)
            else:
                ready = "READY" if kind.polls % 2 else "BLOBS_RECEIVED"
                self.answer({"status": ready, "currentVersionNumber": len(kind.dataset)})
        elif method == "StartBlobUpload":
            kind.names.append(request["name"])
            number = len(kind.names) - 1
            self.answer({"token": request["name"], "createUrl": f"{self.address}/upload/{number}"})
        elif method in ("CreateDataset", "CreateDatasetVersion"):
            files = request.get("files") or request["body"]["files"]
            kind.dataset.append(sorted(file["token"] for file in files))
            self.answer({"status": "ok", "url": "https://x", "error": ""})
        elif method == "SaveKernel":
            kind.kernel.update(request)
            self.answer({"versionNumber": 3, "url": "https://x"})
        elif method == "GetKernelSessionStatus":
            kind.polls += 1
            self.answer({"status": "COMPLETE" if kind.polls % 2 else "RUNNING"})
        elif method == "ListKernelSessionOutput":
            files = [{"url": f"{self.address}/files/submission.csv", "fileName": "submission.csv"}]
            self.answer({"files": files, "log": "[]"})
        elif method == "CreateCodeSubmission":
            kind.submission.update(request)
            self.answer({"message": "Successfully submitted", "ref": 7})
        elif method == "ListSubmissions":
            row = {"ref": 7, "description": kind.submission.get("submissionDescription", "")}
            row |= {"status": "COMPLETE", "publicScore": "0.95", "date": "2026-01-01T00:00:00Z"}
            self.answer({"submissions": [row] if kind.submission else []})
        else:
            self.answer({}, 200 if method == "GetSubmissionLimits" else 500)

    def do_PUT(self) -> None:
        self.blobs[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({})

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.ranges.append(asked)
        body = self.result[start:]
        self.send_response(206 if asked else 200)
        for name, value in (("Content-Length", str(len(body))), ("Accept-Ranges", "bytes"), ("ETag", '"one"')):
            self.send_header(name, value)
        self.end_headers()
        if type(self).cut:  # in the middle
            type(self).cut -= 1
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def answer(self, content: dict[str, Any], code: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


# The command cannot take another endpoint from its environment, so it is started with a patched one.
REAL = """#!{python}
from kagglesdk import kaggle_env
kaggle_env._env_to_endpoint[kaggle_env.KaggleEnv.PROD] = "{address}"
from kaggle.cli import main
main()
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Kaggle]]:
    installed = shutil.which("kaggle") or shutil.which("kaggle", path=str(Path(sys.executable).parent))
    if not installed:
        pytest.skip("the kaggle command is not installed")
    python = Path(installed).read_text().splitlines()[0].removeprefix("#!")
    served = ThreadingHTTPServer(("127.0.0.1", 0), Kaggle)
    Kaggle.address = f"http://127.0.0.1:{served.server_port}"
    threading.Thread(target=served.serve_forever, daemon=True).start()
    command = tmp_path / "bin/kaggle"
    command.parent.mkdir()
    command.write_text(REAL.format(python=python, address=Kaggle.address))
    command.chmod(0o755)
    for name in [name for name in os.environ if name.startswith("KAGGLE_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", str(command.parent))
    monkeypatch.setenv("KAGGLE_API_TOKEN", "right")
    for name in ("HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    yield Kaggle
    served.shutdown()
    served.server_close()


def test_the_real_command_accepts_what_is_built(
    place: Path,
    server: type[Kaggle],
    built: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", "wrong")
    with pytest.raises(UserError, match="API token"):
        push()
    monkeypatch.setenv("KAGGLE_API_TOKEN", "right")
    push()
    assert server.dataset == [["manifest.json", "pyproject.toml", "runs.zip", "src.zip"]]
    packed = server.blobs[str(server.names.index("runs.zip"))]
    assert "tiny/fold0/weights.safetensors" in zipfile.ZipFile(io.BytesIO(packed)).namelist()
    sent = server.kernel
    assert (sent["enableInternet"], sent["enableGpu"], sent["machineShape"]) == (False, True, "NvidiaTeslaT4")
    assert sent["datasetDataSources"] == ["someone/scenes-tiny-bundle"] and sent["isPrivate"] is True
    assert (place / "output/submission.csv").read_bytes() == server.result
    assert server.ranges[0] == "" and server.ranges[-1].startswith("bytes="), "cut in the middle, then resumed"
    assert "does not resolve" not in capsys.readouterr().out

    built("--folds", "0")
    push()
    assert len(server.dataset) == 2
    submit()
    assert (server.submission["kernelSlug"], server.submission["kernelVersion"]) == ("scenes-tiny", 3)
    assert "score: public 0.95" in capsys.readouterr().out
