import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from scenes import environment
from scenes.environment import OPENCV, unsatisfied

PYPROJECT = """
[project]
requires-python = "{python}"
dependencies = [
    "torch>=2.10,<2.14",
    "ruamel.yaml>=0.18",
    "opencv-python-headless>=4.9",
    "never-on-this-system>=1; sys_platform == 'no-such-system'",
]
[project.optional-dependencies]
dev = ["ruff>=0.17"]
"""
GOOD = {"torch": "2.13.0+cpu", "ruamel.yaml": "0.19.1", "opencv-python": "4.10.0.84"}


def check(
    folder: Path, monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], extra: str = "", python: str = ">=3.11"
) -> list[str]:
    """What is unsatisfied if only `installed` is installed."""
    packages = folder / "packages"
    for name, version in installed.items():
        info = packages / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    path = folder / "pyproject.toml"
    path.write_text(PYPROJECT.format(python=python))
    __import__("packaging.requirements")  # while it can still be found
    monkeypatch.setattr(sys, "path", [str(packages)])
    return unsatisfied(extra, path)


def test_satisfied_when_all_versions_are_within_their_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(tmp_path, monkeypatch, GOOD) == []


@pytest.mark.parametrize("name", OPENCV)
def test_any_opencv_distribution_counts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(tmp_path, monkeypatch, {"torch": "2.10.0", "ruamel.yaml": "0.18", name: "4.9.0.80"}) == []


def test_opencv_that_is_missing_or_too_old_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = {"torch": "2.10.0", "ruamel.yaml": "0.18"}
    assert check(tmp_path, monkeypatch, others) == ["opencv-python-headless>=4.9: not installed"]
    (tmp_path / "again").mkdir()
    old = {**others, "opencv-python": "4.8.1"}
    assert check(tmp_path / "again", monkeypatch, old) == ["opencv-python-headless>=4.9: found 4.8.1"]


def test_missing_and_too_old_and_too_new_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = check(tmp_path, monkeypatch, {"torch": "2.9.1", "opencv-python": "4.9"})
    assert lines == ["torch>=2.10,<2.14: found 2.9.1", "ruamel.yaml>=0.18: not installed"]
    (tmp_path / "again").mkdir()
    assert check(tmp_path / "again", monkeypatch, {**GOOD, "torch": "2.14.0"}) == ["torch>=2.10,<2.14: found 2.14.0"]


def test_a_version_that_cannot_be_read_is_not_satisfied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(tmp_path, monkeypatch, {**GOOD, "torch": "nightly"}) == ["torch>=2.10,<2.14: found nightly"]


def test_an_extra_is_checked_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(tmp_path, monkeypatch, GOOD, extra="dev") == ["ruff>=0.17: not installed"]


def test_the_python_version_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ".".join(map(str, sys.version_info[:3]))
    assert check(tmp_path, monkeypatch, GOOD, python=">=3.99") == [f"python>=3.99: found {found}"]


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment without any packages."""
    folder = tmp_path_factory.mktemp("interpreter") / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return folder


@pytest.fixture
def bare(tmp_path: Path, interpreter: Path) -> Path:
    """A repository with one script and an interpreter without any packages (bare/bin/python)."""
    repo = tmp_path / "a repo"
    (repo / "src" / "scenes").mkdir(parents=True)
    shutil.copy(environment.__file__, repo / "src" / "scenes" / "environment.py")
    shutil.copy(environment.ROOT / "pyproject.toml", repo / "pyproject.toml")
    script = "from scenes.environment import ensure_environment\n\nensure_environment()\nprint('continued')\n"
    (repo / "src" / "verb.py").write_text(script)
    (repo / "bare").symlink_to(interpreter)
    return repo


def run(repo: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Runs the bare interpreter from another folder."""
    command = [str(repo / "bare/bin/python"), *arguments]
    environ = {"PATH": os.environ["PATH"], "HOME": str(repo), **variables}
    return subprocess.run(command, capture_output=True, text=True, cwd=repo.parent, env=environ, timeout=60)


def stand_in(repo: Path, text: str) -> None:
    """Writes .venv/bin/python."""
    python = repo / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(text)
    python.chmod(0o755)


def test_a_bare_interpreter_without_venv_says_what_to_run(bare: Path) -> None:
    done = run(bare, str(bare / "src/verb.py"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the requirements are not installed here (missing: torch, timm, cv2")
    assert done.stderr.endswith("run: bash setup.sh\n") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("script", sorted(path.name for path in (environment.ROOT / "src").glob("*.py")))
def test_every_script_needs_no_package_to_say_so(bare: Path, script: str) -> None:
    shutil.rmtree(bare / "src")
    shutil.copytree(environment.ROOT / "src", bare / "src", ignore=shutil.ignore_patterns("__pycache__"))
    done = run(bare, str(bare / "src" / script))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("run: bash setup.sh\n") and done.stderr.count("\n") == 1


def test_a_bare_interpreter_restarts_in_venv_with_the_same_arguments(bare: Path) -> None:
    stand_in(bare, '#!/bin/sh\nprintf "%s|" "$@"\n')
    script = str(bare / "src/verb.py")
    done = run(bare, "-u", script, "--set", "a.b=c d", "")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"-u|{script}|--set|a.b=c d||", "")


def test_a_venv_that_lacks_the_requirements_too_does_not_loop(bare: Path) -> None:
    stand_in(bare, f'#!/bin/sh\nexec "{bare}/bare/bin/python" "$@"\n')
    done = run(bare, str(bare / "src/verb.py"))
    assert done.returncode == 2 and "run: bash setup.sh" in done.stderr


def test_a_venv_that_cannot_run_is_as_good_as_none(bare: Path) -> None:
    stand_in(bare, "#!/no/such/interpreter\n")
    done = run(bare, str(bare / "src/verb.py"))
    assert done.returncode == 2 and "run: bash setup.sh" in done.stderr


def test_an_interpreter_that_has_everything_stays(bare: Path) -> None:
    stand_in(bare, "#!/bin/sh\necho wrong\n")
    packages = bare / "packages"
    for name in environment.NEEDED:
        (packages / name).mkdir(parents=True)
        (packages / name / "__init__.py").write_text("raise SystemExit('found is enough: importing takes seconds')\n")
    done = run(bare, str(bare / "src/verb.py"), PYTHONPATH=str(packages))
    assert (done.returncode, done.stdout) == (0, "continued\n")


def test_the_check_runs_as_a_script_on_a_bare_interpreter(bare: Path) -> None:
    done = run(bare, str(bare / "src/scenes/environment.py"))
    assert (done.returncode, done.stderr) == (1, "")
    assert "not installed" in done.stdout


def test_albumentations_is_kept_from_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_ALBUMENTATIONS_UPDATE", raising=False)
    environment.ensure_environment()
    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"


def test_timm_can_be_imported_after_torchvision() -> None:
    environment.import_timm()
    environment.import_timm()  # the second time there is nothing left to do
    import timm

    assert timm.list_models("resnet18")


def test_the_backbones_are_imported_without_the_compiler_and_leave_it_as_it_is() -> None:
    code = """
        import sys
        import scenes.model.backbone
        assert "torch._dynamo" not in sys.modules
        import timm, torch
        from timm.models import naflexvit
        assert torch.compiler.disable.__module__ == "torch.compiler"
        assert naflexvit.disable_compiler(lambda number: number + 1)(1) == 2
        from torch._dynamo.utils import is_compile_supported
        from torchvision.ops import roi_align
        assert roi_align.__globals__["is_compile_supported"]("cpu") == is_compile_supported("cpu")
    """
    variables = {**os.environ, "PYTHONPATH": str(environment.ROOT / "src")}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env=variables)


def test_describe_can_be_written_as_json() -> None:
    described = environment.describe()
    assert json.loads(json.dumps(described)) == described
    packages = described["packages"]
    assert isinstance(packages, dict) and "torch" in packages
    assert described["devices"] and described["cpu_threads"]


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_that_of_the_repository_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    git("init")
    assert environment.commit_of(environment.ROOT) == (None, None)  # no commit yet
    (tmp_path / "file").write_text("a")
    git("add", ".")
    git("commit", "-m", "one")
    git("tag", "v1")
    assert environment.commit_of(environment.ROOT) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "file").write_text("b")
    assert environment.commit_of(environment.ROOT) == (git("rev-parse", "HEAD"), True)
    (tmp_path / "unpacked").mkdir()
    monkeypatch.setattr(environment, "ROOT", tmp_path / "unpacked")
    assert environment.commit_of(environment.ROOT) == (None, None)
