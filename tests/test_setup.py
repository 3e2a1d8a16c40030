"""setup.sh and train.sh with stand-ins for Python, pip and uv: no network, nothing installed."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from scenes.environment import ROOT

# Answers what setup.sh asks of a Python and logs the installs. HAS_ALL: the active one meets the version ranges.
PYTHON = """#!/bin/bash
case "$*" in
    *environment.py*) [[ -n "${HAS_ALL:-}" && "$0" != */.venv/* ]] ;;
    *"pip install"*)
        [[ "$*" == *"--constraint "*/requirements.lock* ]] || exit 9
        grep -o 'requirements[a-z-]*.txt' <<<"$*" >> "$LOG"
        sleep "${PIP_SECONDS:-0}"
        if [[ -n "${PIP_FAILS:-}" ]]; then echo "ERROR: no route to host" >&2; exit 1; fi ;;
    "-m venv "*)
        echo venv >> "$LOG"
        mkdir -p "$3/bin" && cp "$FAKE" "$3/bin/python"
        echo "export VIRTUAL_ENV='$3' PATH='$3/bin':\\"\\$PATH\\"" > "$3/bin/activate" ;;
    src/train.py*) printf '%s|' "$@" ;;
esac
"""
UV = """#!/bin/bash
[[ -z "${UV_FAILS:-}" ]] || { echo "uv: $UV_FAILS" >&2; exit 1; }
printf '%s|' uv "$@" >> "$LOG.uv"
case "$*" in
    venv*) "$FAKE" -m venv "${@: -1}" ;;
    "pip install"*) "$FAKE" -m "$@" ;;
esac
"""
BROKEN = "#!/bin/sh\nexit 127\n"  # like a version manager's shim with nothing behind it


class Scratch:
    """A scratch repository in a path with spaces, and a PATH with stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.repo, self.bin, self.log = folder / "a repo", folder / "bin", folder / "log"
        (self.repo / "src" / "scenes").mkdir(parents=True)
        self.bin.mkdir()
        for name in ("setup.sh", "train.sh"):
            shutil.copy(ROOT / name, self.repo / name)
        for name in ("requirements.txt", "requirements-dev.txt"):
            (self.repo / name).write_text("anything==1\n")
        (self.repo / "requirements.lock").write_text("anything==1\n")
        self.put("python3", PYTHON)
        self.put("python", BROKEN)
        fake = str(self.bin / "python3")
        self.environ = {"PATH": f"{self.bin}:/usr/bin:/bin", "LOG": str(self.log), "FAKE": fake}

    def put(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def bash(self, script: str, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Runs a strict script from another folder."""
        command = ["bash", "-c", f"set -euo pipefail\n{script}", str(self.repo), *arguments]
        environ = {**self.environ, **variables}
        return subprocess.run(command, capture_output=True, text=True, cwd=self.bin, env=environ, timeout=60)

    def setup(self, extra: str = "", **variables: str) -> "subprocess.CompletedProcess[str]":
        return self.bash(f'source "$0/setup.sh" {extra}; command -v "$PYTHON"', **variables)

    def installs(self) -> list[str]:
        """What was installed since the last call."""
        lines = self.log.read_text().split() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    return Scratch(tmp_path)


def test_installs_once_and_then_nothing(scratch: Scratch) -> None:
    first = scratch.setup()
    assert first.returncode == 0, first.stderr
    assert len(first.stdout.splitlines()) == 2 and first.stderr == ""
    python = str(scratch.repo / ".venv/bin/python")
    assert first.stdout.splitlines()[1:] == [python]
    assert scratch.installs() == ["venv", "requirements.txt"]
    second = scratch.setup()
    assert (second.stdout, second.stderr) == (f"{python}\n", "")
    assert scratch.installs() == []


def test_an_environment_that_has_all_is_used_as_it_is(scratch: Scratch) -> None:
    done = scratch.setup(HAS_ALL="1")
    assert done.stdout == f"{scratch.bin / 'python3'}\n"  # not `python`, which does not run
    assert scratch.installs() == [] and not (scratch.repo / ".venv").exists()


def test_changed_requirements_are_installed_again(scratch: Scratch) -> None:
    scratch.setup()
    scratch.installs()
    (scratch.repo / "requirements.txt").write_text("anything==2\n")
    scratch.setup()
    assert scratch.installs() == ["requirements.txt"]
    assert scratch.setup().returncode == 0 and scratch.installs() == []


def test_a_changed_lock_is_installed_again(scratch: Scratch) -> None:
    scratch.setup("dev")
    scratch.installs()
    (scratch.repo / "requirements.lock").write_text("anything==1\nsomething==3\n")
    scratch.setup("dev")
    assert scratch.installs() == ["requirements.txt", "requirements-dev.txt"]


def test_uv_installs_where_there_is_one(scratch: Scratch) -> None:
    scratch.put("uv", UV)
    places = {
        "PIP_FIND_LINKS": "/wheels /more",
        "PIP_EXTRA_INDEX_URL": "file:///extra",
        "PIP_INDEX_URL": "file:///main",
    }
    done = scratch.setup("dev", **places)
    assert done.stdout.splitlines()[1:] == [str(scratch.repo / ".venv/bin/python")] and done.stderr == ""
    assert scratch.installs() == ["venv", "requirements.txt", "requirements-dev.txt"]
    given = Path(f"{scratch.log}.uv").read_text()
    assert "|--find-links|/wheels|--find-links|/more|" in given
    assert "|--default-index|file:///main|--index|file:///extra|" in given
    scratch.setup("dev")
    assert scratch.installs() == []


def test_pip_installs_where_uv_cannot(scratch: Scratch) -> None:
    scratch.put("uv", UV)
    done = scratch.setup(UV_FAILS="no route to this mirror")
    assert done.returncode == 0 and "no route to this mirror" in done.stderr
    assert scratch.installs() == ["venv", "requirements.txt"]
    assert scratch.setup(UV_FAILS="still").stderr == ""


def test_dev_comes_on_top_and_costs_the_core_nothing(scratch: Scratch) -> None:
    scratch.setup()
    scratch.installs()
    scratch.setup("dev")
    assert scratch.installs() == ["requirements-dev.txt"]
    scratch.setup()
    scratch.setup("dev")
    assert scratch.installs() == []


def test_a_failed_install_is_explained_and_tried_again(scratch: Scratch) -> None:
    done = scratch.setup(PIP_FAILS="1")
    assert done.returncode == 1 and done.stdout.count("\n") == 1
    assert "ERROR: no route to host" in done.stderr and "no network" in done.stderr
    scratch.installs()
    assert scratch.setup().returncode == 0
    assert scratch.installs() == ["requirements.txt"]


def test_an_interrupted_install_does_not_count(scratch: Scratch) -> None:
    scratch.setup()
    old = (scratch.repo / "requirements.txt").read_text()
    (scratch.repo / "requirements.txt").write_text("anything==2\n")
    scratch.setup(PIP_FAILS="1")
    (scratch.repo / "requirements.txt").write_text(old)  # back to what the first install had, which may be half gone
    scratch.installs()
    scratch.setup()
    assert scratch.installs() == ["requirements.txt"]


@pytest.mark.parametrize("broken", ["python", "activate", "moved"])
def test_a_broken_venv_is_replaced(scratch: Scratch, broken: str) -> None:
    scratch.setup()
    scratch.installs()
    if broken == "moved":
        scratch.repo = scratch.repo.rename(scratch.repo.with_name("another repo"))
    else:
        (scratch.repo / ".venv/bin" / broken).unlink()
    done = scratch.setup()
    assert done.stdout.splitlines()[1:] == [str(scratch.repo / ".venv/bin/python")]
    assert scratch.installs() == ["venv", "requirements.txt"]


def test_an_active_venv_of_ours_follows_the_pinned_files(scratch: Scratch) -> None:
    scratch.setup()
    scratch.installs()
    (scratch.repo / "requirements.txt").write_text("anything==2\n")
    scratch.bash('source "$0/.venv/bin/activate"; source "$0/setup.sh"', HAS_ALL="1")
    assert scratch.installs() == ["requirements.txt"]


def test_without_a_fitting_python_it_says_so(scratch: Scratch) -> None:
    for name in ("python3", "python3.13", "python3.12", "python3.11"):
        scratch.put(name, BROKEN)
    done = scratch.setup()
    assert done.returncode == 1
    assert "no Python 3.11, 3.12 or 3.13" in done.stderr
    assert not (scratch.repo / ".venv").exists()


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock is not installed")
def test_two_at_once_install_once(scratch: Scratch) -> None:
    done = scratch.bash('(source "$0/setup.sh") & sleep 0.1; source "$0/setup.sh"; wait $!', PIP_SECONDS="0.5")
    assert done.returncode == 0 and "Waiting" in done.stdout
    assert scratch.installs() == ["venv", "requirements.txt"]


def test_train_passes_its_arguments_on(scratch: Scratch) -> None:
    (scratch.repo / "configs").mkdir()
    (scratch.repo / "configs/a.yaml").touch()
    (scratch.bin / "b c.yaml").touch()  # in the folder where the command is run
    train = 'bash "$0/train.sh" "$@"'
    done = scratch.bash(train, "configs/a.yaml", "--set", "x=y z", HAS_ALL="1")
    assert done.stdout == "src/train.py|configs/a.yaml|--set|x=y z|--submit|"
    done = scratch.bash(train, "b c.yaml", HAS_ALL="1")
    assert done.stdout == f"src/train.py|{scratch.bin}/b c.yaml|--submit|"
    done = scratch.bash('cd "$0"; bash train.sh "$PWD/configs/a.yaml"', HAS_ALL="1")
    assert done.stdout == "src/train.py|configs/a.yaml|--submit|"


@pytest.mark.parametrize("arguments", [(), ("--dry-run",)])
def test_train_without_a_config_tells_its_usage(scratch: Scratch, arguments: tuple[str, ...]) -> None:
    done = scratch.bash('bash "$0/train.sh" "$@"', *arguments)
    assert done.returncode == 2 and done.stderr.startswith("usage: bash train.sh configs/NAME.yaml")
    assert scratch.installs() == []


@pytest.mark.parametrize("name", ["setup.sh", "train.sh", "tests/run.sh", ".ci/run"])
def test_the_shell_scripts_parse(name: str) -> None:
    assert subprocess.run(["bash", "-n", str(ROOT / name)], env=dict(os.environ)).returncode == 0


def pins(file: Path) -> dict[str, set[str]]:
    """The versions each distribution is pinned to; markers can give several."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", file.read_text(), re.MULTILINE):
        found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), set()).add(version)
    return found


def test_the_lock_holds_every_pin_and_no_build_of_torch_alone() -> None:
    locked = pins(ROOT / "requirements.lock")
    for file in ("requirements.txt", "requirements-dev.txt"):
        for name, versions in pins(ROOT / file).items():
            assert locked.get(name) == versions, f"{file}: {name}; update requirements.lock as CONTRIBUTING.md says"
    text = (ROOT / "requirements.lock").read_text()
    assert "+cpu" not in text and "://" not in text and "nvidia" not in text
